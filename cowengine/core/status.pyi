# Raises for kernels only: what it has is declared in status.pxd.
