"""Memory that photographs took goes back to the system.

glibc raises its threshold for blocks with a mapping of their own to the largest block that it has ever freed, so after
one large photograph all buffers come from heaps, which keep what is in the middle: measured, 500 MB of 1,000 stayed
after photographs of 25 megapixels. With a fixed threshold everything above it goes back when it is freed. It has to be
above what a usual photograph takes, or each would pay for fresh pages.
"""

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE_BLOCK_BYTES = 4 * 1024 * 1024


def give_memory_back() -> bool:
    """Fix glibc's thresholds for this process. False where the C library is another one, which is no harm."""
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES) and mallopt(_M_TRIM_THRESHOLD, 2 * LARGE_BLOCK_BYTES))
    return False
