"""The lookup convolution as torch operators: one for autograd, torch.compile and torch.export, any backend under it.

`padding` is (left, right, top, bottom) here; arguments have been checked by `timm_p2be.lookup`.
"""

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from timm_p2be.lookup import plain
from timm_p2be.lookup.window import PADDING_LEVEL, output_size, slide

if TYPE_CHECKING:
    from timm_p2be.lookup import llvm_cpu, triton_gpu

    Kernels = llvm_cpu.Kernels | triton_gpu.Kernels

_logger = logging.getLogger(__name__)

SWITCH = 'TIMM_P2BE_LOOKUP'  # environment variable
CHOICES = ('auto', 'plain', 'triton')


def no_autocast(tensor: Tensor) -> torch.autocast:
    """Return a context in which nothing on the device of `tensor` is cast."""
    return torch.autocast(tensor.device.type, enabled=False)


def taps_of(weight: Tensor, in_chans: int) -> Tensor:
    """Return the kernel (O, M C, kh, kw) as one M x O matrix for each tap, (kh, C, kw, M, O)."""
    return weight.unflatten(1, (-1, in_chans)).permute(3, 2, 4, 1, 0)


def bits_of(latents: Tensor) -> Tensor:
    """Return the codes of latents (Eq. 4 and 5 of the paper)."""
    return (latents >= 0).to(latents.dtype)


def _through_sign(grad: Tensor, latents: Tensor) -> Tensor:
    """Return the gradient of latents for that of their codes: 1 - |w| of it inside (-1, 1), else 0 (Eq. 5 and 6)."""
    twice = grad * latents.abs().clamp(max=1)
    return grad.sub(twice, alpha=0.5).sub(twice, alpha=0.5)  # rounded as back-propagation through `binarize` does


def code_table(codes: Tensor, weight: Tensor, in_chans: int) -> Tensor:
    """Return what each level adds to an output pixel at each tap of the kernel: T[j, k, :] = W_j^T e_k.

    The table is (kh, C, kw, 257, O), float32 (float64 if an argument is); the last row of a tap, that of padding, is 0.
    """
    dtype = torch.promote_types(torch.float32, torch.promote_types(codes.dtype, weight.dtype))
    return torch.matmul(F.pad(codes.to(dtype), (0, 0, 0, 1)), taps_of(weight.to(dtype), in_chans))


@torch.library.custom_op('timm_p2be::lookup_conv2d', mutates_args=())
def lookup_conv2d(
    levels: Tensor,
    codes: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    dtype: torch.dtype,
    latent: bool,
) -> Tensor:
    """Return `timm_p2be.lookup.lookup_conv2d` in `dtype`."""
    geometry = list(stride), list(padding), list(dilation)
    codes, weight = codes.detach(), weight.detach()
    with no_autocast(levels):
        kernels = _kernels(levels, weight.shape[0], dtype)
        if kernels is not None and hasattr(kernels, 'convolve'):  # Triton's make the table, or none too large
            window = slide(levels, weight.shape[2:], *geometry)
            features = levels.new_empty(len(levels), window.rows, window.columns, len(weight), dtype=dtype)
            kernels.convolve(window, codes, weight, features, latent)
            return features.permute(0, 3, 1, 2)
        codes = bits_of(codes) if latent else codes
        if kernels is None:
            return _channels_last(plain.lookup_conv2d(levels, codes, weight, *geometry, dtype))
        chans, kernel = levels.shape[1], weight.shape[2:]
        features = _sum_rows(kernels, levels, kernel, lambda part: code_table(codes, weight[part], chans), *geometry)
        return features.to(dtype)


