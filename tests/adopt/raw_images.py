"""Raw images for the tests: sparse, with data in known places."""

from __future__ import annotations

import random
from pathlib import Path

from cowengine import Volume
from cowengine.errors import FormatError

PAGE = 4096


def write_image(path: Path, size: int, seed: int = 1, pieces: int = 20) -> bytes:
    """Makes a sparse raw image and returns its bytes."""
    rng = random.Random(seed)
    data = bytearray(size)
    for _ in range(pieces):
        start = rng.randrange(size)
        part = rng.randbytes(min(size - start, rng.choice((1, 5000, 70000))))
        data[start : start + len(part)] = part
    with open(path, "wb") as file:
        file.truncate(size)
        for page in range(0, size, PAGE):
            if any(data[page : page + PAGE]):
                file.seek(page)
                file.write(data[page : page + PAGE])
    return bytes(data)


def settled(path: Path, data: bytes) -> str:
    """What a kill or failure left of adopting and flattening; its bytes are compared, and it is a raw image again."""
    try:
        volume = Volume.open(path, background=False)
    except FormatError:
        found = "raw image"
        if path.with_name(path.name + ".adopting").exists():
            found = "interrupted"
            Volume.undo_adoption(path)
    else:
        found = "volume"
        assert volume.pread(volume.size, 0) == data
        assert volume.check().ok
        volume.flatten()
    assert path.read_bytes() == data
    return found
