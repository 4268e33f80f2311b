from typing import Self

from typing_extensions import disjoint_base

from cowengine.core.iotable import IOTable

@disjoint_base
class Tree:
    def __new__(
        cls, io: IOTable, fd: int, number: int, fold: int, leaf_shift: int, slots_per_block: int, slot_limit: int
    ) -> Self: ...
    @property
    def number(self) -> int: ...
    @property
    def node_count(self) -> int: ...
    @property
    def dirty_count(self) -> int: ...
    @property
    def damaged_slot(self) -> int: ...
