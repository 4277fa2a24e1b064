#!/usr/bin/env python3
"""The `timm-p2be` command with two more networks, which ask what binary codes and a table are worth.

wrn10_2_real_p2be: a learned table of real numbers, w itself in the place of sign(w); everything else is wrn10_2_p2be.
wrn10_2_pointwise: no table; a learned 1x1 convolution from RGB to as many channels (192), and a ReLU.
"""

from collections import OrderedDict
from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from timm_p2be.cli import main
from timm_p2be.lookup import lookup_conv2d
from timm_p2be.models.encoded_cifar import wrn10_2_p2be
from timm_p2be.models.wideresnet_cifar import WideResNet, wrn10_2
from timm_p2be.stem import EncodedConv2d
from timm_p2be.stem.encoded_conv import encoded_stem

_CHANNELS = 3 * 64


class RealConv2d(EncodedConv2d):
    """The stem without the sign."""

    def forward(self, images: Tensor) -> Tensor:
        latents = self.embedding.weight
        assert latents is not None
        return lookup_conv2d(self.read_levels(images), latents, self.weight, *self.geometry(images))


@register_model
def wrn10_2_real_p2be(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    model = wrn10_2_p2be(pretrained, **kwargs)
    stem = encoded_stem(model)[1]
    assert stem is not None
    stem.__class__ = RealConv2d
    return model


@register_model
def wrn10_2_pointwise(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    model = wrn10_2(pretrained, **kwargs)
    spread, conv = nn.Conv2d(3, _CHANNELS, 1), nn.Conv2d(_CHANNELS, 16, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')  # as the stem of every encoded network
    model.conv1 = nn.Sequential(OrderedDict(spread=spread, act=nn.ReLU(), conv=conv))
    return model


if __name__ == '__main__':
    raise SystemExit(main())
