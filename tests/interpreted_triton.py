"""The Triton kernels in Triton's interpreter; tests/test_triton.py runs this file in a process of its own.

The interpreter is chosen (TRITON_INTERPRET=1) before Triton is imported. It takes some 10 ms for a program of a grid.
"""

import logging
from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, given, settings
from test_lookup_property import FLOAT32, Example, _assert_close, _differentiate, examples
from torch import Tensor

from timm_p2be.encodings import binarize
from timm_p2be.lookup import lookup_conv2d, operators, table_conv2d, triton_gpu
from timm_p2be.lookup.operators import SWITCH, code_table
from timm_p2be.lookup.window import slide
from timm_p2be.losses import REDUCTIONS, smoothness_loss


@pytest.fixture(autouse=True)
def _in_two_groups_of_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, and partial sums, also on tiny images: each program that there is takes the interpreter long."""
    monkeypatch.setattr(triton_gpu, 'CHUNK', 16)
    monkeypatch.setattr(triton_gpu, '_PROGRAMS', 2 * 4 * 16)


def _example(
    channels: int,
    geometry: dict[str, int | tuple[int, ...]],
    levels: int = 256,
    batch: int = 2,
    size: int = 4,
    bits: int = 5,
) -> Example:
    """Return images of one color and size x (size + 1) pixels with the highest `levels` levels, and a 2x2 kernel."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256 - levels, 256, (batch, 1, size, size + 1), generator=generator, dtype=torch.uint8)
    codes, weight = (torch.randn(shape, generator=generator) for shape in ((256, bits), (channels, bits, 2, 2)))
    grad = torch.randn(lookup_conv2d(pixels, codes.double(), weight.double(), **geometry).shape, generator=generator)
    return Example(pixels, codes, weight, geometry, grad)


EXAMPLES = {
    'channels beside the blocks': _example(20, {'stride': 1, 'padding': 1, 'dilation': 1}),
    'two blocks, all levels equal': _example(70, {'stride': (2, 1), 'padding': (0, 2, 1, 0), 'dilation': (1, 2)}, 1),
    'phases without a pixel': _example(1, {'stride': 3, 'padding': (3, 0, 0, 1), 'dilation': 2}, size=2),
    'empty batch': _example(16, {'stride': 1, 'padding': 0, 'dilation': 1}, batch=0),
}
FIRST, *MORE = EXAMPLES


def _check(example: Example) -> None:
    exact, terms = _differentiate(example.double()), _differentiate(example.terms())
    for found, value, size in zip(_differentiate(example), exact, terms, strict=True):
        assert found.dtype == torch.float32
        _assert_close(found, value, size, FLOAT32)


def test_the_log_names_the_kernels_once(caplog: pytest.LogCaptureFixture) -> None:
    for cache in (operators._triton_kernels, operators._say_once):
        cache.cache_clear()
    with caplog.at_level(logging.INFO):
        levels, codes = torch.zeros(1, 1, 1, 1, dtype=torch.uint8), torch.ones(256, 2)
        for channels in (16, 32):
            assert (lookup_conv2d(levels, codes, torch.ones(channels, 2, 1, 1)) == 2).all()
    assert [m.startswith('lookup_conv2d sums table rows in kernels of Triton') for m in caplog.messages] == [True]


