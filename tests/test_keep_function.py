"""`convert(..., preserve=True)`: the encoded model computes what the RGB model computed, borders included."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from stems import random_levels
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.models import save_for_hf
from torch import Tensor, nn

from timm_p2be import convert, find_embedding, fold
from timm_p2be.encodings import onehot_codes, thermometer_codes
from timm_p2be.encodings.codes import linear_codes
from timm_p2be.stem import EncodedConv2d
from timm_p2be.stem.keep_function import plane_factors

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NETWORKS = Path(__file__).parents[1] / 'benchmarks' / 'networks'
FIXED = {'onehot': onehot_codes, 'thermometer': thermometer_codes}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _normalized(levels: Tensor, cfg: dict[str, Any]) -> Tensor:
    """Return what timm's loader hands to a model of pixel values, in float64."""
    mean, std = (torch.tensor(cfg[name], dtype=torch.float64).view(1, -1, 1, 1) for name in ('mean', 'std'))
    return (levels.double() / 255 - mean) / std


def _values() -> Tensor:
    """Return the (256, C) normalized values of all levels."""
    levels = torch.arange(256, dtype=torch.float64)[:, None] / 255
    return (levels - torch.tensor(MEAN, dtype=torch.float64)) / torch.tensor(STD, dtype=torch.float64)


def _difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    assert found.shape == wanted.shape
    return ((found.double() - wanted.double()).abs().max() / wanted.double().abs().max()).item()


class _Network(nn.Module):
    """One layer, in the shape that timm gives its models."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.pretrained_cfg = {'architecture': 'toy', 'first_conv': 'first', 'input_size': (first.in_channels, 24, 24)}
        self.pretrained_cfg.update(mean=MEAN, std=STD)
        self.default_cfg = self.pretrained_cfg
        self.first = first

    def forward(self, images: Tensor) -> Tensor:
        return self.first(images)


def _trained(network: nn.Module) -> nn.Module:
    """Give a network weights, gains, biases and running statistics that differ from their start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise * parameter.std(correction=0).clamp(min=0.05) * 0.3)
        for name, buffer in network.named_buffers():
            if name.endswith('running_mean'):
                buffer.normal_(std=0.1, generator=generator)
    return network


# the table


@pytest.mark.parametrize(
    ('num_bits', 'digits', 'neighbors'),
    [(9, 7, 8), (33, 4, 4), (64, 3, 3), (256, 0, 1)],
)
def test_every_level_is_linear_in_its_code_and_close_to_its_neighbors(num_bits, digits, neighbors):
    codes = linear_codes(num_bits).double()
    assert len(codes.unique(dim=0)) == 256
    assert (codes[:, -1] == 1).all()
    factors = plane_factors(codes, [0.0], [1 / 255])[:, 0]  # of the level itself
    torch.testing.assert_close(codes @ factors, torch.arange(256.0, dtype=torch.float64), rtol=0, atol=1e-9)
    # the cells' widths, then powers of two, and nothing on the plane that is always on: no large opposite weights
    widths, below = factors[: num_bits - digits - 1], factors[num_bits - digits - 1 : -1]
    assert widths.max() - widths.min() < 1 + 1e-9
    torch.testing.assert_close(below, 2.0 ** torch.arange(digits, dtype=torch.float64), rtol=0, atol=1e-9)
    assert abs(factors[-1]) < 1e-9
    flips = (codes[1:] - codes[:-1]).abs().sum(dim=1)
    assert flips.min() >= 1
    assert flips.max() == neighbors <= digits + 1


@pytest.mark.parametrize('encoding', FIXED)
@pytest.mark.parametrize('num_bits', [10, 64, 255, 300])
def test_a_bin_has_the_value_in_the_middle_of_its_levels(encoding, num_bits):
    codes, values = FIXED[encoding](num_bits).double(), _values()
    found = codes @ plane_factors(codes, MEAN, STD)
    bins = onehot_codes(num_bits).argmax(dim=1)
    for index in bins.unique():
        inside = values[bins == index]
        middle = (inside.amin(dim=0) + inside.amax(dim=0)) / 2
        torch.testing.assert_close(found[bins == index], middle.expand_as(inside))
    largest = int(bins.bincount().max())
    bound = (largest - 1) / 2 / 255 / torch.tensor(STD, dtype=torch.float64)
    torch.testing.assert_close((found - values).abs().amax(dim=0), bound)


