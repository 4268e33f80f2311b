from typing import Any

from numpy.typing import NDArray
from typing_extensions import Buffer

DEBUG: bool
PORTABLE: int
BY_INSTRUCTION: int

def xxh64(data: Buffer, seed: int = 0) -> int: ...
def xxh64_rows(rows: Buffer | NDArray[Any], row_bytes: int, length: int) -> bytearray: ...
def seal_of(block: Buffer, slot: int, kernel: int = 0) -> int: ...
