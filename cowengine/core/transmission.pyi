from typing import Protocol, Self, type_check_only

from typing_extensions import disjoint_base

from cowengine.core.readpath import ReadPath
from cowengine.core.roots import Root

@type_check_only
class Commands(Protocol):
    """What a `Transmission` asks, with the GIL, from any of its threads; nothing here raises."""

    def carry_out(self, kind: int, flags: int, offset: int, length: int) -> int: ...
    def block_status(self, flags: int, offset: int, length: int) -> list[bytes] | int: ...
    def failed_read(self, status: int) -> int: ...
    def failed_write(self, data: memoryview, offset: int, status: int) -> int: ...
    def trim_memory(self) -> None: ...

@disjoint_base
class Transmission:
    def __new__(
        cls,
        fd: int,
        path: ReadPath,
        root: Root,
        size: int,
        commands: Commands,
        *,
        replies: int,
        writable: bool,
        in_flight_max: int = 16,
    ) -> Self: ...
    def run(self) -> str: ...
    def stop(self) -> None: ...
    @property
    def requests(self) -> int: ...
    @property
    def bytes_read(self) -> int: ...
    @property
    def bytes_written(self) -> int: ...