# the function


@pytest.mark.parametrize(
    ('name', 'size', 'encoding', 'num_bits'),
    [
        ('test_resnet', (65, 64), 'thermometer', 256),
        ('tf_mobilenetv3_small_minimal_100', (65, 64), 'p2be', 64),
        ('test_convnext', (66, 64), 'p2be', 64),
        ('test_vit', (160, 160), 'p2be', 64),
        ('test_nfnet', (64, 65), 'p2be', 64),
    ],
    ids=['plain', 'same padding', 'patches', 'ViT', 'standardized'],
)
def test_models_of_timm_keep_their_function(name, size, encoding, num_bits):
    model = _trained(timm.create_model(name, num_classes=10)).eval()
    cfg, levels = model.pretrained_cfg, random_levels(2, 3, *size)
    images = _normalized(levels, cfg)
    with torch.no_grad():
        features = model.get_submodule(cfg['first_conv'])(images.float())
        logits = model(images.float())
        assert convert(model, encoding, num_bits, preserve=True) is model
        stem = model.get_submodule(cfg['first_conv'])
        assert type(stem) is EncodedConv2d
        assert _difference(stem(levels), features) < 1e-5
        for found in (model(levels), model(levels.float() / 255)):
            assert _difference(found, logits) < 1e-4
    assert set(model.pretrained_cfg['mean']) == {0.0}
    assert set(model.pretrained_cfg['std']) == {1.0}


@pytest.mark.filterwarnings('ignore:Using padding=.same. with even kernel')  # torch's copy of the image
@pytest.mark.parametrize('conv', [
    nn.Conv2d(3, 5, (3, 2), stride=(1, 2), padding=(2, 0), bias=False),
    nn.Conv2d(3, 5, 3, padding=2, dilation=2),
    nn.Conv2d(3, 5, 4, padding='same'),
    Conv2dSame(3, 5, 3, stride=2),
    Conv2dSame(3, 5, (2, 5), stride=(1, 3), dilation=2, bias=False),
    StdConv2d(3, 5, 3, stride=2, eps=0.1),
    StdConv2dSame(3, 5, 3, stride=2, bias=True),
    ScaledStdConv2d(3, 5, 3, gamma=1.7),
    ScaledStdConv2d(3, 5, 3, stride=2, padding=0, bias=False, eps=1e-2),
    ScaledStdConv2dSame(3, 5, 5, stride=2, gain_init=2.0),
], ids=lambda conv: f'{type(conv).__name__} {conv.kernel_size} {conv.padding}')  # fmt: skip
def test_every_kind_of_first_convolution(conv):
    conv = copy.deepcopy(conv)
    conv.reset_parameters()
    model = _trained(_Network(conv))
    levels = random_levels(2, 3, 23, 24)
    wanted = copy.deepcopy(model).double()(_normalized(levels, model.pretrained_cfg))
    convert(model, 'p2be', preserve=True)
    assert type(model.first) is EncodedConv2d
    assert (model.first.bias is None) == (conv.bias is None)
    assert _difference(model(levels), wanted) < 3e-6


@pytest.mark.parametrize(('encoding', 'num_bits', 'dtype', 'bound'), [
    ('p2be', 9, torch.float64, 1e-12), ('p2be', 64, torch.float16, 2e-3), ('onehot', 256, torch.bfloat16, 1.5e-2),
])  # fmt: skip
def test_other_precisions(encoding, num_bits, dtype, bound):
    model = _trained(_Network(nn.Conv2d(3, 8, 3, padding=1))).to(dtype)
    levels = random_levels(2, 3, 24, 24)
    wanted = copy.deepcopy(model).double()(_normalized(levels, model.pretrained_cfg))
    found = convert(model, encoding, num_bits, preserve=True)(levels)
    assert found.dtype == model.first.weight.dtype == dtype
    assert find_embedding(model).codes().dtype == torch.float32
    assert _difference(found, wanted) < bound


