"""`convert`, which puts an encoded first convolution into any timm model with a plain one."""

import copy
from typing import Any, cast

from timm.layers import Conv2dSame
from torch import nn

from timm_p2be.stem.encoded_conv import EncodedConv2d
from timm_p2be.stem.first_conv import check_sees_image, find_first_conv
from timm_p2be.stem.keep_function import keep_function


def convert(
    model: nn.Module, encoding: str, num_bits: int = 64, init: str | None = None, preserve: bool = False
) -> nn.Module:
    """Make a timm model read binary pixel codes: replace its first convolution, in place, by an `EncodedConv2d`.

    The model keeps its class and all other weights. Its `pretrained_cfg` becomes a copy of its own with mean 0 and
    std 1, so that timm's loaders hand it pixels in [0, 1].

    The new stem starts afresh, or, with `preserve`, computes on pixel levels what the old one computed on images
    normalized by the mean and std of `pretrained_cfg`: up to rounding in the weights' dtype for P2BE, whose table
    starts as `codes.linear_codes`, and for the fixed encodings from 256 bits on; with fewer bits these see the mean
    value of each bin of levels (at 64 bits 1.5 levels off at most). Fine-tune it gently: a step of SGD moves the
    stem's function in proportion to the bits that are on, about half of them in thermometer and such P2BE codes.

    Args:
        model: any timm model whose `pretrained_cfg['first_conv']` names one plain convolution of the image. Choose
            image and patch size before converting.
        encoding: 'p2be', 'onehot' or 'thermometer'.
        num_bits: M, code length; at least 9 for a P2BE table that preserves the function.
        init: start of a P2BE table, see `PixelEmbedding`; None is 'normal', the paper's N(0, 1), or 'linear' with
            `preserve`, which needs it.
        preserve: keep the function the model computes; the weights it is to keep must be loaded. A weight-standardized
            convolution becomes a plain one with the standardized weight.

    Returns:
        The same model.

    Raises:
        ValueError: unknown encoding or init, `num_bits` too small, or, with `preserve`, another `init`, weights on the
            meta device, or a mean and std that do not fit the channels.
        UnsupportedStemError: no first convolution or several, a linear or grouped one, a weight-standardized one
            without `preserve`, one that does not see the image itself (after space-to-depth, say), or an image that
            other layers read too.

    Example:
        >>> import timm
        >>> convert(timm.create_model('resnet10t'), 'thermometer').conv1[0].embedding.encoding
        'thermometer'
    """
    own = 'linear' if preserve and encoding == 'p2be' else 'normal'
    if preserve and init not in (None, own):
        raise ValueError(f'Got init={init!r} and preserve=True, which needs init={own!r}. Leave one of them out.')
    name, conv = find_first_conv(model, standardized=preserve)
    same = isinstance(conv, Conv2dSame) or getattr(conv, 'same_pad', False)
    check_sees_image(model, name)
    stem = EncodedConv2d(
        conv.in_channels,
        conv.out_channels,
        cast(tuple[int, int], conv.kernel_size),
        encoding=encoding,
        num_bits=num_bits,
        init=init or own,
        stride=cast(tuple[int, int], conv.stride),
        padding='same' if same else cast(tuple[int, int] | str, conv.padding),
        dilation=cast(tuple[int, int], conv.dilation),
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    cfg = copy.deepcopy(cast(dict[str, Any], model.pretrained_cfg))
    if preserve:
        keep_function(conv, stem, stem.embedding.codes(), cfg)
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, stem.train(conv.training))
    cfg.update(mean=(0.0,) * stem.in_chans, std=(1.0,) * stem.in_chans)
    model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]
    return model
