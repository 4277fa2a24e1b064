"""`convert`, which puts an encoded first convolution into any timm model with a plain one."""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.models import get_model_input_config
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from timm_p2be.stem.encoded_conv import EncodedConv2d, LevelStem
from timm_p2be.stem.keep_function import keep_function

_PLAIN = (nn.Conv2d, Conv2dSame)
_STANDARDIZED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)


class UnsupportedStemError(ValueError):
    """The model's first convolution cannot read pixel codes; the message says why."""


def convert(
    model: nn.Module,
    encoding: str,
    num_bits: int = 64,
    init: str | None = None,
    preserve: bool = False,
    first_conv: str | None = None,
    input_size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Make a model read binary pixel codes: replace its first convolution, in place, by an `EncodedConv2d`.

    The model keeps its class and all other weights. Its `pretrained_cfg` becomes a copy with mean 0 and std 1, so that
    timm's loaders hand it pixels in [0, 1]. The new stem starts afresh, or, with `preserve`, computes on levels what
    the old one computed on images normalized by the mean and std of `pretrained_cfg`: up to rounding for P2BE, whose
    table starts as `codes.linear_codes`, and for the fixed encodings from 256 bits on; with fewer bits these see the
    mean value of each bin of levels (at 64 bits 1.5 levels off at most). Fine-tune it gently: a step of SGD moves the
    stem's function in proportion to the bits that are on, about half of them in thermometer and such P2BE codes.

    Args:
        model: of timm, or any other. Its first convolution must be a plain one of the image, which no other layer
            reads (else `UnsupportedStemError`). Choose image and patch size before converting.
        encoding: 'p2be', 'onehot' or 'thermometer'.
        num_bits: M, code length; at least 9 for a P2BE table that preserves the function.
        init: start of a P2BE table, see `PixelEmbedding`; None is 'normal', or 'linear' with `preserve`.
        preserve: keep the function; the weights must be loaded. A weight-standardized convolution becomes a plain one.
        first_conv: name of the first convolution; None takes that of `pretrained_cfg`, which networks outside timm
            lack, as the following, which only these need.
        input_size: (C, H, W) of an image that the network takes; None: 224 pixels.
        mean: of the normalization of its images, on the [0, 1] scale; for `preserve`.
        std: likewise.

    Example:
        >>> import timm
        >>> convert(timm.create_model('resnet10t'), 'thermometer').conv1[0].embedding.encoding
        'thermometer'
    """
    own = 'linear' if preserve and encoding == 'p2be' else 'normal'
    if preserve and init not in (None, own):
        raise ValueError(f'Got init={init!r} and preserve=True, which needs init={own!r}. Leave one of them out.')
    given = {'first_conv': first_conv, 'input_size': input_size, 'mean': mean, 'std': std}
    cfg = {'architecture': type(model).__name__, **copy.deepcopy(getattr(model, 'pretrained_cfg', None) or {})}
    cfg |= {key: value for key, value in given.items() if value is not None}
    name, conv = _first_conv(model, cfg.get('first_conv'), (*_PLAIN, *_STANDARDIZED) if preserve else _PLAIN)
    _check_sees_image(model, name, input_size or get_model_input_config(model)['input_size'])
    stem = _stem_like(conv, encoding=encoding, num_bits=num_bits, init=init or own)
    if preserve:
        keep_function(conv, stem, stem.embedding.codes(), cfg)
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, stem.train(conv.training))
    cfg.update(mean=(0.0,) * stem.in_chans, std=(1.0,) * stem.in_chans)
    model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]
    return model


def _stem_like(conv: nn.Conv2d, **encoding: Any) -> EncodedConv2d:
    """Return a fresh encoded stem of the size and place of `conv`."""
    names = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation')
    inputs, outputs, kernel_size, stride, padding, dilation = (getattr(conv, name) for name in names)
    if isinstance(conv, Conv2dSame) or getattr(conv, 'same_pad', False):
        padding = 'same'
    encoding |= {'stride': stride, 'padding': padding, 'dilation': dilation, 'bias': conv.bias is not None}
    return EncodedConv2d(inputs, outputs, kernel_size, device=conv.weight.device, dtype=conv.weight.dtype, **encoding)


def _unsupported(model: nn.Module, problem: str) -> UnsupportedStemError:
    arch = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__
    return UnsupportedStemError(f'{arch} {problem}; convert needs exactly one plain convolution that reads the image.')


def _first_conv(model: nn.Module, name: Any, types: tuple[type[nn.Module], ...]) -> tuple[str, nn.Conv2d]:
    """Return name and module of the first convolution called `name`, which must be one of `types`."""
    if not name:
        found = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
        raise _unsupported(model, f'declares no first convolution; pass first_conv={found[0] if found else "NAME"!r}')
    if not isinstance(name, str):
        raise _unsupported(model, f'declares {len(name)} first convolutions {list(name)}')
    try:
        conv = model.get_submodule(name)
    except AttributeError:
        raise _unsupported(
            model,
            f'declares the first convolution {name!r} but has no such module (features_only renames it: convert first)',
        ) from None
    if isinstance(conv, LevelStem):
        raise _unsupported(model, 'already reads pixel codes')
    if type(conv) not in types:  # a subclass may change the weight, as weight standardization does
        remedy = ' (preserve=True takes its standardized weight over)' if type(conv) in _STANDARDIZED else ''
        raise _unsupported(model, f'has a {type(conv).__name__} as its first convolution {name!r}{remedy}')
    if conv.groups != 1 or conv.padding_mode != 'zeros':
        raise _unsupported(
            model, f'has a first convolution of {conv.groups} groups and {conv.padding_mode!r} padding (1 and zeros)'
        )
    return name, cast(nn.Conv2d, conv)


def _check_sees_image(model: nn.Module, first_conv: str, size: Sequence[int]) -> None:
    """Run one forward and raise unless `first_conv`, and no other layer with weights, receives the image."""
    weight = next(model.parameters())
    image = torch.rand((1, *size), generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    layers = {m: name for name, m in model.named_modules() if not list(m.children()) and list(m.parameters())}
    readers: set[str] = set()

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen = args[0] if args else None
        if module in layers and isinstance(seen, Tensor) and seen.shape == image.shape:
            # a meta tensor has no values to compare
            if seen is image or (not image.is_meta and torch.equal(seen, image)):
                readers.add(layers[module])

    training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad(), register_module_forward_pre_hook(note):
            model.eval()(image)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise _unsupported(model, f'fails on a random image of shape {size} ({error}; see input_size)') from error
    finally:
        for module in training:
            module.training = True
    if first_conv not in readers:
        raise _unsupported(model, f'transforms the image before its first convolution {first_conv!r}')
    if readers != {first_conv}:
        raise _unsupported(model, f'reads the image in several layers {sorted(readers)}')
