"""WideResNets for 32x32 images.

Paper: Zagoruyko and Komodakis, Wide Residual Networks, https://arxiv.org/abs/1605.07146. Structure and initialization
follow google-research/augmix third_party/WideResNet_pytorch/wideresnet.py (docs/protocol.md, section 6).
"""

from typing import Any

from timm.layers import BatchNormAct2d
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from timm_p2be.models.cifar_net import CifarNet, cifar10_weights, cifar_cfg, create_cifar_net, factory_kwargs, repeats

__all__ = ['WideResNet']

_STEM_WIDTH = 16


class PreActBlock(nn.Module):
    """Norm, ReLU, 3x3, norm, ReLU, dropout, 3x3; a 1x1 shortcut reads the first ReLU where width or stride change."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, drop_rate: float, **dd: Any) -> None:
        super().__init__()
        self.norm1 = BatchNormAct2d(in_chs, **dd)
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=1, bias=False, **dd)
        self.norm2 = BatchNormAct2d(out_chs, **dd)
        self.drop = nn.Dropout(drop_rate)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1, bias=False, **dd)
        same = in_chs == out_chs and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_chs, out_chs, 1, stride=stride, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        pre = self.norm1(x)
        shortcut = x if self.shortcut is None else self.shortcut(pre)
        return shortcut + self.conv2(self.drop(self.norm2(self.conv1(pre))))


class WideResNet(CifarNet):
    """WideResNet with pre-activation blocks.

    Args:
        depth: number of weight layers, 6 n + 4.
        widen_factor: the stages are 16, 32 and 64 times as wide.
        proj_drop_rate: dropout between the two convolutions of every block (the WideResNet paper's dropout).
    """

    def __init__(self, depth: int = 40, widen_factor: int = 2, proj_drop_rate: float = 0.0, **kwargs: Any) -> None:
        blocks = repeats(depth, 6, 4, 'WideResNet')
        dd = factory_kwargs(kwargs)
        widths = [_STEM_WIDTH, *(_STEM_WIDTH * widen_factor * factor for factor in (1, 2, 4))]
        stages = []
        for in_chs, out_chs, stride in zip(widths[:-1], widths[1:], (1, 2, 2), strict=True):
            shapes = [(in_chs, stride)] + [(out_chs, 1)] * (blocks - 1)
            stages.append(nn.Sequential(*(PreActBlock(c, out_chs, s, proj_drop_rate, **dd) for c, s in shapes)))
        super().__init__(stages, widths, preact=True, **kwargs)


def _cfg(**fields: Any) -> dict[str, Any]:
    return cifar_cfg(paper_name='Wide Residual Networks', paper_ids='arXiv:1605.07146', **fields)


default_cfgs = generate_default_cfgs(
    {
        'wrn40_2.untrained': _cfg(),
        'wrn16_2.cifar10': _cfg(**cifar10_weights('wrn16_2.cifar10')),
        'wrn10_2.untrained': _cfg(),
    }
)


@register_model
def wrn40_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-40-2 on RGB 32x32 images, the paper's WideResNet."""
    return create_cifar_net(WideResNet, 'wrn40_2', pretrained, **kwargs)


@register_model
def wrn16_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-16-2 on RGB 32x32 images, for runs on a CPU."""
    return create_cifar_net(WideResNet, 'wrn16_2', pretrained, **{'depth': 16, **kwargs})


@register_model
def wrn10_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-10-2 on RGB 32x32 images, for tests."""
    return create_cifar_net(WideResNet, 'wrn10_2', pretrained, **{'depth': 10, **kwargs})
