"""Pretrained weights: those that ship, and those of folders and Hub repositories; checked before use, no pickles."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import published
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import get_arch_pretrained_cfgs, list_models, model_entrypoint

import timm_p2be
from timm_p2be.encodings.table_file import names_table
from timm_p2be.hub.training_record import check_training_record
from timm_p2be.models import weights
from timm_p2be.stem import EncodedConv2d, find_embedding

RELEASED = set(weights.shipped_weights())
NAME, TABLE = 'someone/net', 'conv1.embedding.weight'
every_release = pytest.mark.parametrize('name', sorted(RELEASED))


def test_what_ships_is_listed_and_nothing_else():
    """File, sha256 and a tag that timm lists go together."""
    assert {path.stem for path in weights.FOLDER.glob('*.safetensors')} == RELEASED
    ours = [name for name in list_models() if model_entrypoint(name).__module__.startswith('timm_p2be.')]
    known = {tag: cfg for name in ours for tag, cfg in get_arch_pretrained_cfgs(name).items() if cfg.has_weights}
    tags = {tag: cfg for tag, cfg in known.items() if not names_table(tag)}  # tables: test_tables.py
    assert {tag: cfg.file for tag, cfg in tags.items()} == {name: weights.weights_path(name) for name in RELEASED}
    assert all(cfg.license and cfg.description and 'CIFAR-10' in cfg.description for cfg in tags.values())
    assert 'wrn40_2_p2be.augmix_cifar10' in timm.list_pretrained('*p2be*')
    for name in RELEASED:
        check_training_record(weights.shipped_weights()[name]['provenance'])
    assert sum(path.stat().st_size for path in weights.FOLDER.iterdir()) < 20e6


@every_release
def test_shipped_weights_arrive(name):
    saved = load_file(weights.weights_path(name))
    state = timm.create_model(name, pretrained=True).state_dict()
    assert state.keys() == saved.keys()
    for key, value in state.items():
        assert value.is_floating_point() == saved[key].is_floating_point()
        assert value.dtype in (torch.float32, torch.int64)
        assert torch.equal(value, saved[key].to(value.dtype)), key
        half = saved[key].dtype == torch.float16
        assert not (half and (key.endswith('embedding.weight') or 'norm' in key or 'bn' in key)), key


@every_release
def test_shipped_weights_adapt(name):
    """To other classes and channels, and to feature extraction: what fits stays, bit for bit."""
    create, saved = partial(timm.create_model, name, pretrained=True), load_file(weights.weights_path(name))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = create().eval()
    with torch.no_grad():
        body = plain.forward_features(images)  # type: ignore[operator]
        features = create(features_only=True).eval()(images)
        assert torch.equal(features[-1], body)
        for classes, shape in ((100, (2, 100)), (0, (2, plain.num_features))):
            other = create(num_classes=classes).eval()
            assert other(images).shape == shape
            assert torch.equal(other.forward_features(images), body)  # type: ignore[operator]
    stem = plain.get_submodule('conv1')
    bits = stem.embedding.num_bits if isinstance(stem, EncodedConv2d) else 1
    colors = saved['conv1.weight'].float().unflatten(1, (bits, 3))
    rounding = {} if bits > 1 else {'rtol': 2e-3, 'atol': 1e-3}  # timm sums float16 stems of RGB in float16
    for chans, wanted in ((1, colors.sum(2)), (4, colors[:, :, [0, 1, 2, 0]] * 3 / 4)):
        adapted = create(in_chans=chans)
        kernel = adapted.get_parameter('conv1.weight').detach()
        torch.testing.assert_close(kernel.unflatten(1, (bits, chans)).squeeze(2), wanted.squeeze(2), **rounding)
        if bits > 1 and 'conv1.embedding.weight' in saved:
            assert torch.equal(adapted.get_parameter('conv1.embedding.weight'), saved['conv1.embedding.weight'])


def test_damaged_shipped_weights_are_refused(tmp_path, monkeypatch):
    folder = Path(shutil.copytree(weights.FOLDER, tmp_path / 'weights'))
    monkeypatch.setattr(weights, 'FOLDER', folder)
    path = folder / 'wrn16_2_p2be.augmix_cifar10.safetensors'
    overlay = {'pretrained_cfg_overlay': {'file': str(path)}}
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for damage, found in ((lambda: path.write_bytes(content), '[0-9a-f]{64}'), (path.unlink, 'None')):
        damage()
        with pytest.raises(ValueError, match=rf'are damaged: their sha256 is {found}.* Reinstall: pip install'):
            timm.create_model('wrn16_2_p2be', pretrained=True, **overlay)
    assert timm.create_model('wrn16_2_p2be', **overlay)  # nobody asks for the file
    (folder / 'shipped.json').write_text('{}')
    overlay['pretrained_cfg_overlay']['file'] = str(folder / 'wrn16_2.cifar10.safetensors')
    with pytest.raises(ValueError, match='not the released None'):
        timm.create_model('wrn16_2', pretrained=True, **overlay)


@pytest.mark.parametrize('kind', ['alone', 'beside', 'named in the config'])
@pytest.mark.parametrize(('name', 'place'), [('wrn10_2', 'folder'), ('wrn10_2_p2be', 'hub')])
def test_a_pickle_is_never_opened(hub, tmp_path, name, kind, place):
    where, trace = tmp_path / 'net', tmp_path / 'trace'
    published.model(where, name)
    for file in ('pytorch_model.bin', 'model.pth', 'evil.bin'):
        (where / file).write_bytes(pickle.dumps(published.Bomb(trace)))
    if kind != 'beside':
        (where / 'model.safetensors').unlink()
    if kind == 'named in the config':
        config = json.loads((where / 'config.json').read_text())
        config['pretrained_cfg'] |= {'hf_hub_filename': 'evil.bin', 'custom_load': 'hf', 'file': 'evil.bin'}
        (where / 'config.json').write_text(json.dumps(config))
    hub.put(NAME, published.contents(where))
    source = f'local-dir:{where}' if place == 'folder' else f'hf-hub:{NAME}'
    if kind == 'beside':
        assert timm.create_model(source, pretrained=True)
    else:
        words = 'without hf_hub_filename' if kind == 'named in the config' else "has no file 'model.safetensors'"
        with pytest.raises(ValueError, match=words):
            timm.create_model(source, pretrained=True)
    assert not trace.exists()
    assert not hub.count(r'\.(bin|pth)$')


def test_revisions_are_pinned_to_the_commit_that_was_checked(hub, tmp_path, monkeypatch):
    first = hub.put(NAME, published.model(tmp_path / 'one'), tag='v1')
    published.model(tmp_path / 'two')
    second = hub.put(NAME, published.edit(tmp_path / 'two', lambda state: {k: v + 1 for k, v in state.items()}))
    for revision, commit, where in (('@v1', first, 'one'), ('', second, 'two'), (f'@{first}', first, 'one')):
        model = timm.create_model(f'hf-hub:{NAME}{revision}', pretrained=True)
        saved = load_file(tmp_path / where / 'model.safetensors')
        assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
        assert model.pretrained_cfg['hf_hub_id'] == f'{NAME}@{commit}'  # type: ignore[index]
    assert hub.count(f'GET .*{first}/model.safetensors') == 1
    asked = len(hub.requests)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    offline = timm.create_model(f'hf-hub:{NAME}@v1', pretrained=True)
    assert torch.equal(offline.state_dict()[TABLE], load_file(tmp_path / 'one' / 'model.safetensors')[TABLE])
    assert len(hub.requests) == asked


def test_damaged_weights_are_refused(hub, tmp_path):
    """What else verification finds: test_pull.py."""
    where = tmp_path / 'net'
    hub.put(NAME, published.model(where) and published.poison(where))
    for source in (f'local-dir:{where}', f'hf-hub:{NAME}'):
        with pytest.raises(ValueError, match=r'layer1.0.conv1.weight holds values that are not finite'):
            timm.create_model(source, pretrained=True)


def test_weights_that_state_no_sha256_are_taken(tmp_path):
    """timm's own save_for_hf writes none."""
    published.model(tmp_path / 'net')
    path = tmp_path / 'net' / 'config.json'
    for ours in (None, {'weights_sha256': None}):
        path.write_text(json.dumps(json.loads(path.read_text()) | {'timm_p2be': ours}))
        assert find_embedding(timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True)).num_bits == 8
    path.write_text(json.dumps(json.loads(path.read_text()) | {'timm_p2be': 'text'}))
    with pytest.raises(ValueError, match=r'timm_p2be is .text.; allowed is an object'):
        timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True)


