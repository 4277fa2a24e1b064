"""ResNeXt for 32x32 images.

Paper: Xie et al., Aggregated Residual Transformations for Deep Neural Networks, https://arxiv.org/abs/1611.05431.
Structure and initialization follow google-research/augmix third_party/ResNeXt_DenseNet/models/resnext.py
(docs/protocol.md, section 6: its "32x4" has cardinality 4 and base width 32).
"""

from typing import Any

from timm.models import Bottleneck, generate_default_cfgs, register_model
from torch import nn

from timm_p2be.models.cifar_net import CifarNet, cifar_cfg, create_cifar_net, factory_kwargs, repeats

__all__ = ['ResNeXt']

_STEM_WIDTH = 64


class ResNeXt(CifarNet):
    """ResNeXt of three stages; the first block of each has a 1x1 convolution and norm on its shortcut.

    Args:
        depth: number of weight layers, 9 n + 2.
        cardinality: groups of the 3x3 convolutions.
        base_width: channels of a group in the first stage.
    """

    def __init__(self, depth: int = 29, cardinality: int = 4, base_width: int = 32, **kwargs: Any) -> None:
        blocks = repeats(depth, 9, 2, 'ResNeXt for 32x32')
        dd = factory_kwargs(kwargs)
        block_args = {'cardinality': cardinality, 'base_width': base_width, **dd}
        widths, stages = [_STEM_WIDTH], []
        for planes, stride in ((64, 1), (128, 2), (256, 2)):
            in_chs, out_chs = widths[-1], planes * Bottleneck.expansion
            conv = nn.Conv2d(in_chs, out_chs, 1, stride=stride, bias=False, **dd)
            shortcut = nn.Sequential(conv, nn.BatchNorm2d(out_chs, **dd))
            first = Bottleneck(in_chs, planes, stride, shortcut, **block_args)
            others = (Bottleneck(out_chs, planes, **block_args) for _ in range(blocks - 1))
            stages.append(nn.Sequential(first, *others))
            widths.append(out_chs)
        super().__init__(stages, widths, preact=False, **kwargs)

    def _init_classifier(self) -> None:
        """Kaiming-normal weights, as upstream's ResNeXt has; bias 0."""
        super()._init_classifier()
        if isinstance(self.fc, nn.Linear):
            nn.init.kaiming_normal_(self.fc.weight)


_PAPER = {'paper_name': 'Aggregated Residual Transformations for Deep Neural Networks', 'paper_ids': 'arXiv:1611.05431'}
default_cfgs = generate_default_cfgs({'resnext29_4x32d.untrained': cifar_cfg(**_PAPER)})


@register_model
def resnext29_4x32d(pretrained: bool = False, **kwargs: Any) -> ResNeXt:
    """ResNeXt-29 with cardinality 4 and base width 32 on RGB 32x32 images, the paper's ResNeXt."""
    return create_cifar_net(ResNeXt, 'resnext29_4x32d', pretrained, **kwargs)
