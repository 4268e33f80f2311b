from typing_extensions import disjoint_base

from cowengine.core.radix import Tree

@disjoint_base
class BlockMap(Tree):
    @property
    def epoch(self) -> int: ...
    @property
    def kept_blocks(self) -> int: ...
    @property
    def kept_uncounted(self) -> int: ...
