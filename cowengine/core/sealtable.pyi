from typing_extensions import disjoint_base

from cowengine.core.radix import Tree

@disjoint_base
class SealTable:
    @property
    def tree(self) -> Tree: ...
