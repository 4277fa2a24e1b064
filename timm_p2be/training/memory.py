"""Keeps freed memory in the process, for CPU training."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt, malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed blocks for the next step instead of returning them to the system.

    glibc maps every block over 32 MB anew, and the system clears its pages one by one at their first touch. The
    activations of a training step are such blocks, at every step again.
    Returns whether the C library agreed; others than glibc have no such option.
    """
    if not sys.platform.startswith('linux'):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return all(mallopt(option, _LARGEST) == 1 for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
