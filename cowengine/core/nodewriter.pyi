from typing import Self

from typing_extensions import disjoint_base

from cowengine.core.mutex import Mutex
from cowengine.core.radix import Tree

@disjoint_base
class NodeWriter:
    def __new__(cls, tree: Tree, mutex: Mutex, runs: list[tuple[int, int]]) -> Self: ...
