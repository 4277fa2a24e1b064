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

from timm_p2be.models.cifar_net import CifarNet, cifar_cfg, create_cifar_net, repeats

__all__ = ['DenseNet']

_BOTTLENECK = 4  # width of the 1x1 convolution in growth rates


class DenseLayer(nn.Module):
    """Norm, ReLU, 3x3; the new channels are appended to the input."""

    def __init__(self, in_chs: int, growth_rate: int, **dd: Any) -> None:
        super().__init__()
        self.norm1 = BatchNormAct2d(in_chs, **dd)
        self.conv1 = nn.Conv2d(in_chs, growth_rate, 3, padding=1, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv1(self.norm1(x))], dim=1)


class BottleneckLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3; the new channels are appended to the input."""

    def __init__(self, in_chs: int, growth_rate: int, **dd: Any) -> None:
        super().__init__()
        mid_chs = _BOTTLENECK * growth_rate
        self.norm1 = BatchNormAct2d(in_chs, **dd)
        self.conv1 = nn.Conv2d(in_chs, mid_chs, 1, bias=False, **dd)
        self.norm2 = BatchNormAct2d(mid_chs, **dd)
        self.conv2 = nn.Conv2d(mid_chs, growth_rate, 3, padding=1, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv2(self.norm2(self.conv1(self.norm1(x))))], dim=1)


def _transition(in_chs: int, out_chs: int, dd: dict[str, Any]) -> nn.Sequential:
    """Return norm, ReLU, 1x1 convolution and 2x2 average pooling: fewer channels at half the resolution."""
    conv = nn.Conv2d(in_chs, out_chs, 1, bias=False, **dd)
    return nn.Sequential(BatchNormAct2d(in_chs, **dd), conv, nn.AvgPool2d(2))


class DenseNet(CifarNet):
    """DenseNet-BC, with bottlenecks and compression, or plain DenseNet. A stage starts with the transition before it.

    Args:
        growth_rate: channels every layer adds (k).
        depth: number of weight layers, 6 n + 4, or 3 n + 4 of the plain one.
        bottleneck: layers begin with a 1x1 convolution, and transitions halve the channels.
        **kwargs: of `CifarNet`.
    """

    def __init__(
        self,
        growth_rate: int = 12,
        depth: int = 100,
        bottleneck: bool = True,
        device: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        per_repeat, name = (6, 'DenseNet-BC') if bottleneck else (3, 'DenseNet')
        layers = repeats(depth, per_repeat, 4, name)
        layer = BottleneckLayer if bottleneck else DenseLayer
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        widths = [2 * growth_rate]
        stages = []
        for stage in range(3):
            width = widths[-1]
            blocks: list[nn.Module] = []
            if stage > 0:
                kept = width // 2 if bottleneck else width
                blocks.append(_transition(width, kept, dd))
                width = kept
            blocks += [layer(width + i * growth_rate, growth_rate, **dd) for i in range(layers)]
            stages.append(nn.Sequential(*blocks))
            widths.append(width + layers * growth_rate)
        super().__init__(stages, widths, preact=True, **dd, **kwargs)


def _cfg() -> dict[str, Any]:
    return cifar_cfg(paper_name='Densely Connected Convolutional Networks', paper_ids='arXiv:1608.06993')


default_cfgs = generate_default_cfgs({'densenetbc100_12.untrained': _cfg(), 'densenet40_12.untrained': _cfg()})


@register_model
def densenetbc100_12(pretrained: bool = False, **kwargs: Any) -> DenseNet:
    """DenseNet-BC with 100 layers and growth rate 12 on RGB 32x32 images, the DenseNet that the paper names."""
    kwargs = {'depth': 100, 'growth_rate': 12, **kwargs}
    return create_cifar_net(DenseNet, 'densenetbc100_12', pretrained, **kwargs)


@register_model
def densenet40_12(pretrained: bool = False, **kwargs: Any) -> DenseNet:
    """DenseNet with 40 layers and growth rate 12 on RGB 32x32 images, which the authors' code builds for P2BE."""
    kwargs = {'depth': 40, 'growth_rate': 12, 'bottleneck': False, **kwargs}
    return create_cifar_net(DenseNet, 'densenet40_12', pretrained, **kwargs)
