"""Triton's kernels without a GPU: in the interpreter and in the compiler, and what runs where they cannot."""

import importlib
import logging
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from timm_p2be.lookup import lookup_conv2d, operators
from timm_p2be.losses import smoothness_loss

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


@pytest.mark.slow
def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip('triton')
    assert ' passed' in _pytest()


@pytest.mark.slow
def test_kernels_in_the_interpreter_on_any_shape() -> None:
    pytest.importorskip('triton')
    assert ' passed' in _pytest('-m', 'slow')


def test_forced_without_a_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(operators.SWITCH, 'triton')
    monkeypatch.setitem(sys.modules, 'timm_p2be.lookup.triton_gpu', None)
    with pytest.raises(ValueError, match=r'triton in the environment, but .* on cpu \(.*TRITON_INTERPRET=1.*Unset'):
        lookup_conv2d(*EXAMPLE)


@pytest.mark.parametrize(('case', 'reason'), [
    ('missing', 'ModuleNotFoundError'),
    ('old GPU', 'compute capability 7.5; 8.0 is needed'),
    ('broken', 'FileNotFoundError: no C compiler'),
])  # fmt: skip
def test_a_gpu_without_triton_convolves_planes_and_says_so_once(
    case: str, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compiles(*arguments: Any) -> None:
        raise FileNotFoundError('no C compiler')

    if case == 'missing':
        monkeypatch.setitem(sys.modules, 'timm_p2be.lookup.triton_gpu', None)
        monkeypatch.delattr(sys.modules['timm_p2be.lookup'], 'triton_gpu', raising=False)
    else:
        pytest.importorskip('triton')
        from timm_p2be.lookup import triton_gpu

        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5) if case == 'old GPU' else (9, 0))
        monkeypatch.setattr(triton_gpu, 'Kernels', compiles)
    device = torch.device('cuda', 0)
    with caplog.at_level(logging.INFO):
        for channels in (16, 32):
            assert operators._triton_kernels(device, channels, torch.float32, False) is None
    (message,) = caplog.messages
    assert 'convolves code planes on cuda:0: Triton kernels are not available' in message
    assert reason in message


class _Launches:
    """In place of the module of kernels: notes what would be launched."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def __getattr__(self, name: str) -> Any:
        return defaultdict(lambda: lambda *arguments, **options: self.seen.append(name))


class _Operations(TorchDispatchMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if not function.is_view and name not in ('detach', '_unsafe_view') and 'empty' not in name:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


def test_what_a_call_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """No number is read back and none is sent: _local_scalar_dense, nonzero, lift_fresh or a copy would show."""
    triton_gpu = pytest.importorskip('triton') and importlib.import_module('timm_p2be.lookup.triton_gpu')
    seen: list[str] = []
    monkeypatch.setattr(triton_gpu, 'triton_kernels', _Launches(seen))
    monkeypatch.setattr(triton_gpu, 'is_interpreted', lambda: True)
    monkeypatch.setenv(operators.SWITCH, 'triton')
    levels, latents, weight = torch.zeros(2, 3, 5, 5, dtype=torch.uint8), torch.zeros(256, 4), torch.zeros(16, 12, 3, 3)
    geometry = [2, 2], [1, 1, 1, 1], [1, 1]
    for dtype in (torch.bfloat16, torch.float32):
        triton_gpu.check(levels.device, dtype)
    seen.clear()
    with _Operations(seen):
        grad = operators.lookup_conv2d._init_fn(levels, latents, weight, *geometry, torch.bfloat16, True)
    assert seen == ['code_table', 'gather_sum']
    seen.clear()
    with _Operations(seen):
        operators.lookup_conv2d_backward._init_fn(grad, levels, latents, weight, *geometry, True, True)
    sums = ['constant_pad_nd', 'partition', 'bucket_sum', 'sum']
    assert seen == ['ge', '_to_copy', *sums, 'mm', 'copy_', 'clone', 'mm', 'through_sign']
    seen.clear()
    with _Operations(seen):
        smoothness_loss(latents.requires_grad_()).backward()
    assert seen == ['smoothness', 'sum', 'ones_like', 'mul']
    triton_gpu.check.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize('target', [80, 90, 100, 120])
def test_kernels_compile_ahead_of_time(target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the shared memory of a block, 99 KiB on the least of them; float32 products may spill a few numbers."""
    pytest.importorskip('triton')
    monkeypatch.syspath_prepend(BENCHMARKS)
    import triton_compile

    for dtype in ('float32', 'bfloat16'):
        patches = {'code_product, 16x16': triton_compile.cases(dtype, 768, 16)['code_product']}
        for name, case in {**triton_compile.cases(dtype, 64, 7, 2), **patches}.items():
            usage = triton_compile.compile_kernel(name.split(',')[0], target, *case)
            assert usage.shared <= 99 * 1024
            assert usage.spills <= 16, name


class _Hopper:
    """What Triton asks its driver before it compiles, answered as for an H100 or H200."""

    def get_current_target(self) -> Any:
        return importlib.import_module('triton.backends.compiler').GPUTarget('cuda', 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.mark.slow
def test_a_new_batch_or_image_size_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a launch but the launch, with the arguments and options of `Kernels`."""
    triton = pytest.importorskip('triton')
    from timm_p2be.lookup import triton_gpu, triton_kernels

    def compile_only(kernel: Any, grid: Any) -> Any:
        return lambda *arguments, **options: kernel.warmup(*arguments, grid=grid, **options)

    monkeypatch.setattr(triton.runtime.driver, '_active', _Hopper())
    monkeypatch.setattr(triton.JITFunction, '__getitem__', compile_only)
    monkeypatch.setattr(triton_gpu, 'description', lambda device: 'no launch')
    monkeypatch.setenv(operators.SWITCH, 'triton')
    names = ('code_table', 'gather_sum', 'partition', 'bucket_sum', 'through_sign')
    counts = []
    latents, weight = torch.zeros(256, 64), torch.zeros(16, 192, 3, 3)
    for batch, size in ((2, 32), (3, 32), (16, 17), (1, 5)):
        levels = torch.zeros(batch, 3, size, size, dtype=torch.uint8)
        geometry = [1, 1], [1, 1, 1, 1], [1, 1]
        grad = operators.lookup_conv2d(levels, latents, weight, *geometry, torch.bfloat16, True)
        operators.lookup_conv2d_backward(grad, levels, latents, weight, *geometry, True, True)
        kernels = [getattr(triton_kernels, name) for name in names]
        counts.append([sum(len(cache[0]) for cache in kernel.device_caches.values()) for kernel in kernels])
    assert min(counts[0]) >= 1
    assert counts[1:] == counts[:1] * 3
    triton_gpu.check.cache_clear()