@pytest.mark.parametrize(('classes', 'strict'), [(10, {'pretrained_strict': False}), (7, {})])
def test_weights_of_another_network_are_refused(tmp_path, classes, strict):
    """timm loads what fits as soon as the classes differ; the rest would stay random."""
    published.model(tmp_path / 'net')
    published.edit(tmp_path / 'net', lambda state: {key: state[key] for key in ('fc.weight', 'fc.bias')})
    with pytest.raises(ValueError, match=r'weights lack \d+ tensors of the model, conv1.weight for one'):
        timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True, num_classes=classes, **strict)


@pytest.mark.parametrize(
    ('tensor', 'shape', 'classes'),
    [('conv1.weight', (16, 5, 3, 3), 10), ('layer2.0.conv1.weight', (8, 8, 3, 3), 7), ('fc.weight', (100, 128), 10)],
)
def test_the_tensor_that_does_not_fit_is_named(tmp_path, tensor, shape, classes):
    published.model(tmp_path / 'net')
    published.edit(tmp_path / 'net', lambda state: state | {tensor: torch.zeros(shape)})
    with pytest.raises(RuntimeError, match=tensor.removesuffix('.weight')):
        timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True, num_classes=classes)
    if tensor == 'fc.weight':  # a classifier that is replaced may have any shape
        assert timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True, num_classes=7)


