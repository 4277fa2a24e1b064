"""Every model we register, through timm's own interface."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import FeatureInfo, list_models, model_entrypoint, save_for_hf
from torch import Tensor, nn

import timm_p2be.models
from timm_p2be.stem import find_embedding

NAMES = [name for name in list_models() if model_entrypoint(name).__module__.startswith('timm_p2be.')]
ENCODED = [name for name in NAMES if name.endswith(('_p2be', '_onehot', '_thermometer')) or name == 'encoded']

PROTOCOL = (Path(__file__).parents[1] / 'docs' / 'protocol.md').read_text(encoding='utf-8').replace('\n', ' ')

# parameters with 100 classes (ResNets: 1000) of the RGB network, as of the authors' code and the paper's networks
# (docs/protocol.md, section 6), and kernel x outputs of its stem
BACKBONES = {
    'wrn40_2': (2_255_156, 100, 9 * 16),
    'wrn16_2': (703_284, 100, 9 * 16),
    'wrn10_2': (315_316, 100, 9 * 16),
    'densenetbc100_12': (800_032, 100, 9 * 24),
    'densenet40_12': (1_100_428, 100, 9 * 24),
    'resnext29_4x32d': (6_900_132, 100, 9 * 64),
    'resnet18': (11_689_512, 1000, 49 * 64),
    'resnet34': (21_797_672, 1000, 49 * 64),
    'resnet50': (25_557_032, 1000, 49 * 64),
}
# as few layers as go for the tests of what does not depend on their number
SHALLOW = {
    'densenetbc100_12': {'depth': 10},
    'densenet40_12': {'depth': 7},
    'resnext29_4x32d': {'depth': 11},
    'encoded': {'backbone': 'wrn10_2'},
    'resnet': {'layers': (1, 1, 1, 1)},
}
jit_is_deprecated = pytest.mark.filterwarnings('ignore:.*torch.jit.*deprecated')


def create(name: str, **kwargs: Any) -> nn.Module:
    """Build a shallow `name`."""
    shallow = next((changes for backbone, changes in SHALLOW.items() if name.startswith(backbone)), {})
    return timm.create_model(name, **{**shallow, **kwargs})


def _images(model: nn.Module, batch: int = 2) -> Tensor:
    """Random images, 32x32, or 64x64 for the ResNets, whose stems and stages reduce 32 times."""
    chans, size = model.in_chans, min(model.default_cfg['input_size'][-1], 64)
    assert isinstance(chans, int)
    return torch.rand(batch, chans, size, size, generator=torch.Generator().manual_seed(0))


# one network of each architecture, and each encoding once, for the quick run
QUICK = ('wrn10_2', 'wrn10_2_p2be', 'encoded', 'densenetbc100_12_p2be', 'densenet40_12_onehot', 'resnext29_4x32d_p2be')
QUICK += ('resnet18_thermometer',)
every_model = pytest.mark.parametrize(
    'name', [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)


def test_every_expected_name_is_registered() -> None:
    suffixes = ('_p2be', '_onehot', '_thermometer')
    ours = {b for b in BACKBONES if not b.startswith('resnet')} | {'resnext29_4x32d', 'encoded'}
    assert set(NAMES) == ours | {backbone + suffix for backbone in BACKBONES for suffix in suffixes}
    for module in timm_p2be.models.__all__:  # timm files models under the last part of the module's name
        assert {model_entrypoint(n).__module__ for n in list_models(module=module)} == {f'timm_p2be.models.{module}'}


@pytest.mark.parametrize('name', [n for n in NAMES if n != 'encoded'])
def test_parameter_counts_and_cfg(name: str) -> None:
    backbone = max((b for b in BACKBONES if name.startswith(b)), key=len)
    params, num_classes, per_plane = BACKBONES[backbone]
    if name != backbone:
        params += (3 * 64 - 3) * per_plane + (256 * 64 if name.endswith('_p2be') else 0)
    assert name not in ('wrn40_2_p2be', 'resnet50', 'resnet50_p2be') or f' {params:,} ' in PROTOCOL
    with torch.device('meta'):
        model = timm.create_model(name)
    classifier = (num_classes - model.num_classes) * (model.num_features + 1)
    assert sum(p.numel() for p in model.parameters()) + classifier == params
    if name == backbone and f'| `{name}` | ' in PROTOCOL and num_classes == 100:
        assert f'| {params - classifier:,} / {params:,} |' in PROTOCOL
        assert f' {(3 * 64 - 3) * per_plane:,} ' in PROTOCOL  # by which an encoding adds to the stem
    cfg = model.pretrained_cfg
    state = model.state_dict()
    assert cfg['architecture'] == name
    assert cfg['num_classes'] == model.num_classes
    assert f'{cfg["first_conv"]}.weight' in state
    assert state[f'{cfg["classifier"]}.weight'].shape[0] == model.num_classes
    data = timm.data.resolve_data_config(model=model)
    assert data['input_size'] == ((3, 224, 224) if num_classes == 1000 else (3, 32, 32))
    assert (data['mean'], data['std']) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@every_model
def test_forward_and_backward(name: str) -> None:
    model = create(name, num_classes=7)
    images = _images(model)
    logits = model(images)
    assert logits.shape == (2, 7)
    logits.square().mean().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    assert model(images[:1]).shape == (1, 7)  # also in training: augmix's DenseNet squeezes a batch of one away
    assert model.eval()(images[:1]).shape == (1, 7)
    if name in ENCODED:
        levels = (images * 255).to(torch.uint8)
        torch.testing.assert_close(model(levels), model(levels / 255), rtol=0, atol=0)


@every_model
def test_features_and_intermediates(name: str) -> None:
    model = create(name).eval()
    images = _images(model)
    with torch.no_grad():
        final, features = model.forward_intermediates(images)
        torch.testing.assert_close(final, model.forward_features(images), rtol=0, atol=0)
        torch.testing.assert_close(features[-1], final, rtol=0, atol=0)
        only = model.forward_intermediates(images, indices=[0, -3], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(only[-1], features[-3], rtol=0, atol=0)

        extractor = create(name, features_only=True).eval()
        extracted = extractor(images)
        model.prune_intermediate_layers([1])
        torch.testing.assert_close(model.forward_features(images), features[1], rtol=0, atol=0)
    info = FeatureInfo(extractor.feature_info.info, len(features))
    assert extractor.default_cfg['mean'] == (0.0, 0.0, 0.0)
    assert [f.shape for f in extracted] == [f.shape for f in features]
    assert [f.shape[1] for f in features] == list(info.channels())
    assert [images.shape[-1] // f.shape[-1] for f in features] == list(info.reduction())
    assert len(create(name, features_only=True, out_indices=(0, 2))(images)) == 2


@pytest.mark.parametrize('name', ['wrn10_2', 'encoded'])
@pytest.mark.parametrize('feature_cls', ['list', 'getter', 'fx'])
def test_every_feature_wrapper(name: str, feature_cls: str) -> None:
    torch.manual_seed(0)
    model = create(name).eval()
    torch.manual_seed(0)
    extractor = create(name, features_only=True, feature_cfg={'feature_cls': feature_cls}).eval()
    images = _images(model)
    with torch.no_grad():
        torch.testing.assert_close(list(extractor(images)), model.forward_intermediates(images)[1])


@every_model
def test_gradient_checkpointing_recomputes_the_same_gradients(name: str) -> None:
    model = create(name)
    images = _images(model)
    runs: list[int] = []
    model.layer2[-1].register_forward_pre_hook(lambda *_: runs.append(1))

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        runs.clear()
        model(images).square().mean().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    assert len(runs) == 1
    model.set_grad_checkpointing()
    checkpointed = gradients()
    assert len(runs) == 2
    torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-6)
    with torch.no_grad():  # the same blocks, the same switch
        model.eval()
        torch.testing.assert_close(model.forward_intermediates(images)[0], model.forward_features(images))


@every_model
def test_dropout_is_before_the_classifier_and_only_in_training(name: str) -> None:
    model = create(name, drop_rate=0.9).eval()
    images = _images(model)
    with torch.no_grad():
        features = model.forward_features(images)
        kept = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(model.fc(kept), model(images))
        dropped = model.train().forward_head(features, pre_logits=True)
    assert (dropped == 0).float().mean() > (kept == 0).float().mean() + 0.3


def test_wideresnet_drops_inside_its_blocks() -> None:
    model = create('wrn10_2_p2be', proj_drop_rate=0.5)
    images = _images(model)
    assert not torch.equal(model(images), model(images))


@every_model
def test_reset_classifier(name: str) -> None:
    model = create(name).eval()
    images = _images(model)
    model.reset_classifier(3)
    assert (model.num_classes, model(images).shape, model.get_classifier()) == (3, (2, 3), model.fc)
    model.reset_classifier(0)
    assert (model.num_classes, model(images).shape) == (0, (2, model.head_hidden_size))
    model.reset_classifier(0, '')
    assert model(images).shape[:2] == (2, model.num_features)
    assert model(images).ndim == 4
    model.reset_classifier(4, 'catavgmax')
    assert model.head_hidden_size == 2 * model.num_features
    assert model(images).shape == (2, 4)
    assert create(name, num_classes=0, global_pool='')(images).ndim == 4


@every_model
def test_layer_decay_groups(name: str) -> None:
    """timm's layer decay puts the table with the stem and counts every block."""
    model = create(name)
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert {n.split('.')[0] for n in groups[0]} <= {'conv1', 'bn1'}
    blocks = sum(len(layer) for n, layer in model.named_children() if n.startswith('layer'))
    assert len(groups) == 1 + blocks + 1
    assert len(timm.models.group_parameters(model, model.group_matcher(coarse=True))) <= 6


