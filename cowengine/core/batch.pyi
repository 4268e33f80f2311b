from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class Batch:
    def __new__(cls, bytes_max: int, slots_per_block: int) -> Self: ...
