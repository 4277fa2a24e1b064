"""DenseNet and DenseNet-BC for 32x32 images.

Paper: Huang et al., Densely Connected Convolutional Networks, https://arxiv.org/abs/1608.06993. Structure and
initialization follow google-research/augmix third_party/ResNeXt_DenseNet/models/densenet.py, with bottlenecks and
compression both on or both off (docs/protocol.md, section 6: which DenseNet the paper means, and which it trained).
"""

from typing import Any

import torch
from timm.layers import BatchNormAct2d
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from timm_p2be.models.cifar_net import CifarNet, cifar_cfg, create_cifar_net, factory_kwargs, repeats

__all__ = ['DenseNet']

_BOTTLENECK = 4  # width of the 1x1 convolution in growth rates


class DenseLayer(nn.Sequential):
    """Norm, ReLU, 3x3, behind norm, ReLU, 1x1 if it has a bottleneck; the new channels are appended to the input."""

    def __init__(self, in_chs: int, growth_rate: int, bottleneck: bool, **dd: Any) -> None:
        super().__init__()
        mid_chs = _BOTTLENECK * growth_rate
        convs = [(in_chs, mid_chs, 1), (mid_chs, growth_rate, 3)] if bottleneck else [(in_chs, growth_rate, 3)]
        for number, (inputs, outputs, kernel) in enumerate(convs, 1):
            self.add_module(f'norm{number}', BatchNormAct2d(inputs, **dd))
            conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **dd)
            self.add_module(f'conv{number}', conv)

    def forward(self, x: Tensor) -> Tensor:
        new = x
        for layer in self:
            new = layer(new)
        return torch.cat([x, new], dim=1)


class DenseNet(CifarNet):
    """DenseNet-BC, with bottlenecks and compression, or plain DenseNet. A stage starts with the transition before it.

    Args:
        growth_rate: channels every layer adds (k).
        depth: number of weight layers, 6 n + 4, or 3 n + 4 of the plain one.
        bottleneck: layers begin with a 1x1 convolution, and transitions halve the channels.
    """

    def __init__(self, growth_rate: int = 12, depth: int = 100, bottleneck: bool = True, **kwargs: Any) -> None:
        per_repeat, name = (6, 'DenseNet-BC') if bottleneck else (3, 'DenseNet')
        layers = repeats(depth, per_repeat, 4, name)
        dd = factory_kwargs(kwargs)
        widths = [2 * growth_rate]
        stages = []
        for stage in range(3):
            width = widths[-1]
            blocks: list[nn.Module] = []
            if stage > 0:  # the transition: fewer channels at half the resolution
                kept = width // 2 if bottleneck else width
                conv = nn.Conv2d(width, kept, 1, bias=False, **dd)
                blocks.append(nn.Sequential(BatchNormAct2d(width, **dd), conv, nn.AvgPool2d(2)))
                width = kept
            blocks += [DenseLayer(width + i * growth_rate, growth_rate, bottleneck, **dd) for i in range(layers)]
            stages.append(nn.Sequential(*blocks))
            widths.append(width + layers * growth_rate)
        super().__init__(stages, widths, preact=True, **kwargs)


def _cfg() -> dict[str, Any]:
    return cifar_cfg(paper_name='Densely Connected Convolutional Networks', paper_ids='arXiv:1608.06993')


default_cfgs = generate_default_cfgs({'densenetbc100_12.untrained': _cfg(), 'densenet40_12.untrained': _cfg()})


@register_model
def densenetbc100_12(pretrained: bool = False, **kwargs: Any) -> DenseNet:
    """DenseNet-BC with 100 layers and growth rate 12 on RGB 32x32 images, the DenseNet that the paper names."""
    return create_cifar_net(DenseNet, 'densenetbc100_12', pretrained, **kwargs)


@register_model
def densenet40_12(pretrained: bool = False, **kwargs: Any) -> DenseNet:
    """DenseNet with 40 layers and growth rate 12 on RGB 32x32 images, which the authors' code builds for P2BE."""
    return create_cifar_net(DenseNet, 'densenet40_12', pretrained, **{'depth': 40, 'bottleneck': False, **kwargs})