@every_model
def test_saves_and_loads_as_timm_model(name: str, tmp_path: Path) -> None:
    codes: dict[str, Any] = {'num_bits': 16} if name in ENCODED else {}
    model = create(name, num_classes=5, **codes).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    images = _images(model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=0)
    assert type(loaded) is type(model)
    wanted = {**codes, 'num_classes': 5, **({'backbone': 'wrn10_2'} if name == 'encoded' else {})}
    assert json.loads((tmp_path / 'config.json').read_text())['model_args'].items() >= wanted.items()


@pytest.mark.parametrize(('name', 'saved'), [('wrn10_2_p2be', 3), ('wrn10_2_onehot', 4)])
def test_encoded_weights_adapt_to_other_channels(
    name: str, saved: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The planes are bit-major; every bit's colors adapt by timm's rule: summed, or repeated and scaled."""
    model = create(name, num_bits=8, in_chans=saved)
    save_for_hf(model, tmp_path, safe_serialization=True)
    colors = model.conv1.weight.detach().unflatten(1, (8, saved))
    for chans in (1, 2, 3, 4, 5):
        loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, in_chans=chans)
        kept = colors[:, :, [i % saved for i in range(chans)]] * saved / chans
        wanted = colors.sum(2, keepdim=True) if chans == 1 else kept
        torch.testing.assert_close(loaded.conv1.weight.detach().unflatten(1, (8, chans)), wanted)
        assert loaded.pretrained_cfg['input_size'] == (chans, 32, 32)
        assert loaded(_images(loaded)).shape == (2, 10)
    assert 'Loading unchanged' not in caplog.text  # which timm says of a stem that it did not adapt itself


@pytest.mark.parametrize('in_chans', [1, 3])
def test_weights_of_another_code_length_are_refused(in_chans: int, tmp_path: Path) -> None:
    save_for_hf(create('wrn10_2_p2be', num_bits=8), tmp_path, safe_serialization=True)
    with pytest.raises(ValueError, match=r'Got num_bits=4, but the weights have codes of 8 bits. Use 8'):
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True, num_bits=4, in_chans=in_chans)


@jit_is_deprecated
@every_model
def test_torchscript(name: str) -> None:
    model = create(name, scriptable=True).eval()
    images = _images(model)
    with torch.no_grad():
        expected = model(images)
        # scripted models convolve code planes, whose sums have another order
        torch.testing.assert_close(torch.jit.script(model)(images), expected, rtol=1e-4, atol=1e-4)


@every_model
def test_torch_export_and_channels_last(name: str) -> None:
    model = create(name).eval()
    images = _images(model)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)
        last = model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(last(images.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'name', ['wrn16_2_onehot', 'densenetbc100_12_p2be', 'densenet40_12', 'resnext29_4x32d', 'resnet18_thermometer']
)
def test_initial_weights(name: str) -> None:
    """docs/protocol.md, section 6: convolutions N(0, sqrt(2 / (k k out))), bias 0, ResNeXt's classifier by Kaiming."""
    model = create(name)
    for layer in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        std = math.sqrt(2 / (layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels))
        assert layer.weight.std().item() == pytest.approx(std, rel=0.15)
        assert abs(layer.weight.mean().item()) < 6 * std / math.sqrt(layer.weight.numel())
    if name == 'resnet18_thermometer':
        return  # timm's own head and zeroed last norms
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.weight.eq(1).all()
        assert norm.bias.eq(0).all()
    first = model.fc
    model.reset_classifier(50)
    for fc in (first, model.fc):  # a new classifier starts like the first
        assert fc.bias.eq(0).all()
        std = math.sqrt(2 / fc.in_features) if name.startswith('resnext') else math.sqrt(1 / 3 / fc.in_features)
        assert fc.weight.std().item() == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize('name', ['wrn10_2', 'resnet18_p2be', 'encoded'])
def test_unknown_arguments_and_missing_weights_are_refused(name: str) -> None:
    with torch.device('meta'):
        with pytest.raises(TypeError, match='no_such_argument'):
            create(name, no_such_argument=1)
        with pytest.raises(RuntimeError, match=f'No pretrained weights exist for {name}'):
            create(name, pretrained=True)


@pytest.mark.parametrize('name', ['wrn10_2_p2be', 'encoded'])
def test_embedding_arguments(name: str) -> None:
    embedding = find_embedding(create(name, num_bits=8, embedding_init='thermometer', freeze_embedding=True))
    assert (embedding.num_bits, embedding.init, embedding.weight.requires_grad) == (8, 'thermometer', False)
    assert find_embedding(create(name)).weight.requires_grad


@pytest.mark.parametrize(('name', 'kwargs', 'words'), [
    ('encoded', {'backbone': None}, 'backbone=None.*timm.create_model'),
    ('encoded', {'backbone': 'resnet19'}, "backbone='resnet19'.*list_models"),
    ('encoded', {'backbone': 'encoded'}, "backbone='encoded'.*RGB"),
    ('encoded', {'backbone': 'wrn10_2_p2be'}, 'wrn10_2_p2be already reads pixel codes'),
    ('encoded', {'backbone': 'wrn10_2', 'encoding': 'gray'}, "Unknown encoding 'gray'.*p2be"),
    ('wrn10_2_p2be', {'num_bits': 0}, 'num_bits=0.*at least 1'),
    ('wrn10_2_p2be', {'embedding_init': 'zeros'}, "Unknown init 'zeros'.*normal"),
    ('wrn10_2_onehot', {'freeze_embedding': True}, "'onehot' is fixed"),
    ('wrn10_2', {'depth': 41}, r'depth=41.*6 n \+ 4 layers: 10, 16, 22, 40'),
    ('densenet40_12', {'depth': 41}, r'depth=41; a DenseNet has 3 n \+ 4 layers: 7, 10, 13'),
    ('resnext29_4x32d', {'depth': 28}, r'depth=28.*9 n \+ 2'),
])  # fmt: skip
def test_bad_arguments(name: str, kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        timm.create_model(name, **kwargs)


def test_bad_requests() -> None:
    with pytest.raises(TypeError, match='encoding'):  # the one in the name cannot be replaced
        timm.create_model('wrn10_2_p2be', encoding='onehot')
    model = create('wrn10_2')
    images = _images(model)
    with pytest.raises(IndexError, match='out of range'):
        model.forward_intermediates(images, indices=[4])
    with pytest.raises(ValueError, match="only gives 'NCHW'"):
        model.forward_intermediates(images, output_fmt='NLC')


def test_factory_arguments_reach_the_parameters() -> None:
    model = create('resnext29_4x32d', dtype=torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert {p.device.type for p in create('densenetbc100_12', device='meta').parameters()} == {'meta'}


@pytest.mark.parametrize('backbone', ['convnext_atto', 'mobilenetv3_small_050', 'vit_tiny_patch16_224.augreg_in21k'])
def test_encoded_takes_the_backbones_input_and_head(backbone: str) -> None:
    with torch.device('meta'):
        model = timm.create_model('encoded', backbone=backbone, num_bits=4)
        features = timm.create_model('encoded', backbone=backbone, num_bits=4, features_only=True)
        wanted = timm.create_model(backbone, features_only=True)
    ours, theirs = model.pretrained_cfg, timm.models.get_pretrained_cfg(backbone).to_dict()
    for field in ('input_size', 'fixed_input_size', 'num_classes', 'first_conv', 'classifier', 'crop_pct', 'pool_size'):
        assert ours[field] == theirs[field]
    assert (ours['mean'], ours['architecture'], ours.get('tag'), ours['url']) == ((0.0, 0.0, 0.0), 'encoded', None, '')
    assert model.num_classes == theirs['num_classes']
    assert len(features.feature_info.channels()) == len(wanted.feature_info.channels())


def test_encoded_by_name_round_trips(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {'backbone': 'convnext_atto', 'encoding': 'p2be', 'num_bits': 8, 'num_classes': 4}
    model = timm.create_model('encoded', **kwargs).eval()
    images = torch.rand(1, 3, 64, 64)
    expected = model(images)
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    torch.testing.assert_close(loaded(images), expected, rtol=0, atol=0)
    assert loaded.pretrained_cfg['crop_pct'] == model.pretrained_cfg['crop_pct']
    finetuned = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, num_classes=9)
    torch.testing.assert_close(finetuned.stem[0].weight, model.stem[0].weight)
    assert finetuned.head.fc.out_features == 9


def test_encoded_as_timms_scripts_create_it() -> None:
    """Scripts resolve the cfg of the bare name first and hand it over, with overlays such as a weight file applied."""
    args = timm.models.resolve_model_input_args(
        'encoded', backbone='wrn10_2', pretrained_cfg_overlay={'crop_pct': 0.5, 'num_classes': 6}
    )
    cfg = timm.create_model(**args).pretrained_cfg
    assert (cfg['input_size'], cfg['crop_pct'], cfg['num_classes']) == ((3, 32, 32), 0.5, 6)
    with pytest.raises(RuntimeError, match=r'Invalid pretrained tag \(nope\) for encoded'):
        timm.create_model('encoded.nope', backbone='wrn10_2')
