"""The stem convolution over binary pixel codes, behind one function."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F


def lookup_conv2d(
    levels: Tensor,
    codes: Tensor,
    weight: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Convolve the binary code planes of an image (Algorithm 1 of the paper followed by the first convolution).

    Plane m * C + c of the M C input planes (bit-major) is bit m of the code of colour c. The planes are padded with
    zeros, which is no code at all, never with the code of level 0.

    Args:
        levels: (B, C, H, W) uint8 pixel levels.
        codes: (256, M) table, floating point; gets a gradient, accumulated in its own precision.
        weight: (O, M C, kh, kw) kernel; gets a gradient.
        stride: int or (height, width).
        padding: int, (height, width), or (left, right, top, bottom) in the order of `torch.nn.functional.pad`.
        dilation: int or (height, width).

    Returns:
        (B, O, H', W') feature map in the dtype of `weight`, or autocast's under autocast.

    Raises:
        ValueError: `levels` is not uint8 of rank 4, `codes` has not 256 rows, or the channels of `weight` are not
            M C.

    Example:
        >>> levels = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
        >>> lookup_conv2d(levels, torch.eye(256), torch.randn(4, 768, 3, 3), padding=1).shape
        torch.Size([1, 4, 8, 8])
    """
    if not torch.jit.is_tracing():
        _check(levels, codes, weight)
    device = levels.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
    # over 3 M planes, CPU kernels are slower in half precision than in float32, backward above all
    compute = torch.float32 if device == 'cpu' and dtype in (torch.bfloat16, torch.float16) else dtype
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        features = convolve_codes(levels, codes, weight.to(compute), _pair(stride), _pair(padding), _pair(dilation))
    return features.to(dtype)


def _check(levels: Tensor, codes: Tensor, weight: Tensor) -> None:
    if levels.dtype != torch.uint8 or levels.ndim != 4:
        raise ValueError(f'Got levels of dtype {levels.dtype} and {levels.ndim} axes; allowed are uint8 (B, C, H, W).')
    if codes.ndim != 2 or codes.shape[0] != 256:
        raise ValueError(f'Got codes of shape {list(codes.shape)}; allowed is (256, M), one row for each pixel level.')
    if weight.shape[1] != codes.shape[1] * levels.shape[1]:
        raise ValueError(
            f'Got images of {levels.shape[1]} channels; {weight.shape[1]} kernel planes over {codes.shape[1]}-bit '
            f'codes need {weight.shape[1] / codes.shape[1]:g}. Build the model with in_chans={levels.shape[1]}.'
        )


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def convolve_codes(
    levels: Tensor, codes: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """Compute `lookup_conv2d` for checked arguments, the obvious way: look up, pad, convolve. TorchScript compiles it.

    The planes are laid out colour-major in channels_last memory, where a lookup writes them, and the kernel's input
    channels, far fewer bytes, are permuted to match.
    """
    bits = codes.shape[1]
    chans = levels.shape[1]
    # the gradient of a code sums over many pixels: gather before the cast, so that it is summed in float32
    # (torch.jit.trace checks its graph without gradients, and the graph must not depend on that)
    table = codes if codes.requires_grad or torch.jit.is_tracing() else codes.to(weight.dtype)
    planes = F.embedding(levels.permute(0, 2, 3, 1).int(), table).to(weight.dtype).flatten(3).permute(0, 3, 1, 2)
    if len(padding) == 4:
        planes = F.pad(planes, padding)
        padding = [0, 0]
    kernel = weight.reshape(weight.shape[0], bits, chans, weight.shape[2], weight.shape[3])
    kernel = kernel.transpose(1, 2).reshape(weight.shape)
    return F.conv2d(planes, kernel, None, stride, padding, dilation)
