"""What libnbd's Python binding does with an export; a process of its own, for Debian's Python. Arguments: URI, size."""

import sys

import nbd

uri, size = sys.argv[1], int(sys.argv[2])
handle = nbd.NBD()
handle.add_meta_context("base:allocation")
handle.add_meta_context("qemu:dirty-bitmap:monday")
handle.connect_uri(uri)
assert handle.get_size() == size
assert handle.can_meta_context("qemu:dirty-bitmap:monday")
found = {}
handle.block_status(size, 0, lambda name, offset, entries, error: found.setdefault(name, entries))
assert sum(found["base:allocation"][::2]) == size
assert set(found["qemu:dirty-bitmap:monday"][1::2]) == {0, 1}
one = {}
handle.block_status(size, 0, lambda name, offset, entries, error: one.setdefault(name, entries), nbd.CMD_FLAG_REQ_ONE)
assert {name: entries[:2] for name, entries in found.items()} == one
handle.pwrite(b"q" * 5000, 12345, nbd.CMD_FLAG_FUA)
assert handle.pread(5000, 12345) == b"q" * 5000
buffer = nbd.Buffer(8 << 20)
cookies = [handle.aio_pread(buffer, 0) for _ in range(8)]
while handle.aio_in_flight():
    handle.poll(-1)
assert all(handle.aio_command_completed(cookie) for cookie in cookies)
assert buffer.to_bytearray() == b"".join(handle.pread(1 << 20, at << 20) for at in range(8))
handle.zero(1 << 20, 0, nbd.CMD_FLAG_NO_HOLE)
handle.zero(1 << 20, 1 << 20, nbd.CMD_FLAG_FAST_ZERO)
for call, number in (
    (lambda: handle.zero(4096, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO), "ENOTSUP"),
    (lambda: (handle.set_strict_mode(0), handle.pread(4096, size - 100)), "EINVAL"),
    (lambda: handle.trim(4096, size), "EINVAL"),
    (lambda: handle.pwrite(b"x" * 4096, size - 100), "ENOSPC"),
):
    try:
        call()
    except nbd.Error as error:
        assert error.errno == number, (error, number)
    else:
        raise AssertionError(number)
handle.cache(1 << 20, 0)
handle.trim(1 << 20, 2 << 20)
handle.flush()
handle.shutdown()
print("all of it")
