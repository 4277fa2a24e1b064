"""The paper's 32x32 networks with encoded stems (Tables II, VI and VII), and smaller ones for tests and CPU runs.

`{arch}_{encoding}` is the network `arch` whose first convolution reads pixel codes of that encoding.
"""

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs

from timm_p2be.encodings import ENCODINGS
from timm_p2be.models.cifar_net import cifar10_weights, cifar_cfg, with_features
from timm_p2be.models.encoded import encoded_cfg, entrypoint
from timm_p2be.models.tables import add_tables


def _cfg(**fields: Any) -> dict[str, Any]:
    return cifar_cfg(**encoded_cfg(**fields))


default_cfgs = generate_default_cfgs(
    {
        **{
            name: _cfg(**cifar10_weights(name))
            for name in (
                'wrn40_2_p2be.augmix_cifar10',
                'wrn16_2_p2be.augmix_cifar10',
                'wrn16_2_onehot.cifar10',
                'wrn16_2_thermometer.cifar10',
            )
        },
        'wrn40_2_onehot.untrained': _cfg(),
        'wrn40_2_thermometer.untrained': _cfg(),
        **{
            f'{arch}_{encoding}.untrained': _cfg()
            for arch in ('wrn10_2', 'densenetbc100_12', 'densenet40_12', 'resnext29_4x32d')
            for encoding in ENCODINGS
        },
    }
)
add_tables(default_cfgs)
_entrypoint = partial(entrypoint, __name__, prepare=with_features)

wrn40_2_p2be = _entrypoint('wrn40_2_p2be')
wrn40_2_onehot = _entrypoint('wrn40_2_onehot')
wrn40_2_thermometer = _entrypoint('wrn40_2_thermometer')
wrn16_2_p2be = _entrypoint('wrn16_2_p2be')
wrn16_2_onehot = _entrypoint('wrn16_2_onehot')
wrn16_2_thermometer = _entrypoint('wrn16_2_thermometer')
wrn10_2_p2be = _entrypoint('wrn10_2_p2be')
wrn10_2_onehot = _entrypoint('wrn10_2_onehot')
wrn10_2_thermometer = _entrypoint('wrn10_2_thermometer')
densenetbc100_12_p2be = _entrypoint('densenetbc100_12_p2be')
densenetbc100_12_onehot = _entrypoint('densenetbc100_12_onehot')
densenetbc100_12_thermometer = _entrypoint('densenetbc100_12_thermometer')
densenet40_12_p2be = _entrypoint('densenet40_12_p2be')
densenet40_12_onehot = _entrypoint('densenet40_12_onehot')
densenet40_12_thermometer = _entrypoint('densenet40_12_thermometer')
resnext29_4x32d_p2be = _entrypoint('resnext29_4x32d_p2be')
resnext29_4x32d_onehot = _entrypoint('resnext29_4x32d_onehot')
resnext29_4x32d_thermometer = _entrypoint('resnext29_4x32d_thermometer')
