from typing import Any

from numpy.typing import NDArray
from typing_extensions import Buffer

from cowengine.core.readpath import ReadPath
from cowengine.core.roots import Root

def gather(path: ReadPath, buffer: Buffer, extents: NDArray[Any], size: int, root: Root | None = None) -> int: ...
