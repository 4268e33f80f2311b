"""The compiled core: I/O table, checksum, radix tree and data path.

It knows blocks, epochs, bytes and file descriptors; paths, names, time and policy are decided above it.
Each module is one extension with a stub beside it; nothing is imported here.
"""
