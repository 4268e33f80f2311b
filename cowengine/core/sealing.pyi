from typing import Self

from typing_extensions import disjoint_base

from cowengine.core.readpath import ReadPath
from cowengine.core.roots import Root

_Made = list[tuple[int, int, int, int]]

@disjoint_base
class Piece:
    def __new__(cls, path: ReadPath) -> Self: ...

def make_seals(path: ReadPath, root: Root, first: int, end: int) -> tuple[int, int, _Made]: ...
def enter_seals(path: ReadPath, root: Root, made: _Made) -> None: ...

@disjoint_base
class Fresh:
    def __new__(cls) -> Self: ...

def verify_blocks(
    path: ReadPath, root: Root, first: int, end: int, fresh: Fresh | None = None, sealed_only: bool = False
) -> tuple[int, int, int, list[tuple[int, int]]]: ...
def unsealed_blocks(path: ReadPath, root: Root, first: int, end: int) -> tuple[int, int]: ...
