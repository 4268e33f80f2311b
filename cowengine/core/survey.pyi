from typing import Any

from numpy.typing import NDArray
from typing_extensions import Buffer

NOWHERE: int

def survey(
    data: Buffer, extents: NDArray[Any], filled: NDArray[Any], zeros_min: int, portable: bool = False
) -> bytearray: ...
