"""DenseNet-BC for 32x32 images.

Paper: Huang et al., Densely Connected Convolutional Networks, https://arxiv.org/abs/1608.06993. Structure and
initialization follow google-research/augmix third_party/ResNeXt_DenseNet/models/densenet.py with its bottleneck and
compression switched on (docs/protocol.md, section 6: which DenseNet the paper means).
"""

from typing import Any

import torch
from timm.layers import BatchNormAct2d
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from timm_p2be.models.cifar_net import CifarNet, cifar_cfg, create_cifar_net

__all__ = ['DenseNetBC']

_BOTTLENECK = 4  # width of the 1x1 convolution in growth rates


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3; the new channels are appended to the input."""

    def __init__(self, in_chs: int, growth_rate: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        mid_chs = _BOTTLENECK * growth_rate
        self.norm1 = BatchNormAct2d(in_chs, **dd)
        self.conv1 = nn.Conv2d(in_chs, mid_chs, 1, bias=False, **dd)
        self.norm2 = BatchNormAct2d(mid_chs, **dd)
        self.conv2 = nn.Conv2d(mid_chs, growth_rate, 3, padding=1, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, in_chs + growth_rate, H, W)."""
        return torch.cat([x, self.conv2(self.norm2(self.conv1(self.norm1(x))))], dim=1)


def _transition(in_chs: int, out_chs: int, dd: dict[str, Any]) -> nn.Sequential:
    """Return norm, ReLU, 1x1 convolution and 2x2 average pooling: fewer channels at half the resolution."""
    conv = nn.Conv2d(in_chs, out_chs, 1, bias=False, **dd)
    return nn.Sequential(BatchNormAct2d(in_chs, **dd), conv, nn.AvgPool2d(2))


class DenseNetBC(CifarNet):
    """DenseNet with bottlenecks and compression. A stage starts with the transition from the one before.

    Args:
        growth_rate: channels every layer adds (k).
        depth: number of weight layers, 6 n + 4.
        num_classes: classes, 0 for none.
        in_chans: image channels.
        global_pool: 'avg', 'max', 'avgmax', 'catavgmax', or '' for none.
        drop_rate: dropout before the classifier.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: `depth` is not 6 n + 4 with n of at least 1.
    """

    def __init__(
        self,
        growth_rate: int = 12,
        depth: int = 100,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        layers, rest = divmod(depth - 4, 6)
        if rest or layers < 1:
            raise ValueError(f'Got depth={depth}; a DenseNet-BC has 6 n + 4 layers. Use 40, 100 or 190, for example.')
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        widths = [2 * growth_rate]
        stages = []
        for stage in range(3):
            width = widths[-1]
            blocks: list[nn.Module] = []
            if stage > 0:
                blocks.append(_transition(width, width // 2, dd))
                width //= 2
            blocks += [DenseLayer(width + i * growth_rate, growth_rate, **dd) for i in range(layers)]
            stages.append(nn.Sequential(*blocks))
            widths.append(width + layers * growth_rate)
        super().__init__(stages, widths, True, num_classes, in_chans, global_pool, drop_rate, device, dtype)


default_cfgs = generate_default_cfgs(
    {
        'densenetbc100_12.untrained': cifar_cfg(
            paper_name='Densely Connected Convolutional Networks', paper_ids='arXiv:1608.06993'
        ),
    }
)


@register_model
def densenetbc100_12(pretrained: bool = False, **kwargs: Any) -> DenseNetBC:
    """DenseNet-BC with 100 layers and growth rate 12 on RGB 32x32 images, the paper's DenseNet."""
    model_args: dict[str, Any] = {'depth': 100, 'growth_rate': 12}
    return create_cifar_net(DenseNetBC, 'densenetbc100_12', pretrained, **dict(model_args, **kwargs))
