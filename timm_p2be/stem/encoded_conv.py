"""The encoded first convolution, and how to find it in a model."""

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from timm_p2be.encodings import ENCODINGS, PixelEmbedding
from timm_p2be.lookup import convolve_codes, lookup_conv2d
from timm_p2be.stem.levels import LevelStem


@register_notrace_module
class EncodedConv2d(LevelStem, nn.Conv2d):
    """First convolution that reads binary pixel codes instead of pixel values.

    Each of the C colors of a pixel is replaced by its M-bit code (Eq. 7) and the M C planes are convolved. The
    embedding lives inside this module, so that the model it sits in keeps its structure. Plane order is bit-major
    (m * C + c), the order in which timm's adaptation to another `in_chans` sums the right planes; the paper and
    nutszebra/Pixel-to-Binary-Embedding are color-major (docs/protocol.md).

    Args:
        in_chans: C, colors of the image.
        out_channels: O, feature maps.
        kernel_size: int or (height, width).
        encoding: 'p2be', 'onehot' or 'thermometer'.
        num_bits: M, code length.
        init: start of a P2BE table, see `PixelEmbedding`.
        stride: int or (height, width).
        padding: int or (height, width), 'valid' for none, or 'same' for TensorFlow's dynamic padding (timm's
            `Conv2dSame`).
        dilation: int or (height, width).
        bias: whether the convolution has a bias.
        device: of the parameters.
        dtype: of weight and bias; the table stays float32.

    Attributes:
        weight: (O, M C, kh, kw) kernel, N(0, sqrt(2 / (kh kw O))) at the start (docs/protocol.md).
        embedding: the `PixelEmbedding`.

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
        """Draw the kernel from N(0, sqrt(2 / (kh kw O))), which does not depend on M, and zero the bias."""
        nn.init.kaiming_normal_(self.weight, mode='fan_out', nonlinearity='relu')
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the (B, O, H', W') feature map of (B, C, H, W) images: uint8 levels, or floats in [0, 1].

        Raises:
            ValueError: another dtype, another number of axes or of channels.
        """
        levels = self.read_levels(images)
        stride, padding, dilation = self.geometry(levels)
        if torch.jit.is_scripting():
            features = convolve_codes(levels, self.embedding.codes(), self.weight, stride, padding, dilation)
        else:
            self.check_range(images)
            features = lookup_conv2d(levels, self.embedding.codes(), self.weight, stride, padding, dilation)
            features = self.refuse_image_gradient(features, images)
        bias = self.bias
        if bias is not None:
            features = features + bias.to(features.dtype).view(1, -1, 1, 1)
        return features

    def extra_repr(self) -> str:
        padding = ", padding='same'" if self.same_padding else ''
        return f'{super().extra_repr()}{padding}'


def encoded_stem(model: nn.Module) -> tuple[str, EncodedConv2d | None]:
    """Return name and module of a model's encoded stem, also through wrappers; ('', None) for one of pixel values.

    Raises:
        ValueError: the stem has been folded into a table, which has lost its codes.

    Example:
        >>> import timm
        >>> from timm_p2be import convert
        >>> encoded_stem(convert(timm.create_model('resnet10t'), 'p2be'))[0], encoded_stem(nn.Identity())
        ('conv1.0', ('', None))
    """
    for name, module in model.named_modules():
        if isinstance(module, EncodedConv2d):
            return name, module
        if isinstance(module, LevelStem):
            raise ValueError(
                f'{type(model).__name__} has been folded (timm_p2be.fold), so it has no pixel embedding any more. '
                'Take the model it was folded from; the two compute the same.'
            )
    return '', None


def find_embedding(model: nn.Module) -> PixelEmbedding:
    """Return the embedding of an encoded model, also through DDP, torch.compile and EMA wrappers.

    Raises:
        ValueError: the model has no encoded stem, or a folded one.

    Example:
        >>> import timm
        >>> from timm_p2be import convert
        >>> find_embedding(convert(timm.create_model('resnet10t'), 'p2be', num_bits=8)).codes().shape
        torch.Size([256, 8])
    """
    stem = encoded_stem(model)[1]
    if stem is not None:
        return stem.embedding
    raise ValueError(
        f'{type(model).__name__} has no pixel embedding: it reads pixel values. Create an encoded model '
        f'(names ending in {", ".join("_" + e for e in ENCODINGS)}) or convert this one with timm_p2be.convert.'
    )
