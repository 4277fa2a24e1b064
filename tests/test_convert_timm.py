"""`convert` over every family of timm, without memory or computation: it converts, or is refused for its reason."""

import pytest
import timm
import torch
from timm.models import get_model_input_config, model_entrypoint

from timm_p2be.stem import EncodedConv2d, UnsupportedStemError, convert

UNSUPPORTED = {
    'crossvit': 'declares 2 first convolutions',
    'csatv2': 'declares no first convolution',
    'davit': 'transforms the image',  # it pads a copy, which on meta nothing tells from another image; so does tnt
    'fastvit': 'declares 2 first convolutions',
    'gemma4_vit': 'has a Linear as its first convolution',
    'naflexvit': 'has a Linear as its first convolution',
    'nfnet': 'has a ScaledStdConv2dSame as its first convolution',
    'tnt': 'transforms the image',
    'tresnet': 'transforms the image before its first convolution',
    'vision_transformer_hybrid': 'has a StdConv2dSame as its first convolution',
}
FAMILIES = {
    module: names[0]
    for module in timm.list_modules()
    if model_entrypoint((names := timm.list_models(module=module))[0]).__module__.startswith('timm.models.')
}
FAST = {*UNSUPPORTED, 'byobnet', 'convnext', 'efficientnet', 'resnet', 'swin_transformer', 'vision_transformer'}
FAMILIES['vision_transformer_hybrid'] = 'vit_tiny_r_s16_p8_224'  # others have a plain first convolution


def _convert(name: str, device: str) -> None:
    with torch.device(device):
        model = timm.create_model(name).eval()
    cls, first_conv = type(model), model.pretrained_cfg['first_conv']
    convert(model, 'thermometer', num_bits=4)
    assert type(model) is cls
    stem = model.get_submodule(first_conv)
    assert type(stem) is EncodedConv2d
    size = get_model_input_config(model)['input_size']
    levels = torch.randint(256, (1, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # without values there is nothing to see behind the stem, where nothing has changed
        output = (stem if device == 'meta' else model)(levels.to(device))
    assert output.shape[0] == 1
    assert output.is_meta or output.isfinite().all()


@pytest.mark.parametrize(
    'module', [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in FAMILIES], ids=lambda module: module
)
def test_family(module: str) -> None:
    name = FAMILIES[module]
    if module not in UNSUPPORTED:
        _convert(name, 'meta')
        return
    with pytest.raises(UnsupportedStemError, match=rf'^{name} {UNSUPPORTED[module]}'):
        _convert(name, 'meta')


@pytest.mark.parametrize('name', ['davit_tiny', 'test_efficientnet', 'convit_tiny'])
def test_with_values(name: str) -> None:
    _convert(name, 'cpu')
