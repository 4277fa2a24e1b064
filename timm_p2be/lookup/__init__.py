"""The stem convolution over binary pixel codes, without the image of code planes.

A code is a row of the 256 x M table E, so its product with the kernel can be taken once for every level instead of
once for every pixel: T[j, k, :] = W_j^T e_k for each tap j (kernel row, color, kernel column) and level k. The
convolution is then a sum of rows of T, whose cost does not depend on M.

On the CPU the sums run in loops that LLVM compiles (`llvm_cpu`), on an NVIDIA GPU in Triton's (`triton_gpu`);
everywhere else, and while TorchScript or ONNX is being written, or with TIMM_P2BE_LOOKUP=plain in the environment, the
planes are built and convolved (`plain`). TIMM_P2BE_LOOKUP=triton makes Triton's kernels a must.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from timm_p2be.lookup import operators
from timm_p2be.lookup.plain import convolve_codes, sum_rows
from timm_p2be.lookup.window import output_size

__all__ = ['lookup_conv2d', 'table_conv2d']


def lookup_conv2d(
    levels: Tensor,
    codes: Tensor,
    weight: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    latent: bool = False,
) -> Tensor:
    """Convolve the binary code planes of an image (Algorithm 1 of the paper followed by the first convolution).

    Plane m * C + c of the M C input planes (bit-major) is bit m of the code of color c. The planes are padded with
    zeros, which is no code at all. Sums are taken in float32 (float64 for float64 weights), in an order that does not
    depend on the number of threads. The result lies in channels_last memory.

    Args:
        levels: (B, C, H, W) uint8 pixel levels, of any strides.
        codes: (256, M) table, floating point; gets a gradient, accumulated in float32.
        weight: (O, M C, kh, kw) kernel; gets a gradient.
        stride: int or (height, width), at least 1.
        padding: int, (height, width), or (left, right, top, bottom) as of `torch.nn.functional.pad`; at least 0.
        dilation: int or (height, width), at least 1.
        latent: whether `codes` are the latents w of learned codes, as `timm_p2be.encodings.binarize` reads them: bits
            w >= 0, with the gradient of its approximate sign.

    Returns:
        (B, O, H', W') feature map in the dtype of `weight`, or autocast's under autocast.

    Example:
        >>> levels = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
        >>> lookup_conv2d(levels, torch.eye(256), torch.randn(4, 768, 3, 3), padding=1).shape
        torch.Size([1, 4, 8, 8])
    """
    strides, pads, dilations = _ints('stride', stride), _ints('padding', padding, 4), _ints('dilation', dilation)
    dtype = _output_dtype(levels, weight)
    if _is_exporting():
        # the file must run without this package; and a trace would warn that it fixes the outcome of the checks
        with operators.no_autocast(levels):
            codes = operators.bits_of(codes) if latent else codes
            compute = weight.dtype if weight.dtype == torch.float64 else torch.float32
            return convolve_codes(levels, codes, weight.to(compute), strides, pads, dilations).to(dtype)
    _check_levels(levels, codes, weight)
    if codes.ndim != 2 or codes.shape[0] != 256:
        raise ValueError(f'Got codes of shape {list(codes.shape)}; allowed is (256, M), one row for each pixel level.')
    if 0 in (levels.shape[1], *codes.shape, *weight.shape):
        raise ValueError(
            f'Got levels of shape {list(levels.shape)}, codes of {list(codes.shape)} and weight of '
            f'{list(weight.shape)}; colors, bits, outputs and kernel must be at least 1.'
        )
    if weight.ndim != 4 or weight.shape[1] != codes.shape[1] * levels.shape[1]:
        raise ValueError(
            f'Got images of {levels.shape[1]} channels; {weight.shape[1]} kernel planes over {codes.shape[1]}-bit '
            f'codes need {weight.shape[1] / codes.shape[1]:g}. Build the model with in_chans={levels.shape[1]}.'
        )
    _refuse_forward_mode(codes, weight)
    borders = _borders(pads)
    _check_window(levels, weight.shape[2:], strides, borders, dilations)
    return operators.lookup_conv2d(levels, codes, weight, strides, borders, dilations, dtype, latent)


def table_conv2d(
    levels: Tensor,
    table: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Sum the rows of a precomputed `code_table`: `lookup_conv2d` for inference, without codes and kernel.

    `table` is (kh, C, kw, 257, O), floating point, and gets no gradient; everything else is as in `lookup_conv2d`.
    """
    strides, dilations = _ints('stride', stride), _ints('dilation', dilation)
    borders = _borders(_ints('padding', padding, 4))
    dtype = _output_dtype(levels, table)
    if _is_exporting():
        return sum_rows(levels, table, strides, borders, dilations).to(dtype)
    _check_levels(levels, table)
    if table.ndim != 5 or table.shape[1] != levels.shape[1] or table.shape[3] != 257:
        raise ValueError(
            f'Got images of {levels.shape[1]} channels and a table of shape {list(table.shape)}; allowed is '
            '(kh, C, kw, 257, O) as code_table returns it, with C the channels of the image.'
        )
    _check_window(levels, table.shape[0:3:2], strides, borders, dilations)
    return operators.table_conv2d(levels, table, strides, borders, dilations, dtype)


