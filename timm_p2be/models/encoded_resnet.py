"""timm's ResNets with encoded stems; ResNet-50 is the paper's ImageNet model (Table III).

`{arch}_{encoding}` is the network `arch` whose first convolution reads pixel codes of that encoding.
"""

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs

from timm_p2be.encodings import ENCODINGS
from timm_p2be.models.encoded import encoded_cfg, entrypoint
from timm_p2be.models.tables import add_tables


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
_entrypoint = partial(entrypoint, __name__)

resnet18_p2be = _entrypoint('resnet18_p2be')
resnet18_onehot = _entrypoint('resnet18_onehot')
resnet18_thermometer = _entrypoint('resnet18_thermometer')
resnet34_p2be = _entrypoint('resnet34_p2be')
resnet34_onehot = _entrypoint('resnet34_onehot')
resnet34_thermometer = _entrypoint('resnet34_thermometer')
resnet50_p2be = _entrypoint('resnet50_p2be')
resnet50_onehot = _entrypoint('resnet50_onehot')
resnet50_thermometer = _entrypoint('resnet50_thermometer')
