"""How the C library's allocator treats the services' large buffers: mallopt(3).

By default glibc gives every buffer over 128 KiB back to the kernel when it is freed and asks for it anew. Services move
output in buffers of 256 KiB to 1 MiB all the time: most of their page faults under load came from that (measured: ten
times as many). Not here: any pool of our own.
"""

import ctypes
from typing import Final

# malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_MMAP_THRESHOLD_BYTES: Final = 4 * 2**20
_TRIM_THRESHOLD_BYTES: Final = 32 * 2**20
_ARENAS_MAX: Final = 4


def keep_large_buffers() -> None:
    """Serve buffers of up to 4 MiB from the heap, and keep up to 32 MiB of it when free. Without mallopt: nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS_MAX)
