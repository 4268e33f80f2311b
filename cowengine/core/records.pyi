from collections.abc import Sequence

_Pairs = bytes | Sequence[tuple[int, int]]

def pack_record(
    fold: int,
    salt: int,
    sequence: int,
    generation: int,
    previous: int,
    epoch: int,
    time_ns: int,
    size: int,
    flags: int,
    deltas: bytes,
    freed: _Pairs,
    freed_nodes: _Pairs,
    checks: _Pairs,
    events: bytes,
    unit: int,
) -> tuple[bytes, int]: ...
def pack_snapshot(
    number: int,
    epoch: int,
    tag: int,
    created_ns: int,
    name: str,
    set_id: bytes,
    flags: int,
    metadata: bytes,
    before: bool,
    head: int,
) -> bytes: ...
