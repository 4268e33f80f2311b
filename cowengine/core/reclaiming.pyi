from cowengine.core.datapath import DataPath
from cowengine.core.roots import Root

def reclaim(
    path: DataPath,
    dead: Root,
    kept: Root | None,
    before_epoch: int,
    cursor: int,
    budget: int,
    parts: int = 1,
    runs: int = 1 << 16,
) -> tuple[int, bool, tuple[bytes, bytes, bytes, int, list[tuple[int, int]], list[Root]]]: ...
def replay_reclaim(path: DataPath, dead: Root, kept: Root | None, before_epoch: int, cursor: int, end: int) -> None: ...