@pytest.mark.parametrize('name', [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_values_and_gradients_of_examples(name: str) -> None:
    _check(EXAMPLES[name])


@pytest.mark.slow
@pytest.mark.parametrize('bits', [5, 40])
def test_codes_are_multiplied_where_the_table_would_be_too_large(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_gpu, 'LARGEST_TABLE', 0)
    monkeypatch.setattr(triton_gpu.Kernels, 'gather_sum', None)  # a call would fail
    example = _example(70, {'stride': (2, 1), 'padding': (0, 2, 1, 0), 'dilation': (1, 2)}, bits=bits)
    features = lookup_conv2d(example.levels, example.codes, example.weight, **example.geometry)
    _assert_close(features, _differentiate(example.double())[0], _differentiate(example.terms())[0], FLOAT32)


def test_latents_are_read_as_binarize_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    example = EXAMPLES['phases without a pixel']
    results = []
    for latent, path in ((True, 'triton'), (False, 'plain')):
        monkeypatch.setenv(SWITCH, path)
        latents = example.codes.clone().requires_grad_()
        table = latents if latent else binarize(latents)
        features = lookup_conv2d(example.levels, table, example.weight, **example.geometry, latent=latent)
        features.backward(example.grad)
        results.append((features.detach(), latents.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    assert results[0][1].count_nonzero() > 0


@pytest.mark.parametrize('reduction', REDUCTIONS)
@pytest.mark.parametrize('shape', [(256, 64), (33, 70)])
def test_smoothness_and_its_gradient(shape: tuple[int, int], reduction: str) -> None:
    table = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    table[[3, -1]] = 0
    for double in (table.double().requires_grad_(), table.requires_grad_()):
        loss = smoothness_loss(double, reduction)
        loss.backward(torch.tensor(2.0, dtype=double.dtype))
        if double is not table:
            expected = loss.detach(), double.grad
    torch.testing.assert_close((loss.detach(), table.grad), expected, check_dtype=False, rtol=1e-5, atol=1e-8)
    assert smoothness_loss(table.detach().index_fill(0, torch.tensor(5), torch.nan)).isnan()


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=20, phases=[Phase.generate])
@given(example=examples(tiny=True))
def test_values_and_gradients(example: Example) -> None:
    _check(example)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_rounds_table_and_sums_once(dtype: torch.dtype) -> None:
    example = EXAMPLES['channels beside the blocks']
    example = example._replace(grad=example.grad.to(dtype).float())
    exact, terms = _differentiate(example.double()), _differentiate(example.terms())
    features, *grads = _differentiate(example, dtype)
    assert features.dtype == dtype
    _assert_close(features, exact[0], terms[0], 4 * torch.finfo(dtype).eps)
    for found, value, size in zip(grads, exact[1:], terms[1:], strict=True):
        _assert_close(found, value, size, FLOAT32)


@pytest.mark.slow
def test_a_table_sums_as_its_codes_do() -> None:
    example = EXAMPLES['channels beside the blocks']
    table = code_table(example.codes, example.weight, 1)
    found = table_conv2d(example.levels, table, **example.geometry)
    exact, terms = _differentiate(example.double())[0], _differentiate(example.terms())[0]
    _assert_close(found, exact, terms, FLOAT32)


def _loops(example: Example) -> tuple[Tensor, Tensor]:
    """Return what the kernels compute for padding 1: the feature map, and the gradient of the table."""
    levels, weight = example.levels, example.weight
    window = slide(levels, weight.shape[2:], (1, 1), (1, 1, 1, 1), (1, 1))
    grad = example.grad.permute(0, 2, 3, 1).contiguous()
    table_grad = triton_gpu.Kernels(len(weight), torch.float32).scatter_add(window, grad)
    return table_conv2d(levels, code_table(example.codes, weight, 1), **example.geometry), table_grad


@pytest.mark.slow
def test_parts_and_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither do other numbers of pixels and channels that a program takes."""
    example = EXAMPLES['channels beside the blocks']
    expected = _loops(example)
    create: Callable[..., None] = triton_gpu.Kernels.__init__

    def create_smaller(kernels: triton_gpu.Kernels, channels: int, dtype: torch.dtype) -> None:
        create(kernels, channels, dtype)
        kernels.block, kernels.pixels_at_once = 16, 8

    monkeypatch.setattr(triton_gpu.Kernels, '__init__', create_smaller)
    monkeypatch.setattr(triton_gpu, '_TABLE_BYTES', 1)
    operators._triton_kernels.cache_clear()
    assert len(triton_gpu.Kernels(20, torch.float32).parts(4)) == 2
    for one, other in zip(expected, _loops(example), strict=True):
        assert torch.equal(one, other)
    operators._triton_kernels.cache_clear()


def test_float64_is_left_to_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, '_triton_kernels', None)  # a call would fail
    assert _differentiate(EXAMPLES['empty batch'].double())[0].dtype == torch.float64
    monkeypatch.setenv(SWITCH, 'auto')
    assert _differentiate(EXAMPLES['channels beside the blocks'])[0].dtype == torch.float32  # LLVM's kernels


@pytest.mark.slow
def test_operators_keep_the_rules_of_torch() -> None:
    example = EXAMPLES['phases without a pixel']
    weight = example.weight.requires_grad_()
    arguments = (example.levels, example.codes, weight, [3, 3], [3, 0, 0, 1], [2, 2], torch.float32, True)
    checks = ('test_schema', 'test_autograd_registration', 'test_faketensor')
    torch.library.opcheck(operators.lookup_conv2d, arguments, test_utils=checks)
