"""The paper's 32x32 networks with encoded stems (Tables II, VI and VII), and smaller ones for tests and CPU runs.

`{arch}_{encoding}` is the network `arch` whose first convolution reads pixel codes of that encoding.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model

from timm_p2be.encodings import ENCODINGS
from timm_p2be.models.cifar_net import cifar10_weights, cifar_cfg, cifar_feature_cfg
from timm_p2be.models.densenet_cifar import DenseNet
from timm_p2be.models.encoded import create_encoded, encoded_cfg
from timm_p2be.models.resnext_cifar import ResNeXt
from timm_p2be.models.tables import add_tables
from timm_p2be.models.wideresnet_cifar import WideResNet

__all__: list[str] = []


def _cfg(**fields: Any) -> dict[str, Any]:
    return cifar_cfg(**encoded_cfg(**fields))


def _create(
    variant: str,
    backbone: str,
    encoding: str,
    pretrained: bool,
    feature_cfg: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    return create_encoded(variant, backbone, encoding, pretrained, feature_cfg=cifar_feature_cfg(feature_cfg), **kwargs)


default_cfgs = generate_default_cfgs(
    {
        'wrn40_2_p2be.cifar10': _cfg(**cifar10_weights('wrn40_2_p2be.cifar10')),
        'wrn40_2_onehot.untrained': _cfg(),
        'wrn40_2_thermometer.untrained': _cfg(),
        'wrn16_2_p2be.cifar10': _cfg(**cifar10_weights('wrn16_2_p2be.cifar10')),
        'wrn16_2_onehot.cifar10': _cfg(**cifar10_weights('wrn16_2_onehot.cifar10')),
        'wrn16_2_thermometer.cifar10': _cfg(**cifar10_weights('wrn16_2_thermometer.cifar10')),
        **{
            f'{arch}_{encoding}.untrained': _cfg()
            for arch in ('wrn10_2', 'densenetbc100_12', 'densenet40_12', 'resnext29_4x32d')
            for encoding in ENCODINGS
        },
    }
)
add_tables(default_cfgs)


@register_model
def wrn40_2_p2be(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    return _create('wrn40_2_p2be', 'wrn40_2', 'p2be', pretrained, **kwargs)


@register_model
def wrn40_2_onehot(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    return _create('wrn40_2_onehot', 'wrn40_2', 'onehot', pretrained, **kwargs)


@register_model
def wrn40_2_thermometer(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    return _create('wrn40_2_thermometer', 'wrn40_2', 'thermometer', pretrained, **kwargs)


@register_model
def wrn16_2_p2be(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    return _create('wrn16_2_p2be', 'wrn16_2', 'p2be', pretrained, **kwargs)


@register_model
def wrn16_2_onehot(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    return _create('wrn16_2_onehot', 'wrn16_2', 'onehot', pretrained, **kwargs)


@register_model
def wrn16_2_thermometer(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    return _create('wrn16_2_thermometer', 'wrn16_2', 'thermometer', pretrained, **kwargs)


@register_model
def wrn10_2_p2be(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    return _create('wrn10_2_p2be', 'wrn10_2', 'p2be', pretrained, **kwargs)


@register_model
def wrn10_2_onehot(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    return _create('wrn10_2_onehot', 'wrn10_2', 'onehot', pretrained, **kwargs)


@register_model
def wrn10_2_thermometer(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    return _create('wrn10_2_thermometer', 'wrn10_2', 'thermometer', pretrained, **kwargs)


@register_model
def densenetbc100_12_p2be(pretrained: bool = False, **kwargs: Any) -> DenseNet:
    return _create('densenetbc100_12_p2be', 'densenetbc100_12', 'p2be', pretrained, **kwargs)


@register_model
def densenetbc100_12_onehot(pretrained: bool = False, **kwargs: Any) -> DenseNet:
    return _create('densenetbc100_12_onehot', 'densenetbc100_12', 'onehot', pretrained, **kwargs)


@register_model
def densenetbc100_12_thermometer(pretrained: bool = False, **kwargs: Any) -> DenseNet:
    return _create('densenetbc100_12_thermometer', 'densenetbc100_12', 'thermometer', pretrained, **kwargs)


@register_model
def densenet40_12_p2be(pretrained: bool = False, **kwargs: Any) -> DenseNet:
    return _create('densenet40_12_p2be', 'densenet40_12', 'p2be', pretrained, **kwargs)


@register_model
def densenet40_12_onehot(pretrained: bool = False, **kwargs: Any) -> DenseNet:
    return _create('densenet40_12_onehot', 'densenet40_12', 'onehot', pretrained, **kwargs)


@register_model
def densenet40_12_thermometer(pretrained: bool = False, **kwargs: Any) -> DenseNet:
    return _create('densenet40_12_thermometer', 'densenet40_12', 'thermometer', pretrained, **kwargs)


@register_model
def resnext29_4x32d_p2be(pretrained: bool = False, **kwargs: Any) -> ResNeXt:
    return _create('resnext29_4x32d_p2be', 'resnext29_4x32d', 'p2be', pretrained, **kwargs)


@register_model
def resnext29_4x32d_onehot(pretrained: bool = False, **kwargs: Any) -> ResNeXt:
    return _create('resnext29_4x32d_onehot', 'resnext29_4x32d', 'onehot', pretrained, **kwargs)


@register_model
def resnext29_4x32d_thermometer(pretrained: bool = False, **kwargs: Any) -> ResNeXt:
    return _create('resnext29_4x32d_thermometer', 'resnext29_4x32d', 'thermometer', pretrained, **kwargs)
