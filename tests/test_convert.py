"""`convert` and `find_embedding`: what changes in a model, what does not, and what is refused."""

import copy

import pytest
import timm
import torch
import torchvision
from stems import random_levels
from timm.layers import StdConv2d
from timm.models import FeatureListNet, get_model_input_config, model_entrypoint
from torch import Tensor, nn

from timm_p2be import find_embedding
from timm_p2be.encodings import EmbeddingParameter
from timm_p2be.robustness.pixel_model import PixelModel
from timm_p2be.stem import EncodedConv2d, UnsupportedStemError, convert, encoded_stem


@pytest.mark.parametrize('preserve', [False, True])
def test_conversion_replaces_the_first_convolution_and_nothing_else(preserve):
    torch.manual_seed(0)
    model = timm.create_model('test_resnet')
    old, cls = model.get_submodule(model.pretrained_cfg['first_conv']), type(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    identities = {name: id(parameter) for name, parameter in model.named_parameters()}
    assert convert(model, 'p2be', num_bits=10, preserve=preserve) is model
    stem = model.conv1[0]
    assert type(model) is cls
    assert type(stem) is EncodedConv2d
    assert stem.in_chans == 3
    for name in ('out_channels', 'kernel_size', 'stride', 'padding', 'dilation'):
        assert getattr(stem, name) == getattr(old, name)
    assert stem.bias is None
    assert stem.weight.shape == (old.out_channels, 30, *old.kernel_size)
    assert stem.embedding.init == ('linear' if preserve else 'normal')  # the paper's unless it would lose the function
    after = model.state_dict()
    assert set(after) == set(before) | {'conv1.0.embedding.weight'}
    for name in set(before) - {'conv1.0.weight'}:
        assert torch.equal(after[name], before[name]), name
    kept = {name: id(parameter) for name, parameter in model.named_parameters() if name in identities}
    assert {name for name in identities if kept[name] != identities[name]} == {'conv1.0.weight'}
    assert model(random_levels(2, 3, 32, 32)).shape == (2, 1000)


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_efficientnet'])
def test_conversion_draws_the_stem_and_nothing_more(name):
    """The trial run, of a model in training with dropout, leaves the generator and the running statistics alone."""
    model = timm.create_model(name, drop_rate=0.5)
    conv = model.get_submodule(model.pretrained_cfg['first_conv'])
    statistics = {key: value.clone() for key, value in model.named_buffers()}
    torch.manual_seed(3)
    stem = EncodedConv2d(3, conv.out_channels, conv.kernel_size, num_bits=4)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    convert(model.train(), 'p2be', num_bits=4)
    assert torch.equal(torch.get_rng_state(), state)
    converted = model.get_submodule(model.pretrained_cfg['first_conv'])
    assert torch.equal(converted.weight, stem.weight)
    assert torch.equal(converted.embedding.weight, stem.embedding.weight)
    for key, value in model.named_buffers():
        assert torch.equal(value, statistics[key]), key


def test_conversion_keeps_the_training_flags():
    model = timm.create_model('test_resnet').train()
    model.layer1.eval()
    model.conv1[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    convert(model, 'thermometer', num_bits=4)
    after = {name: module.training for name, module in model.named_modules()}
    assert {name: after[name] for name in before} == before
    assert after['conv1.0.embedding'] == before['conv1.0']


@pytest.mark.parametrize('in_chans', [1, 3])
def test_cfg_is_the_models_own(in_chans):
    other = timm.create_model('test_resnet', in_chans=in_chans)
    model = timm.create_model('test_resnet', in_chans=in_chans)
    model.pretrained_cfg = model.default_cfg = other.pretrained_cfg  # as where one dict serves several models
    shared, registered = copy.deepcopy(other.pretrained_cfg), timm.get_pretrained_cfg('test_resnet')
    convert(model, 'onehot', num_bits=4)
    assert model.pretrained_cfg is model.default_cfg
    assert model.pretrained_cfg is not other.pretrained_cfg
    assert other.pretrained_cfg == shared
    assert timm.get_pretrained_cfg('test_resnet') == registered
    assert registered.mean != (0.0, 0.0, 0.0)
    expected = {**shared, 'mean': (0.0,) * in_chans, 'std': (1.0,) * in_chans}
    assert model.pretrained_cfg == expected


def test_features_of_a_converted_model():
    model = convert(timm.create_model('test_resnet'), 'p2be', num_bits=4).eval()
    levels = random_levels(2, 3, 64, 64)
    expected = model.forward_intermediates(levels, intermediates_only=True)
    wrapped = FeatureListNet(copy.deepcopy(model), out_indices=(0, 1, 2, 3, 4)).eval()
    assert len(expected) == 5
    for found, wanted in zip(wrapped(levels), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert find_embedding(wrapped).num_bits == 4
    model = convert(timm.create_model('test_resnet', features_only=True), 'p2be', num_bits=4)
    assert [maps.shape[1] for maps in model(random_levels(2, 3, 64, 64))] == model.feature_info.channels()
    assert find_embedding(model).num_bits == 4


def test_a_model_on_meta_converts_and_is_filled_later():
    source = convert(timm.create_model('test_resnet'), 'thermometer', num_bits=4).eval()
    with torch.device('meta'):
        model = timm.create_model('test_resnet')
    convert(model, 'thermometer', num_bits=4).eval()
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    model.to_empty(device='cpu').load_state_dict(source.state_dict())
    for module in model.modules():  # as timm's reinit_non_persistent_buffers
        if hasattr(module, 'init_non_persistent_buffers'):
            module.init_non_persistent_buffers()
    levels = random_levels(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(levels), source(levels))


# what cannot be converted


class _Network(nn.Module):
    """Two layers, in the shape that timm gives its models: `first_conv` in `pretrained_cfg`."""

    def __init__(self, first: nn.Module, first_conv: object = 'first') -> None:
        super().__init__()
        self.pretrained_cfg = {'architecture': 'toy', 'first_conv': first_conv, 'input_size': (3, 8, 8)}
        self.default_cfg = self.pretrained_cfg
        self.first = first
        self.second = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.first(images)


class _Rescaled(_Network):
    def forward(self, images: Tensor) -> Tensor:
        return self.first(images * 2 - 1)


class _TwoReaders(_Network):
    def forward(self, images: Tensor) -> Tensor:
        return self.first(images) + self.second(images)


class _Failing(_Network):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError('needs a mask')


class _Standardized(nn.Conv2d):
    pass


def _conv(**kwargs: object) -> nn.Conv2d:
    return nn.Conv2d(3, kwargs.pop('out_channels', 4), 1, **kwargs)


UNSUPPORTED = {
    'nothing declared': (_Network(_conv(), None), "toy declares no first convolution; pass first_conv='first'"),
    'several': (_Network(_conv(), ('first', 'second')), r"toy declares 2 first convolutions \['first', 'second'\]"),
    'misnamed': (_Network(_conv(), 'stem.0'), "toy declares the first convolution 'stem.0' but has no such module"),
    'linear': (_Network(nn.Linear(3, 4)), "toy has a Linear as its first convolution 'first'"),
    'subclass': (_Network(_Standardized(3, 4, 1)), 'toy has a _Standardized as its first convolution'),
    'standardized': (_Network(StdConv2d(3, 4, 1)), 'toy has a StdConv2d as its first.*preserve=True takes'),
    'grouped': (_Network(_conv(groups=3, out_channels=6)), "has a first convolution of 3 groups and 'zeros' padding"),
    'reflected': (_Network(_conv(padding_mode='reflect')), "of 1 groups and 'reflect' padding"),
    'transformed': (_Rescaled(_conv()), "toy transforms the image before its first convolution 'first'"),
    'two readers': (_TwoReaders(_conv()), r"toy reads the image in several layers \['first', 'second'\]"),
    'failing': (
        _Failing(_conv()),
        r'toy fails on a random image of shape \(3, 8, 8\) \(needs a mask; see input_size\)',
    ),
    'converted': (_Network(EncodedConv2d(3, 4, 1)), 'toy already reads pixel codes'),
    'no cfg': (nn.Sequential(_conv()), 'Sequential declares no first convolution'),
}


@pytest.mark.parametrize(('model', 'message'), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_stems_are_refused_and_left_as_they_were(model, message):
    model = copy.deepcopy(model).train()
    modules, cfg = dict(model.named_modules()), copy.deepcopy(getattr(model, 'pretrained_cfg', None))
    with pytest.raises(UnsupportedStemError, match=message) as error:
        convert(model, 'p2be', num_bits=4)
    assert str(error.value).endswith('convert needs exactly one plain convolution that reads the image.')
    assert dict(model.named_modules()) == modules
    assert getattr(model, 'pretrained_cfg', None) == cfg
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(('args', 'words'), [
    ({'encoding': 'rgb'}, "Unknown encoding 'rgb'"),
    ({'encoding': 'p2be', 'num_bits': 0}, 'num_bits=0'),
    ({'encoding': 'p2be', 'num_bits': 8, 'preserve': True}, 'num_bits=8.*at least 9'),
    ({'encoding': 'onehot', 'init': 'thermometer'}, 'needs a learned table'),
    ({'encoding': 'onehot', 'init': 'thermometer', 'preserve': True}, "init='thermometer' and preserve=True"),
    ({'encoding': 'p2be', 'init': 'normal', 'preserve': True}, "init='normal' and preserve=True.*'linear'"),
])  # fmt: skip
def test_bad_arguments_leave_the_model_alone(args, words):
    model = timm.create_model('test_resnet')
    stem, cfg = model.conv1[0], copy.deepcopy(model.pretrained_cfg)
    with pytest.raises(ValueError, match=words):
        convert(model, **args)
    assert model.conv1[0] is stem
    assert model.pretrained_cfg == cfg


# find_embedding


class _Wrapper(nn.Module):
    """What DistributedDataParallel looks like from outside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_embedding_is_found_through_wrappers():
    model = convert(timm.create_model('test_resnet'), 'p2be', num_bits=4)
    wrapped = _Wrapper(torch.compile(model, backend='eager'))
    for found in (model, wrapped, nn.Sequential(nn.Identity(), model), model.conv1):
        assert find_embedding(found) is model.conv1[0].embedding
    averaged = find_embedding(timm.utils.ModelEmaV3(model, decay=0.5))
    assert averaged is not model.conv1[0].embedding
    assert type(averaged.weight) is EmbeddingParameter


def test_a_model_of_pixel_values_has_no_embedding():
    with pytest.raises(ValueError, match=r'ResNet has no pixel embedding.*_p2be, _onehot, _thermometer.*convert'):
        find_embedding(timm.create_model('test_resnet'))


def test_the_encoded_stem_has_a_name():
    model = convert(timm.create_model('test_resnet'), 'onehot', num_bits=4)
    assert encoded_stem(model) == ('conv1.0', model.conv1[0])
    assert encoded_stem(_Wrapper(model)) == ('module.conv1.0', model.conv1[0])
    assert encoded_stem(model.conv1[0]) == ('', model.conv1[0])
    assert encoded_stem(timm.create_model('test_resnet')) == ('', None)


def test_networks_outside_timm_need_their_first_convolution_named():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5).eval()
    images, mean, std = random_levels(2, 3, 64, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalized = torchvision.transforms.functional.normalize(images / 255, mean, std)
    with pytest.raises(UnsupportedStemError, match="ResNet declares no first convolution; pass first_conv='conv1'"):
        convert(model, 'p2be')
    with torch.no_grad():
        expected = model(normalized)
        with pytest.raises(ValueError, match='Pass mean= and std= to convert'):
            convert(model, 'p2be', preserve=True, first_conv='conv1')
        convert(model, 'p2be', preserve=True, first_conv='conv1', mean=mean, std=std)
        torch.testing.assert_close(model(images), expected, atol=1e-3, rtol=1e-4)
        assert torch.equal(PixelModel(model)(images), model(images))
    small = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))
    with pytest.raises(UnsupportedStemError, match='see input_size'):
        convert(small, 'onehot', first_conv='0')
    assert convert(small, 'onehot', first_conv='0', input_size=(1, 8, 8))(random_levels(2, 1, 8, 8)).shape == (2, 2)


@pytest.mark.parametrize(('name', 'given'), [('wrn10_2_p2be', {}), ('encoded', {'backbone': 'test_resnet'})])
def test_misspelled_arguments_are_explained(name, given):
    with pytest.raises(TypeError, match=r"'num_bit'; did you mean num_bits\?"):
        timm.create_model(name, num_bit=8, **given)
    with pytest.raises(ValueError, match="backbone='test_resnet'"):
        timm.create_model('encoded', backbone='test_resnett')


# every family of timm, without memory or computation: it converts, or is refused for its reason


REFUSED = {
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
FAST = {*REFUSED, 'byobnet', 'convnext', 'efficientnet', 'resnet', 'swin_transformer', 'vision_transformer'}
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
    if module not in REFUSED:
        _convert(name, 'meta')
        return
    with pytest.raises(UnsupportedStemError, match=rf'^{name} {REFUSED[module]}'):
        _convert(name, 'meta')


@pytest.mark.parametrize('name', ['davit_tiny', 'test_efficientnet', 'convit_tiny'])
def test_with_values(name: str) -> None:
    _convert(name, 'cpu')