def _is_exporting() -> bool:
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


def _output_dtype(levels: Tensor, weight: Tensor) -> torch.dtype:
    device = levels.device.type
    # a meta tensor's device has no autocast to ask for
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else weight.dtype


def _ints(name: str, value: int | Sequence[int], *lengths: int) -> list[int]:
    """Return an argument as a list of an allowed length, an int standing for two."""
    numbers = list(value) if isinstance(value, Sequence) else [value, value]
    if len(numbers) not in (2, *lengths):
        more = ' or (left, right, top, bottom)' if 4 in lengths else ''
        raise ValueError(f'Got {name}={value!r}; allowed are an int, (height, width){more}.')
    return numbers


def _borders(padding: list[int]) -> list[int]:
    """Return `padding` as left, right, top, bottom."""
    return padding if len(padding) == 4 else [padding[1], padding[1], padding[0], padding[0]]


def _refuse_forward_mode(codes: Tensor, weight: Tensor) -> None:
    """Raise where torch would silently drop the tangents, as it does for every operator of a library."""
    if torch.compiler.is_compiling():
        return
    if any(unpack_dual(tensor).tangent is not None for tensor in (codes, weight)):
        raise NotImplementedError(
            'lookup_conv2d has no forward-mode derivative (torch.func.jvp, forward_ad); use reverse mode.'
        )


def _check_levels(levels: Tensor, *tables: Tensor) -> None:
    if levels.dtype != torch.uint8 or levels.ndim != 4:
        raise ValueError(
            f'Got levels of dtype {levels.dtype} and {levels.ndim} axes; allowed are uint8 (B, C, H, W), 0 to 255. '
            'timm_p2be.encodings.pixel_levels turns images in [0, 1] into levels.'
        )
    for table in tables:
        if table.device != levels.device:  # the kernels are handed addresses
            raise ValueError(
                f'Got images on {levels.device} and a stem on {table.device}; move one of them: '
                f'images.to({str(table.device)!r}), or model.to({str(levels.device)!r}).'
            )


def _check_window(
    levels: Tensor, kernel: Sequence[int], stride: list[int], padding: list[int], dilation: list[int]
) -> None:
    if min(*stride, *dilation) < 1 or min(padding) < 0:
        raise ValueError(
            f'Got stride {stride}, padding {padding} and dilation {dilation}; stride and dilation must be at least 1 '
            'and padding at least 0.'
        )
    rows, columns = output_size(levels.shape, kernel, stride, padding, dilation)
    if rows < 1 or columns < 1:
        raise ValueError(
            f'Got images of {levels.shape[2]}x{levels.shape[3]} pixels, padded by {padding} (left, right, top, '
            f'bottom): smaller than the kernel of {kernel[0]}x{kernel[1]} with dilation {dilation}. Use larger images.'
        )
