"""Compiled loops and plain torch, on any shape: both are the float64 convolution; threads and tiles never show."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from timm_p2be.lookup import llvm_cpu, lookup_conv2d, plain, table_conv2d
from timm_p2be.lookup.operators import SWITCH, code_table
from timm_p2be.lookup.window import slide

# one of each shape that loops are compiled for, and numbers of channels that stems have
CHANNELS = (1, 2, 3, 5, 6, 7, 8, 12, 16, 20, 24, 32, 40, 48, 56, 64, 96, 100, 127, 128, 130)

FLOAT32 = 1e-5  # of the sum of the absolute values of the terms: n equal ones may be off by n * 2^-24

Geometry = dict[str, int | tuple[int, ...]]


class Example(NamedTuple):
    """Arguments of one call, and the gradient that comes back."""

    levels: Tensor
    codes: Tensor
    weight: Tensor
    geometry: Geometry
    grad: Tensor

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show shapes and strides in Hypothesis's report, not numbers."""
        tensors = ((name, getattr(self, name)) for name in ('levels', 'codes', 'weight', 'grad'))
        parts = [f'{name} {list(tensor.shape)} of strides {tensor.stride()}' for name, tensor in tensors]
        printer.text(f'<{", ".join(parts)}, {self.geometry}>')

    def double(self) -> 'Example':
        """Return it in float64, which only the plain path computes."""
        return self._replace(codes=self.codes.double(), weight=self.weight.double(), grad=self.grad.double())

    def terms(self) -> 'Example':
        """Return it with every result being the sum of the absolute values of its terms, in float64."""
        double = self.double()
        return double._replace(codes=double.codes.abs(), weight=double.weight.abs(), grad=double.grad.abs())


@contextmanager
def _path(choice: str, limit: int | None = None) -> Iterator[None]:
    """Run what is inside on the 'auto' or 'plain' path, splitting what takes more than `limit` bytes if given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, choice)
        if limit is not None:
            patch.setattr(plain, '_PLANE_BYTES', limit)
            for name in ('_CACHE_BYTES', '_TILE_BYTES', '_TABLE_BYTES'):
                patch.setattr(llvm_cpu, name, limit)
        yield


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope='module')
def _one_thread() -> Iterator[None]:
    """The examples are too small to share, and waiting threads would take the core from other tests."""
    with _threads(1):
        yield


def _levels(draw: st.DrawFn, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw levels of that shape with strides of one kind or another."""
    layout = draw(st.sampled_from(['contiguous', 'channels_last', 'transposed', 'strided', 'one image', 'gray']))
    batch, chans, height, width = shape
    whole = {
        'transposed': (batch, chans, width, height),
        'strided': (batch, 2 * chans, height + 3, 3 * width),
        'one image': (1, chans, height, width),
        'gray': (batch, 1, height, width),
    }.get(layout, shape)
    most = draw(st.sampled_from([1, 5, 256]))  # few levels: many pixels add to one row
    levels = torch.randint(256 - most, 256, whole, generator=generator, dtype=torch.uint8)
    match layout:
        case 'channels_last':
            return levels.contiguous(memory_format=torch.channels_last)
        case 'transposed':
            return levels.transpose(2, 3)
        case 'strided':
            return levels[:, 1::2, 2:-1, ::3]
        case 'one image' | 'gray':
            return levels.expand(shape)
    return levels


def _grad(draw: st.DrawFn, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draw the gradient of a feature map, in the layouts that the layer above may hand down."""
    match draw(st.sampled_from(['contiguous', 'channels_last', 'of a sum', 'of a mean over pixels'])):
        case 'of a sum':
            return torch.ones(()).expand(shape)
        case 'of a mean over pixels':
            return torch.randn(*shape[:2], 1, 1, generator=generator).expand(shape)
        case 'channels_last':
            return torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
    return torch.randn(shape, generator=generator)


@st.composite
def examples(draw: st.DrawFn, min_batch: int = 0, tiny: bool = False) -> Example:
    """Draw a call; a tiny one has at most 12 taps."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    batch, chans = draw(st.integers(min_batch, 2 if tiny else 4)), draw(st.integers(1, 2 if tiny else 4))
    channels = draw(st.sampled_from(CHANNELS) | st.integers(1, 130))
    bits = draw(st.integers(1, 70))
    small, pair = st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 2 if tiny else 4), st.integers(1, 3 if tiny else 5)))
    stride, dilation = draw(small | pair), draw(small | pair)
    border = st.integers(0, 4)
    padding = draw(border | st.tuples(border, border) | st.tuples(border, border, border, border))
    top_bottom, left_right = _padded(padding)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, _pair(dilation), strict=True)]
    height, width = (
        draw(st.integers(max(1, span - pad), max(1, span - pad) + 8))
        for span, pad in zip(spans, (top_bottom, left_right), strict=True)
    )
    weight = torch.randn(channels, bits * chans, *kernel, generator=generator)
    if draw(st.booleans()):
        weight = weight.contiguous(memory_format=torch.channels_last)
    rows, columns = (
        (size + pad - span) // step + 1
        for size, pad, span, step in zip((height, width), (top_bottom, left_right), spans, _pair(stride), strict=True)
    )
    return Example(
        _levels(draw, (batch, chans, height, width), generator),
        torch.randn(256, bits, generator=generator),
        weight,
        {'stride': stride, 'padding': padding, 'dilation': dilation},
        _grad(draw, torch.Size((batch, channels, rows, columns)), generator),
    )


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else value


def _padded(padding: int | tuple[int, ...]) -> tuple[int, int]:
    """Return how much a padding adds to height and width."""
    match padding:
        case int():
            return 2 * padding, 2 * padding
        case (height, width):
            return 2 * height, 2 * width
        case _:
            left, right, top, bottom = padding
            return top + bottom, left + right


