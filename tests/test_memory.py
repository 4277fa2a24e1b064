"""Freed memory stays in the process: touching it again costs no page faults."""

import platform
import subprocess
import sys

import pytest

from timm_p2be.training import memory

CODE = """
import resource, runpy, sys
import numpy as np

def faults():
    np.ones(2**24)  # 128 MB, mapped anew each time without the option
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = faults()
assert runpy.run_path(sys.argv[1])['keep_freed_memory']()
print(default, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the option is one of glibc')
def test_freed_blocks_are_kept():
    """The option holds for a whole process, so it gets one of its own."""
    printed = subprocess.check_output([sys.executable, '-c', CODE, memory.__file__], text=True)
    default, kept = map(int, printed.split())
    assert kept * 10 < default