@pytest.mark.parametrize(('in_chans', 'mean', 'std'), [
    (1, (0.4,), (0.3,)),
    (4, (0.4,), (0.3,)),  # one value for all
    (4, (0.1, 0.2, 0.3, 0.4), (1.0, 0.5, 0.25, 0.2)),
])  # fmt: skip
def test_other_channels(in_chans, mean, std):
    model = _trained(timm.create_model('test_resnet', in_chans=in_chans)).eval()
    model.pretrained_cfg.update(mean=mean, std=std)
    levels = random_levels(2, in_chans, 64, 64)
    with torch.no_grad():
        wanted = model(_normalized(levels, model.pretrained_cfg).float())
        found = convert(model, 'p2be', preserve=True)(levels)
    assert _difference(found, wanted) < 1e-4
    assert model.pretrained_cfg['mean'] == (0.0,) * in_chans


@pytest.mark.parametrize(('encoding', 'num_bits'), [('p2be', 64), ('thermometer', 256)])
def test_weights_load_into_the_registered_model(encoding, num_bits, tmp_path):
    rgb = timm.create_model('wrn10_2').eval()
    rgb.load_state_dict(load_file(NETWORKS / 'wrn10_2.safetensors'))
    levels = random_levels(4, 3, 32, 32)
    with torch.no_grad():
        wanted = rgb(levels / 255)
        save_file(convert(rgb, encoding, num_bits, preserve=True).state_dict(), tmp_path / 'model.safetensors')
        model = timm.create_model(
            f'wrn10_2_{encoding}', num_bits=num_bits, checkpoint_path=str(tmp_path / 'model.safetensors')
        ).eval()
        assert torch.equal(model(levels), rgb(levels))
        for found in (model(levels), fold(model)(levels)):
            assert _difference(found, wanted) < 1e-5


# by name: `encoded` with the RGB weights of its backbone


