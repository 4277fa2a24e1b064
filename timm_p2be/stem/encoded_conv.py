"""The encoded first convolution, and how to find it in a model."""

from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from timm_p2be.encodings import ENCODINGS, PixelEmbedding, pixel_levels, warn_if_not_pixels
from timm_p2be.lookup import lookup_conv2d
from timm_p2be.lookup.plain import convolve_codes

_RANGE_CHECKS = 4  # eager float batches whose range a stem looks at


class _NoImageGradient(torch.autograd.Function):
    """Identity on the feature map that refuses to pretend the image had a gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, images: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError(
            'The pixel encoding is a table lookup, so the image has no gradient; a zero would make an attack look '
            'weak. Attack a differentiable stand-in of the model (attack_view), or detach the images if only the '
            'parameters are trained.'
        )


class LevelStem:
    """Mixin of the modules that stand in for a first convolution; names are those of `torch.nn.Conv2d`."""

    in_chans: int  # C, colors of the image
    kernel_size: Any
    stride: Any
    padding: Any
    dilation: Any
    same_padding: bool  # TensorFlow's dynamic 'same', whatever `padding` says
    _range_checks: int

    def read_levels(self, images: Tensor) -> Tensor:
        # a trace would warn that it fixes the outcome of the comparison
        if not torch.jit.is_tracing() and (images.ndim != 4 or images.shape[1] != self.in_chans):
            raise ValueError(
                f'Got images of shape {list(images.shape)}; this stem reads (B, {self.in_chans}, H, W). '
                'Set in_chans when the model is created to read another number of channels.'
            )
        return pixel_levels(images)

    def geometry(self, levels: Tensor) -> tuple[list[int], list[int], list[int]]:
        """Return stride, padding and dilation for a lookup; padding is (left, right, top, bottom) if it is 'same'."""
        padding = [self.padding[0], self.padding[1]]
        if self.same_padding:
            padding = [*self._same_padding(1, levels.shape[3]), *self._same_padding(0, levels.shape[2])]
        return [self.stride[0], self.stride[1]], padding, [self.dilation[0], self.dilation[1]]

    def _same_padding(self, axis: int, size: int) -> tuple[int, int]:
        """Return the padding before and after one axis that makes the output ceil(size / stride) long."""
        stride, dilation, kernel = self.stride[axis], self.dilation[axis], self.kernel_size[axis]
        outputs = (size + stride - 1) // stride
        total = max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        return total // 2, total - total // 2

    @torch.jit.unused
    def check_range(self, images: Tensor) -> None:
        """Look at the range of the first eager float batches: a loader's mistake shows there, later ones are free."""
        # first: dynamo would compile anew whenever the count has changed
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or self._range_checks >= _RANGE_CHECKS:
            return
        if images.dtype == torch.uint8 or images.is_meta:
            return
        if images.is_cuda and torch.cuda.is_current_stream_capturing():  # nothing can be read back then
            return
        self._range_checks = _RANGE_CHECKS if warn_if_not_pixels(images) else self._range_checks + 1

    @torch.jit.unused
    def refuse_image_gradient(self, features: Tensor, images: Tensor) -> Tensor:
        """Return `features` such that back-propagation to `images` raises an error."""
        if images.requires_grad and torch.is_grad_enabled():
            return _NoImageGradient.apply(features, images)
        return features


@register_notrace_module
class EncodedConv2d(LevelStem, nn.Conv2d):
    """First convolution that reads binary pixel codes instead of pixel values.

    Each of the C colors of a pixel is replaced by its M-bit code (Eq. 7) and the M C planes are convolved, bit-major
    (m * C + c): the order in which timm's adaptation to another `in_chans` sums the right planes; the paper and
    nutszebra/Pixel-to-Binary-Embedding are color-major (docs/protocol.md).

    Args (others are as of `torch.nn.Conv2d`, or of `PixelEmbedding`):
        in_chans: C, colors of the image.
        padding: may be 'valid' for none, or 'same' for TensorFlow's dynamic padding (timm's `Conv2dSame`).
        dtype: of weight (O, M C, kh, kw) and bias; the table, `embedding`, stays float32.

    Example:
        >>> EncodedConv2d(3, 16, 3, padding=1)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        in_chans: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        encoding: str = 'p2be',
        num_bits: int = 64,
        init: str = 'normal',
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        embedding = PixelEmbedding(encoding, num_bits, init)
        super().__init__(
            num_bits * in_chans,
            out_channels,
            kernel_size,
            stride=stride,
            padding=0 if padding in ('same', 'valid') else padding,
            dilation=dilation,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.in_chans = in_chans
        self.same_padding = padding == 'same'
        self.embedding = embedding.to(device=device)
        self._range_checks = 0

    def reset_parameters(self) -> None:
        """Draw the kernel from N(0, sqrt(2 / (kh kw O))), whatever M (docs/protocol.md), and zero the bias."""
        nn.init.kaiming_normal_(self.weight, mode='fan_out', nonlinearity='relu')
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the (B, O, H', W') feature map of (B, C, H, W) images: uint8 levels, or floats in [0, 1]."""
        levels = self.read_levels(images)
        stride, padding, dilation = self.geometry(levels)
        if torch.jit.is_scripting():
            features = convolve_codes(levels, self.embedding.codes(), self.weight, stride, padding, dilation)
        else:
            self.check_range(images)
            latents = self.embedding.weight
            codes = self.embedding.codes() if latents is None else latents
            latent = latents is not None
            features = lookup_conv2d(levels, codes, self.weight, stride, padding, dilation, latent)
            features = self.refuse_image_gradient(features, images)
        bias = self.bias
        if bias is not None:
            features = features + bias.to(features.dtype).view(1, -1, 1, 1)
        return features

    def extra_repr(self) -> str:
        return super().extra_repr() + (", padding='same'" if self.same_padding else '')


def encoded_stem(model: nn.Module) -> tuple[str, EncodedConv2d | None]:
    """Return name and module of a model's encoded stem, also through wrappers; ('', None) for one of pixel values."""
    for name, module in model.named_modules():
        if isinstance(module, EncodedConv2d):
            return name, module
        if isinstance(module, LevelStem):
            raise ValueError(
                f'{type(model).__name__} has been folded (timm_p2be.fold), so it has no pixel embedding any more. '
                'Take the model it was folded from; the two compute the same.'
            )
    return '', None


def learned_embedding(model: nn.Module) -> PixelEmbedding | None:
    """Return the embedding of a model whose table is learned, frozen or not, else None."""
    stem = encoded_stem(model)[1]
    return None if stem is None or stem.embedding.weight is None else stem.embedding


def find_embedding(model: nn.Module) -> PixelEmbedding:
    """Return the embedding of an encoded model, also through DDP, torch.compile and EMA wrappers.

    Example:
        >>> find_embedding(EncodedConv2d(3, 8, 3, num_bits=8)).codes().shape
        torch.Size([256, 8])
    """
    stem = encoded_stem(model)[1]
    if stem is not None:
        return stem.embedding
    raise ValueError(
        f'{type(model).__name__} has no pixel embedding: it reads pixel values. Create an encoded model '
        f'(names ending in {", ".join("_" + e for e in ENCODINGS)}) or convert this one with timm_p2be.convert.'
    )
