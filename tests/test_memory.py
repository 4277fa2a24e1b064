"""Freed memory stays in the process: touching it again costs no page faults."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
from timm_p2be.training import memory
if sys.argv[1] == 'keep':
    assert memory.keep_freed_memory()
np.ones(2**24)  # 128 MB, mapped anew each time without the option
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the option is one of glibc')
def test_freed_blocks_are_kept():
    faults = {
        mode: int(subprocess.check_output([sys.executable, '-c', CODE, mode], text=True))
        for mode in ('keep', 'default')
    }
    assert faults['keep'] * 10 < faults['default']
