from typing_extensions import Buffer

DEBUG: bool

def xxh64(data: Buffer, seed: int = 0) -> int: ...