def _rgb(name: str, folder: Path, **kwargs: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network of pixel values, and the overlay that names the file of its weights."""
    model = _trained(timm.create_model(name, **kwargs)).eval()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / 'rgb.safetensors')
    return model, {'file': str(folder / 'rgb.safetensors'), 'num_classes': model.num_classes}


@pytest.mark.parametrize(
    ('name', 'encoding', 'num_bits'), [('test_resnet', 'thermometer', 256), ('test_nfnet', 'p2be', 64)]
)
def test_encoded_takes_the_weights_of_its_backbone(name, encoding, num_bits, tmp_path):
    """From a file in the cfg's overlay; a saved model brings its own weights, timm's scripts hand the cfg over."""
    rgb, overlay = _rgb(name, tmp_path, num_classes=10)
    kwargs = {'backbone': name, 'encoding': encoding, 'num_bits': num_bits, 'preserve': True}
    levels = random_levels(2, 3, 64, 64)
    images = _normalized(levels, rgb.pretrained_cfg).float()
    model = timm.create_model('encoded', pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10, **kwargs)
    with torch.no_grad():
        found = model.eval()(levels)
        assert _difference(found, rgb(images)) < 1e-4
        headless = timm.create_model(
            'encoded', pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **kwargs
        )
        pooled = rgb.forward_head(rgb.forward_features(images), pre_logits=True)
        assert _difference(headless.eval()(levels), pooled) < 1e-4
        args = timm.models.resolve_model_input_args('encoded', pretrained_cfg_overlay=overlay, **kwargs)
        assert torch.equal(timm.create_model(pretrained=True, num_classes=10, **args).eval()(levels), found)
        save_for_hf(model, tmp_path / 'net', safe_serialization=True)
        (tmp_path / 'rgb.safetensors').unlink()
        loaded = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True).eval()
        assert torch.equal(loaded(levels), found)
    assert (model.pretrained_cfg['mean'], model.pretrained_cfg['std']) == ((0.0,) * 3, (1.0,) * 3)
    for field in ('input_size', 'crop_pct', 'interpolation', 'first_conv'):
        assert model.pretrained_cfg[field] == rgb.pretrained_cfg[field]
    assert 'file' not in model.pretrained_cfg


def test_a_file_brings_its_own_normalization(tmp_path):
    rgb, overlay = _rgb('test_resnet', tmp_path)
    levels, normalization = random_levels(2, 3, 64, 64), {'mean': (0.1, 0.2, 0.3), 'std': (0.5, 0.25, 0.2)}
    overlay.update(normalization)
    model = timm.create_model(
        'encoded', backbone='test_resnet', preserve=True, pretrained=True, pretrained_cfg_overlay=overlay
    ).eval()
    with torch.no_grad():
        assert _difference(model(levels), rgb(_normalized(levels, normalization).float())) < 1e-4
    assert model.pretrained_cfg['mean'] == (0.0,) * 3


def test_weights_of_a_tag_come_by_timms_own_way(monkeypatch, tmp_path):
    """timm asks for the tag's repository, which a file on disk stands for here, and the cache is the caller's."""
    rgb = _trained(timm.create_model('convnext_atto')).eval()
    asked = []

    def fetched(repository: str, **kwargs: Any) -> dict[str, Tensor]:
        asked.append((repository, kwargs['cache_dir']))
        return rgb.state_dict()

    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', fetched)
    kwargs = {'backbone': 'convnext_atto.d2_in1k', 'encoding': 'p2be', 'pretrained': True, 'preserve': True}
    model = timm.create_model('encoded', cache_dir=tmp_path, **kwargs).eval()
    features = timm.create_model('encoded', features_only=True, cache_dir=tmp_path, **kwargs).eval()
    assert asked == [('timm/convnext_atto.d2_in1k', tmp_path)] * 2
    levels = random_levels(1, 3, 64, 64)
    images = _normalized(levels, rgb.pretrained_cfg).float()
    with torch.no_grad():
        assert _difference(model(levels), rgb(images)) < 1e-4
        for found, wanted in zip(features(levels), rgb.forward_intermediates(images)[1], strict=True):
            assert _difference(found, wanted) < 1e-4


def test_shipped_weights_of_pixel_values_are_kept():
    model = timm.create_model('encoded', backbone='wrn16_2.cifar10', pretrained=True, preserve=True).eval()
    levels = random_levels(2, 3, 32, 32)
    with torch.no_grad():
        wanted = timm.create_model('wrn16_2', pretrained=True).eval()(levels / 255)
        assert _difference(model(levels), wanted) < 1e-5


@pytest.mark.parametrize(('kwargs', 'error', 'words'), [
    ({'embedding': 'someone/table'}, ValueError, 'preserve=True and a published table.*Leave one of them out'),
    ({'model_name': 'encoded.table_m64_cifar10'}, ValueError, 'preserve=True and a published table'),
    ({'embedding_init': 'normal'}, ValueError, "init='normal' and preserve=True"),
    ({'num_bits': 8}, ValueError, 'num_bits=8; a table on which the level is linear needs at least 9'),
    ({'backbone': 'wrn10_2'}, RuntimeError, 'No pretrained weights exist for wrn10_2'),
    ({'model_name': 'wrn16_2_p2be', 'backbone': None, 'encoding': None}, TypeError, 'preserve'),
])  # fmt: skip
def test_requests_that_preserve_nothing(kwargs, error, words):
    given = {'model_name': 'encoded', 'backbone': 'wrn16_2', 'encoding': 'p2be', 'pretrained': True, 'preserve': True}
    with pytest.raises(error, match=words):
        timm.create_model(**{**given, **kwargs})


# parts, and what is refused


@pytest.mark.parametrize('change', [
    {'mean': (0.1, 0.2)},
    {'std': None},
    {'mean': (0.1, float('nan'), 0.2)},
    {'std': (1.0, 0.0, 1.0)},
])  # fmt: skip
def test_a_normalization_that_does_not_fit(change):
    model = _Network(nn.Conv2d(3, 4, 3))
    model.pretrained_cfg.update(change)
    conv, (name,) = model.first, change
    with pytest.raises(ValueError, match=rf'(?s){name}.*images of 3 channels.*Pass mean= and std= to convert') as error:
        convert(model, 'p2be', preserve=True)
    assert repr(change[name]) in str(error.value)
    assert model.first is conv
    assert convert(model, 'p2be').first is not conv  # a fresh stem needs no mean


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(ValueError, match='images of 1 channels; allowed are 1 finite values'):  # no guess from three
        convert(timm.create_model('test_resnet', in_chans=1), 'p2be', preserve=True)
    with torch.device('meta'):
        model = timm.create_model('test_resnet')
    with pytest.raises(ValueError, match=r'these are on the meta device\. Load them first'):
        convert(model, 'p2be', preserve=True)
