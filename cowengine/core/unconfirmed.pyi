from typing import Self

from typing_extensions import disjoint_base

from cowengine.core.iotable import IOTable
from cowengine.core.mutex import Mutex

@disjoint_base
class Unconfirmed:
    def __new__(cls, io: IOTable, fd: int, fold: int, block_shift: int, mutex: Mutex) -> Self: ...
    @property
    def block_count(self) -> int: ...
    def checks(self) -> list[tuple[int, int]]: ...
    def acknowledge(self, vouches: bool) -> None: ...
