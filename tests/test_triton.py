"""Triton's kernels without a GPU: in the interpreter and in the compiler, and what runs where they cannot."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from timm_p2be.lookup import lookup_conv2d, operators

EXAMPLE = torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.ones(256, 2), torch.ones(16, 2, 1, 1)
BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'


@pytest.fixture(autouse=True)
def _nothing_said() -> Iterator[None]:
    """Forget which kernels have been chosen and what has been logged, before and after."""
    caches = operators._triton_kernels, operators._say_once
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def _in_the_interpreter(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, 'TRITON_INTERPRET': '1', operators.SWITCH: 'triton', 'OMP_NUM_THREADS': '1'}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=Path(__file__).parent, capture_output=True, text=True
    )


def _pytest(*options: str) -> str:
    done = _in_the_interpreter('-m', 'pytest', '-q', '-n', '0', 'interpreted_triton.py', *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip('triton')
    assert ' passed' in _pytest()


@pytest.mark.slow
def test_kernels_in_the_interpreter_on_any_shape() -> None:
    pytest.importorskip('triton')
    assert ' passed' in _pytest('-m', 'slow')


FIRST_USE = """
import logging, sys
import torch
import timm_p2be
assert not [name for name in sys.modules if name.startswith('timm_p2be.lookup.triton')]
logging.basicConfig(level=logging.INFO)
arguments = torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.ones(256, 2), torch.ones(16, 2, 1, 1)
for _ in range(2):
    assert (timm_p2be.lookup_conv2d(*arguments) == 2).all()
assert not [name for name in sys.modules if name.startswith('timm_p2be.lookup.llvm')]
"""


def test_kernels_are_imported_late_and_the_log_names_them_once() -> None:
    pytest.importorskip('triton')
    done = _in_the_interpreter('-c', FIRST_USE)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('lookup_conv2d sums table rows in kernels of Triton') == 1


def test_forced_without_a_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(operators.SWITCH, 'triton')
    monkeypatch.setitem(sys.modules, 'timm_p2be.lookup.triton_gpu', None)
    with pytest.raises(ValueError, match=r'triton in the environment, but .* on cpu \(.*TRITON_INTERPRET=1.*Unset'):
        lookup_conv2d(*EXAMPLE)


@pytest.mark.parametrize('missing', [True, False], ids=['missing', 'old GPU'])
def test_a_gpu_without_triton_convolves_planes_and_says_so_once(
    missing: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, 'timm_p2be.lookup.triton_gpu', None)
    else:
        pytest.importorskip('triton')
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))
    device = torch.device('cuda', 0)
    with caplog.at_level(logging.INFO):
        for channels in (16, 32):
            assert operators._triton_kernels(device, channels, torch.float32, False) is None
    (message,) = caplog.messages
    assert 'convolves code planes on cuda:0: Triton kernels are not available' in message
    assert ('ModuleNotFoundError' if missing else 'compute capability 7.5; 8.0 is needed') in message


@pytest.mark.slow
@pytest.mark.parametrize('target', [80, 90, 100, 120])
def test_kernels_compile_ahead_of_time(target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the shared memory of a block, 99 KiB on the least of them; float32 products may spill a few numbers."""
    pytest.importorskip('triton')
    monkeypatch.syspath_prepend(BENCHMARKS)
    import triton_compile

    for dtype in ('float32', 'bfloat16'):
        for name, case in triton_compile.cases(dtype, 64, 7).items():
            usage = triton_compile.compile_kernel(name, target, *case)
            assert usage.shared <= 99 * 1024
            assert usage.spills <= 16, name