def _differentiate(example: Example, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the feature map, under autocast to `dtype` if given, and the gradients of codes and weight."""
    codes, weight = example.codes.clone().requires_grad_(), example.weight.clone().requires_grad_()
    with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
        features = lookup_conv2d(example.levels, codes, weight, **example.geometry)
    features.backward(example.grad.to(features.dtype))
    return features.detach(), codes.grad, weight.grad


def _assert_close(found: Tensor, exact: Tensor, terms: Tensor, rounding: float) -> None:
    """Compare sums: each is off by `rounding` times the sum of the absolute values of its terms at most."""
    assert found.shape == exact.shape
    excess = (found.double() - exact).abs() - rounding * terms
    assert (excess <= 0).all(), f'off by {(found.double() - exact).abs().max()}, terms sum to {terms.max()}'


@settings(derandomize=True, deadline=None, max_examples=30)
@given(example=examples())
def test_values_and_gradients(example: Example) -> None:
    exact, terms = _differentiate(example.double()), _differentiate(example.terms())
    unseen = torch.ones(256, dtype=torch.bool)
    unseen[example.levels.flatten().long()] = False
    for path, limit in product(('auto', 'plain'), (None, 1, 30_000)):
        with _path(path, limit):
            results = _differentiate(example)
        for found, value, size in zip(results, exact, terms, strict=True):
            assert found.dtype == torch.float32
            _assert_close(found, value, size, FLOAT32)
        assert (results[1][unseen] == 0).all()
        # channels_last, whatever the sizes: what runs after the stem cannot depend on the path
        assert results[0].permute(0, 2, 3, 1).is_contiguous()


@settings(derandomize=True, deadline=None, max_examples=20)
@given(example=examples())
def test_autocast_rounds_table_and_sums_once(example: Example) -> None:
    """Two roundings of 2^-8 forward; none backward, where the gradient that comes in has been rounded already."""
    example = example._replace(grad=example.grad.bfloat16().float())
    features, *grads = _differentiate(example, torch.bfloat16)
    assert features.dtype == torch.bfloat16
    exact, *exact_grads = _differentiate(example.double())
    terms, *grad_terms = _differentiate(example.terms())
    _assert_close(features, exact, terms, 2**-7 + 2**-15)
    for found, value, size in zip(grads, exact_grads, grad_terms, strict=True):
        assert found.dtype == torch.float32
        _assert_close(found, value, size, FLOAT32)


def _loops(example: Example, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what the loops themselves compute: the feature map of a table, and the gradient of the table."""
    levels, weight, geometry = example.levels, example.weight, example.geometry
    table = code_table(example.codes, weight, levels.shape[1]).to(dtype)
    padding = _pair(geometry['padding'])
    borders = padding if len(padding) == 4 else (*padding[1:] * 2, *padding[:1] * 2)
    window = slide(levels, weight.shape[2:], _pair(geometry['stride']), borders, _pair(geometry['dilation']))
    grad = example.grad.permute(0, 2, 3, 1).to(dtype).contiguous()
    table_grad = llvm_cpu.Kernels(len(weight), dtype).scatter_add(window, grad)
    return table_conv2d(levels, table, **geometry), table_grad


@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    example=examples(min_batch=1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    limit=st.sampled_from([1, 300, 3000, 30_000, 300_000]),
    threads=st.integers(1, 3),
)
def test_passes_and_tiles_change_no_bit(example: Example, dtype: torch.dtype, limit: int, threads: int) -> None:
    """Taps that do not fit the cache are summed in passes, over tiles of rows: in the same order all the same."""
    whole = _loops(example, dtype)
    with _path('auto', limit), _threads(threads):
        parts = _loops(example, dtype)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


@settings(derandomize=True, deadline=None, max_examples=30)
@given(example=examples(), path=st.sampled_from(['auto', 'plain']))
def test_a_table_sums_as_its_codes_do(example: Example, path: str) -> None:
    table = code_table(example.codes, example.weight, example.levels.shape[1])
    assert table.shape[3:] == (257, len(example.weight))
    assert (table[..., 256, :] == 0).all()
    with _path(path):
        found = table_conv2d(example.levels, table, **example.geometry)
    exact, terms = (_differentiate(e)[0] for e in (example.double(), example.terms()))
    _assert_close(found, exact, terms, FLOAT32)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(example=examples(min_batch=1), needs=st.sampled_from([(True, False), (False, True)]))
def test_one_gradient_alone_is_the_same(example: Example, needs: tuple[bool, bool]) -> None:
    _, *both = _differentiate(example)
    inputs = [example.codes.clone(), example.weight.clone()]
    for tensor, wanted in zip(inputs, needs, strict=True):
        tensor.requires_grad_(wanted)
    lookup_conv2d(example.levels, *inputs, **example.geometry).backward(example.grad)
    for tensor, wanted, expected in zip(inputs, needs, both, strict=True):
        if wanted:
            _assert_close(tensor.grad, expected, expected.abs().max(), FLOAT32)
        else:
            assert tensor.grad is None


@settings(derandomize=True, deadline=None, max_examples=100)
@given(channels=st.integers(1, 130), taps=st.integers(1, 600), size=st.sampled_from([2, 4]))
def test_the_taps_of_a_pass_fit_the_cache(channels: int, taps: int, size: int) -> None:
    kernels = llvm_cpu.Kernels.__new__(llvm_cpu.Kernels)
    kernels.shape = llvm_cpu.llvm_ir.shape_for(channels, size)
    at_once = kernels._taps_at_once(taps, size)
    assert 1 <= at_once <= taps
    assert at_once * 257 * kernels.shape.block * size <= llvm_cpu._CACHE_BYTES
