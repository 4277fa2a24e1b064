"""Scripts run in processes of their own, alone or as the ranks that torchrun would start."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def start(script: str, *args: str | Path, **surroundings: str) -> 'subprocess.Popen[str]':
    """Start a script that may import the tests, on one thread."""
    return subprocess.Popen(
        [sys.executable, '-c', script, *map(str, args)],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {'OMP_NUM_THREADS': '1'} | surroundings,
    )


def run_ranks(script: str, *args: str | Path, size: int = 2) -> list[str]:
    """Run a script as `size` ranks and return what each printed."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        where = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free.getsockname()[1]), 'WORLD_SIZE': str(size)}
    ranks = [start(script, *args, **where, RANK=str(rank)) for rank in range(size)]
    printed = [process.communicate(timeout=240)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * size
    return printed