@pytest.mark.slow
def test_a_read_only_copy_of_the_package_works(tmp_path):
    shutil.copytree(Path(timm_p2be.__file__).parent, tmp_path / 'timm_p2be', ignore=shutil.ignore_patterns('*.pyc'))
    places = sorted([tmp_path / 'timm_p2be', *(tmp_path / 'timm_p2be').rglob('*')])
    for place in places:
        place.chmod(0o555)
    code = """if True:
        import timm, timm_p2be, torch
        model = timm.create_model('wrn16_2_p2be', pretrained=True)
        model(torch.rand(2, 3, 32, 32)).sum().backward()
        print(timm_p2be.__file__)"""
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path), 'PYTHONDONTWRITEBYTECODE': '1', 'OMP_NUM_THREADS': '1'}
    said = subprocess.check_output([sys.executable, '-c', code], env=environment, cwd=tmp_path, text=True)
    for place in places:
        place.chmod(0o755)
    assert said.strip() == str(tmp_path / 'timm_p2be' / '__init__.py')
    assert sorted([tmp_path / 'timm_p2be', *(tmp_path / 'timm_p2be').rglob('*')]) == places, 'for root, who may write'


def test_a_config_of_the_hub_names_no_folder_of_ours(hub, tmp_path):
    published.embedding(tmp_path / 'secret', num_bits=8)
    published.model(tmp_path / 'net')
    path = tmp_path / 'net' / 'config.json'
    config = json.loads(path.read_text())
    config['model_args'] = {'embedding': str(tmp_path / 'secret'), 'num_classes': 10}
    path.write_text(json.dumps(config))
    hub.put(NAME, published.contents(tmp_path / 'net'))
    with pytest.raises(ValueError, match='no repository on the Hub'):
        timm.create_model(f'hf-hub:{NAME}', pretrained=False)
    assert timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=False)  # one's own folder may
    hub.put('tester/table', published.contents(tmp_path / 'secret'))
    config['model_args']['embedding'] = 'tester/table'
    hub.put(NAME, {'config.json': json.dumps(config).encode()})
    assert find_embedding(timm.create_model(f'hf-hub:{NAME}', pretrained=False)).num_bits == 8
