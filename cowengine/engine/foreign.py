"""Files that are no raw images although they could be taken for one: known by the magic of their format.

Only to warn: no format is ever chosen by what a file looks like.
"""

from __future__ import annotations

from cowengine.core.iotable import IOTable

#: (offset, negative: from the end; magic; name)
MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"QFI\xfb", "qcow"),
    (0, b"QED\0", "QED"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (-512, b"conectix", "VHD of fixed size"),
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK descriptor"),
    (64, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (-512, b"koly", "DMG"),
    (0, b"\x1f\x8b\x08", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
)


def looks_like(io: IOTable, fd: int, size: int) -> str | None:
    """The name of the format that a file's magic speaks for; None if it could be raw."""
    head, tail = io.pread(fd, 512, 0), io.pread(fd, 512, max(0, size - 512))
    for offset, magic, name in MAGICS:
        part, at = (head, offset) if offset >= 0 else (tail, 512 + offset)
        if part[at : at + len(magic)] == magic:
            return name
    return None
