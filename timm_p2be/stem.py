"""The encoded first convolution, and `convert`, which puts it into any timm model with a plain first convolution."""

import copy
from typing import Any, cast

import torch
from timm.layers import Conv2dSame, register_notrace_module
from timm.models import get_model_input_config
from torch import Tensor, nn

from timm_p2be.encodings import ENCODINGS, PixelEmbedding
from timm_p2be.levels import LevelStem
from timm_p2be.lookup import convolve_codes, lookup_conv2d


class UnsupportedStemError(ValueError):
    """The model's first convolution cannot read pixel codes; the message says why."""


@register_notrace_module
class EncodedConv2d(LevelStem, nn.Conv2d):
    """First convolution that reads binary pixel codes instead of pixel values.

    Each of the C colours of a pixel is replaced by its M-bit code (Eq. 7) and the M C planes are convolved. The
    embedding lives inside this module, so that the model it sits in keeps its structure. Plane order is bit-major
    (m * C + c), the order in which timm's adaptation to another `in_chans` sums the right planes; the paper and
    nutszebra/Pixel-to-Binary-Embedding are colour-major (docs/protocol.md).

    Args:
        in_chans: C, colours of the image.
        out_channels: O, feature maps.
        kernel_size: int or (height, width).
        encoding: 'p2be', 'onehot' or 'thermometer'.
        num_bits: M, code length.
        init: start of a P2BE table, 'normal' or 'thermometer', see `PixelEmbedding`.
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


def convert(model: nn.Module, encoding: str, num_bits: int = 64, init: str = 'normal') -> nn.Module:
    """Make a timm model read binary pixel codes: replace its first convolution, in place, by an `EncodedConv2d`.

    The model keeps its class and all other weights; the new stem starts afresh. Its `pretrained_cfg` becomes a copy of
    its own with mean 0 and std 1, so that timm's loaders hand it pixels in [0, 1].

    Args:
        model: any timm model whose `pretrained_cfg['first_conv']` names one plain convolution of the image. Choose
            image and patch size before converting.
        encoding: 'p2be', 'onehot' or 'thermometer'.
        num_bits: M, code length.
        init: start of a P2BE table, 'normal' (the paper's N(0, 1)) or 'thermometer' (for short runs).

    Returns:
        The same model.

    Raises:
        ValueError: unknown encoding or init, or `num_bits` below 1.
        UnsupportedStemError: no first convolution or several, a linear or weight-standardised one, a grouped one, one
            that does not see the image itself (after space-to-depth, say), or an image that other layers read too.

    Example:
        >>> import timm
        >>> convert(timm.create_model('resnet10t'), 'thermometer').conv1[0].embedding.encoding
        'thermometer'
    """
    name, conv = _first_conv(model)
    padding = 'same' if isinstance(conv, Conv2dSame) else conv.padding
    _check_sees_image(model, name)
    stem = EncodedConv2d(
        conv.in_channels,
        conv.out_channels,
        cast(tuple[int, int], conv.kernel_size),
        encoding=encoding,
        num_bits=num_bits,
        init=init,
        stride=cast(tuple[int, int], conv.stride),
        padding=cast(tuple[int, int] | str, padding),
        dilation=cast(tuple[int, int], conv.dilation),
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, stem.train(conv.training))
    cfg = copy.deepcopy(cast(dict[str, Any], model.pretrained_cfg))
    cfg.update(mean=(0.0,) * stem.in_chans, std=(1.0,) * stem.in_chans)
    model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]
    return model


def find_embedding(model: nn.Module) -> PixelEmbedding:
    """Return the embedding of an encoded model, also through DDP, torch.compile and EMA wrappers.

    Raises:
        ValueError: the model has no encoded stem.

    Example:
        >>> import timm
        >>> find_embedding(convert(timm.create_model('resnet10t'), 'p2be', num_bits=8)).codes().shape
        torch.Size([256, 8])
    """
    for module in model.modules():
        if isinstance(module, EncodedConv2d):
            return module.embedding
    raise ValueError(
        f'{type(model).__name__} has no pixel embedding: it reads pixel values. Create an encoded model '
        f'(names ending in {", ".join("_" + e for e in ENCODINGS)}) or convert this one with timm_p2be.convert.'
    )


def _unsupported(model: nn.Module, problem: str) -> UnsupportedStemError:
    arch = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__
    return UnsupportedStemError(f'{arch} {problem}; convert needs exactly one plain convolution that reads the image.')


def _first_conv(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return name and module of the one first convolution that the model declares."""
    name = (getattr(model, 'pretrained_cfg', None) or {}).get('first_conv')
    if not name:
        raise _unsupported(model, "declares no first convolution (pretrained_cfg['first_conv'])")
    if not isinstance(name, str):
        raise _unsupported(model, f'declares {len(name)} first convolutions {list(name)}')
    try:
        conv = model.get_submodule(name)
    except AttributeError:
        raise _unsupported(
            model,
            f'declares the first convolution {name!r} but has no such module (features_only renames it: convert first)',
        ) from None
    if isinstance(conv, EncodedConv2d):
        raise _unsupported(model, f'already reads {conv.embedding.encoding} codes')
    if type(conv) not in (nn.Conv2d, Conv2dSame):  # a subclass may change the weight, as weight standardisation does
        raise _unsupported(model, f'has a {type(conv).__name__} as its first convolution {name!r}')
    if conv.groups != 1 or conv.padding_mode != 'zeros':
        raise _unsupported(
            model, f'has a first convolution of {conv.groups} groups and {conv.padding_mode!r} padding (1 and zeros)'
        )
    return name, cast(nn.Conv2d, conv)


def _check_sees_image(model: nn.Module, first_conv: str) -> None:
    """Run one forward and raise unless `first_conv`, and no other layer with weights, receives the image."""
    weight = next(model.parameters())
    size = get_model_input_config(model)['input_size']
    image = torch.rand((1, *size), generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    readers: list[str] = []

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen = args[0] if args else None
            if isinstance(seen, Tensor) and seen.shape == image.shape:
                # a meta tensor has no values to compare
                if seen is image or (not image.is_meta and torch.equal(seen, image)):
                    readers.append(name)

        return hook

    layers = [(n, m) for n, m in model.named_modules() if not list(m.children()) and list(m.parameters())]
    handles = [module.register_forward_pre_hook(record(name)) for name, module in layers]
    training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad():
            model.eval()(image)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise _unsupported(model, f'fails on a random image of shape {size} ({error})') from error
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    if first_conv not in readers:
        raise _unsupported(model, f'transforms the image before its first convolution {first_conv!r}')
    if set(readers) != {first_conv}:
        raise _unsupported(model, f'reads the image in several layers {sorted(set(readers))}')