@torch.library.custom_op('timm_p2be::lookup_conv2d_backward', mutates_args=())
def lookup_conv2d_backward(
    grad: Tensor,
    levels: Tensor,
    codes: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    needs_codes: bool,
    latent: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of codes (zeros unless `needs_codes`) and weight for that of the feature map."""
    geometry = list(stride), list(padding), list(dilation)
    codes, weight = codes.detach(), weight.detach()
    with no_autocast(levels):
        kernels = _kernels(levels, weight.shape[0], grad.dtype)
        bits = bits_of(codes) if latent else codes
        codes_grad, weight_grad = _gradients(kernels, grad, levels, bits, weight, *geometry, needs_codes)
        if latent and needs_codes:
            codes_grad = getattr(kernels, 'through_sign', _through_sign)(codes_grad, codes)
        return codes_grad, weight_grad


@torch.library.custom_op('timm_p2be::table_conv2d', mutates_args=())
def table_conv2d(
    levels: Tensor,
    table: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """Return `timm_p2be.lookup.table_conv2d` in `dtype`."""
    geometry = list(stride), list(padding), list(dilation)
    kernels = _kernels(levels, table.shape[4], dtype)
    if kernels is None:
        return _channels_last(plain.table_conv2d(levels, table, *geometry, dtype))
    return _sum_rows(kernels, levels, table.shape[0:3:2], lambda part: table[..., part], *geometry).to(dtype)


def smoothness(weight: Tensor, mean: bool) -> tuple[Tensor, Tensor] | None:
    """Return the smoothness loss of a table and its gradient by Triton's kernel, or None where that does not run."""
    if torch.compiler.is_compiling() or not (weight.is_cuda or os.environ.get(SWITCH) == 'triton'):
        return None
    kernels: Any = _kernels(weight, 16, weight.dtype)
    return kernels and kernels.smoothness(weight, mean)


@lookup_conv2d.register_fake
def _(
    levels: Any, codes: Any, weight: Any, stride: Any, padding: Any, dilation: Any, dtype: torch.dtype, latent: bool
) -> Tensor:
    rows, columns = output_size(levels.shape, weight.shape[2:], stride, padding, dilation)
    return levels.new_empty(levels.shape[0], rows, columns, weight.shape[0], dtype=dtype).permute(0, 3, 1, 2)


@lookup_conv2d_backward.register_fake
def _(grad: Any, levels: Any, codes: Any, weight: Any, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(codes), torch.empty_like(weight)


@table_conv2d.register_fake
def _(levels: Any, table: Any, stride: Any, padding: Any, dilation: Any, dtype: torch.dtype) -> Tensor:
    rows, columns = output_size(levels.shape, table.shape[0:3:2], stride, padding, dilation)
    return levels.new_empty(levels.shape[0], rows, columns, table.shape[4], dtype=dtype).permute(0, 3, 1, 2)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    levels, codes, weight, *geometry, _, latent = inputs
    ctx.save_for_backward(levels, codes, weight)
    ctx.geometry, ctx.latent = geometry, latent


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_codes = ctx.needs_input_grad[1]
    codes_grad, weight_grad = lookup_conv2d_backward(grad, *ctx.saved_tensors, *ctx.geometry, needs_codes, ctx.latent)
    return None, codes_grad, weight_grad, None, None, None, None, None  # torch drops what nobody needs


lookup_conv2d.register_autograd(_differentiate, setup_context=_save_inputs)


def _gradients(
    kernels: 'Kernels | None',
    grad: Tensor,
    levels: Tensor,
    codes: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    needs_codes: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of codes and weight."""
    if kernels is None:
        return plain.lookup_conv2d_backward(grad, levels, codes, weight, stride, padding, dilation, needs_codes)
    window = slide(levels, weight.shape[2:], stride, padding, dilation)
    rows = grad.to(kernels.dtype).permute(0, 2, 3, 1).contiguous()
    codes_grad, weight_grad = None, torch.empty_like(weight)
    kernel_grad = taps_of(weight_grad, levels.shape[1])  # of which a change shows in `weight_grad`
    for channels in kernels.parts(window.taps):
        table_grad = kernels.scatter_add(window, rows[..., channels])[:, :PADDING_LEVEL].transpose(0, 1).flatten(1)
        taps = taps_of(weight[channels].float(), levels.shape[1])  # the table is E W_j for each tap j
        taps_grad = codes.float().T @ table_grad
        kernel_grad[..., channels] = taps_grad.unflatten(1, (*taps.shape[:3], -1)).permute(1, 2, 3, 0, 4)
        if needs_codes:
            part = table_grad @ taps.mT.flatten(0, 3)
            codes_grad = part if codes_grad is None else codes_grad + part
    return torch.zeros_like(codes) if codes_grad is None else codes_grad.to(codes.dtype), weight_grad


def _channels_last(features: Tensor) -> Tensor:
    """Lay (B, O, H, W) out as the compiled loops and the fake tensors do, whatever the sizes."""
    return features.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _sum_rows(
    kernels: 'Kernels',
    levels: Tensor,
    kernel: Sequence[int],
    table: Callable[[slice], Tensor],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """Return the sums of table rows, `table` giving the table for some of the output channels."""
    window = slide(levels, kernel, stride, padding, dilation)
    features = levels.new_empty(len(levels), window.rows, window.columns, kernels.channels, dtype=kernels.dtype)
    for channels in kernels.parts(window.taps):
        kernels.gather_sum(window, table(channels).to(kernels.dtype).contiguous(), features[..., channels])
    return features.permute(0, 3, 1, 2)


def _kernels(levels: Tensor, channels: int, dtype: torch.dtype) -> 'Kernels | None':
    """Return the compiled kernels for these arguments, or None for the plain path."""
    choice = os.environ.get(SWITCH, 'auto')
    if choice not in CHOICES:
        raise ValueError(f'Got {SWITCH}={choice!r} in the environment; allowed are {CHOICES}.')
    if choice == 'plain':
        _say_once(logging.INFO, f'lookup_conv2d convolves code planes: {SWITCH}=plain')
        return None
    if dtype == torch.float64:
        return None
    if choice == 'triton' or levels.device.type == 'cuda':
        return _triton_kernels(levels.device, channels, dtype, choice == 'triton')
    if levels.device.type != 'cpu':
        _say_once(logging.INFO, f'lookup_conv2d convolves code planes on {levels.device.type}')
        return None
    return _compiled_kernels(channels, torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)


@functools.cache
def _triton_kernels(device: torch.device, channels: int, dtype: torch.dtype, forced: bool) -> 'Kernels | None':
    try:
        from timm_p2be.lookup import triton_gpu

        triton_gpu.check(device, dtype)
    except Exception as error:  # whatever Triton, its compiler, a linker or the driver raises
        reason = f'{type(error).__name__}: {error}'
        if forced:
            raise ValueError(
                f'Got {SWITCH}=triton in the environment, but Triton does not run on {device} ({reason}). Triton needs '
                'an NVIDIA GPU of compute capability 8.0, or TRITON_INTERPRET=1 from the start to run on a CPU, '
                f'slowly. Unset {SWITCH} to use what there is.'
            ) from error
        _say_once(
            logging.WARNING,
            f'lookup_conv2d convolves code planes on {device}: Triton kernels are not available ({reason}).',
        )
        return None
    _say_once(logging.INFO, f'lookup_conv2d sums table rows in kernels of {triton_gpu.description(device)}')
    return triton_gpu.Kernels(channels, dtype)


@functools.cache
def _compiled_kernels(channels: int, dtype: torch.dtype) -> 'llvm_cpu.Kernels | None':
    try:
        from timm_p2be.lookup import llvm_cpu, llvm_jit

        kernels = llvm_cpu.Kernels(channels, dtype)
        _say_once(logging.INFO, f'lookup_conv2d sums table rows in kernels compiled by {llvm_jit.description()}')
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError) as error:  # another llvmlite, perhaps
        _say_once(
            logging.WARNING,
            'lookup_conv2d convolves code planes, many times slower: compiled CPU kernels are not available '
            f"({type(error).__name__}: {error}). Install their compiler with: pip install -U 'llvmlite>=0.45'",
        )
        return None
    return kernels


@functools.cache
def _say_once(level: int, message: str) -> None:
    _logger.log(level, message)
