"""timm's ResNets with encoded stems; ResNet-50 is the paper's ImageNet model (Table III).

`{arch}_{encoding}` is the network `arch` whose first convolution reads pixel codes of that encoding.
"""

from typing import Any

from timm.models import ResNet, generate_default_cfgs, register_model

from timm_p2be.encodings import ENCODINGS
from timm_p2be.models.encoded import create_encoded, encoded_cfg
from timm_p2be.models.tables import add_tables

__all__: list[str] = []


def _cfg(**fields: Any) -> dict[str, Any]:
    """ImageNet at 224 pixels, the center of a 256-pixel image, as google-research/augmix imagenet.py tests."""
    return encoded_cfg(
        input_size=(3, 224, 224),
        pool_size=(7, 7),
        crop_pct=0.875,
        interpolation='bilinear',
        num_classes=1000,
        first_conv='conv1',
        classifier='fc',
        **fields,
    )


default_cfgs = generate_default_cfgs(
    {f'{arch}_{encoding}.untrained': _cfg() for arch in ('resnet18', 'resnet34', 'resnet50') for encoding in ENCODINGS}
)
add_tables(default_cfgs)


@register_model
def resnet18_p2be(pretrained: bool = False, **kwargs: Any) -> ResNet:
    return create_encoded('resnet18_p2be', 'resnet18', 'p2be', pretrained, **kwargs)


@register_model
def resnet18_onehot(pretrained: bool = False, **kwargs: Any) -> ResNet:
    return create_encoded('resnet18_onehot', 'resnet18', 'onehot', pretrained, **kwargs)


@register_model
def resnet18_thermometer(pretrained: bool = False, **kwargs: Any) -> ResNet:
    return create_encoded('resnet18_thermometer', 'resnet18', 'thermometer', pretrained, **kwargs)


@register_model
def resnet34_p2be(pretrained: bool = False, **kwargs: Any) -> ResNet:
    return create_encoded('resnet34_p2be', 'resnet34', 'p2be', pretrained, **kwargs)


@register_model
def resnet34_onehot(pretrained: bool = False, **kwargs: Any) -> ResNet:
    return create_encoded('resnet34_onehot', 'resnet34', 'onehot', pretrained, **kwargs)


@register_model
def resnet34_thermometer(pretrained: bool = False, **kwargs: Any) -> ResNet:
    return create_encoded('resnet34_thermometer', 'resnet34', 'thermometer', pretrained, **kwargs)


@register_model
def resnet50_p2be(pretrained: bool = False, **kwargs: Any) -> ResNet:
    return create_encoded('resnet50_p2be', 'resnet50', 'p2be', pretrained, **kwargs)


@register_model
def resnet50_onehot(pretrained: bool = False, **kwargs: Any) -> ResNet:
    return create_encoded('resnet50_onehot', 'resnet50', 'onehot', pretrained, **kwargs)


@register_model
def resnet50_thermometer(pretrained: bool = False, **kwargs: Any) -> ResNet:
    return create_encoded('resnet50_thermometer', 'resnet50', 'thermometer', pretrained, **kwargs)
