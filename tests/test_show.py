"""`timm-p2be show`: every kind of source, its figures against the table, the picture, and what is refused."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import published
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from timm_p2be.encodings.codes import binarize, onehot_codes, thermometer_codes
from timm_p2be.encodings.statistics import code_statistics, latent_statistics
from timm_p2be.encodings.table_file import MAX_TABLE_BYTES as MAX_BYTES
from timm_p2be.encodings.table_file import codes_sha256
from timm_p2be.hub.pictures import codes_picture
from timm_p2be.stem import find_embedding

Said = Callable[..., str]
Show = Callable[..., dict[str, Any]]


@pytest.fixture
def show(printed: Said) -> Show:
    return lambda *args: json.loads(printed('show', *args, '--json'))


def _expected(codes: torch.Tensor) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(code_statistics(codes))))


@pytest.mark.parametrize(
    ('args', 'codes'),
    [
        (['thermometer'], thermometer_codes(64)),
        (['onehot', '--num-bits', '256'], onehot_codes(256)),
    ],
)
def test_fixed_tables(show, args, codes):
    shown = show(*args)
    assert shown['statistics'] == _expected(codes)
    assert shown['codes_sha256'] == codes_sha256(codes)
    assert shown['latents'] is None
    assert shown['source'] == args[0]


def test_an_embedding_from_the_hub_and_from_a_folder(hub, tmp_path, show, printed):
    commit = hub.put('tester/table', published.embedding(tmp_path / 'table'), tag='v1')
    hub.put('tester/table', published.embedding(tmp_path / 'later', seed=1))
    weight = published.latents(16)
    remote = show('tester/table@v1')
    assert remote['statistics'] == _expected(binarize(weight))
    assert remote['latents'] == asdict(latent_statistics(weight))
    assert remote['provenance'] == published.PROVENANCE
    assert remote['commit'] == commit
    requests = len(hub.requests)
    for source in (str(tmp_path / 'table'), f'local-dir:{tmp_path / "table"}'):
        assert show(source) == {**remote, 'source': source, 'commit': None}
    assert len(hub.requests) == requests, 'a folder needs no Hub'

    text = printed('show', 'tester/table@v1')
    statistics = code_statistics(binarize(weight))
    assert f'256 levels of 16 bits, {statistics.distinct} different codes' in text
    assert f'{100 * latent_statistics(weight).saturated:.1f} % have |w| >= 1' in text
    for line in (
        'dataset     name CIFAR-10, id uoft-cs/cifar10, split train, note compressed once',
        'clean       error 8.4, images 10000, split test, weights as published, source a.json',
        'attack      name lspga-official, eps 8, images 200, accuracy 0.0',
        f'commit      {commit}',
        f'sha256      {codes_sha256(binarize(weight))} of the packed codes',
    ):
        assert f'\n{line}\n' in text
    figures = dict(zip((1, 2, 4, 8, 16, 32, 64, 128), text.split('mean bits')[1].split()[:8], strict=True))
    assert figures == {apart: f'{statistics.distances[apart]:.2f}' for apart in figures}


@pytest.mark.parametrize('name', ['wrn10_2_p2be', 'wrn10_2_thermometer'])
def test_the_table_in_a_model(hub, tmp_path, show, name):
    commit = hub.put('tester/net', published.model(tmp_path / 'net', name))
    model = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True)
    codes = find_embedding(model).codes().detach()
    shown = show('tester/net')
    assert shown['statistics'] == _expected(codes)
    assert shown['commit'] == commit
    assert shown['provenance'] == published.PROVENANCE
    assert (shown['latents'] is None) == (name == 'wrn10_2_thermometer')


def test_the_table_in_a_checkpoint_and_in_weights(tmp_path, show):
    model = timm.create_model('wrn10_2_p2be', num_bits=8)
    save_file(model.state_dict(), tmp_path / 'net.safetensors')
    run = {'state_dict': model.state_dict(), 'args': argparse.Namespace(model='wrn10_2_p2be'), 'epoch': 3}
    torch.save(run, tmp_path / 'last.pth.tar')
    for name, origin in (('net.safetensors', 'file of weights'), ('last.pth.tar', "of 'wrn10_2_p2be'")):
        shown = show(str(tmp_path / name))
        assert shown['statistics'] == _expected(find_embedding(model).codes())
        assert shown['origin'].endswith(origin)
    shipped = find_embedding(timm.create_model('wrn16_2_p2be', pretrained=True))
    assert show('wrn16_2_p2be')['codes_sha256'] == codes_sha256(shipped.codes())


def test_constant_bits_are_named(tmp_path, printed):
    model = timm.create_model('wrn10_2_p2be', num_bits=12)
    weight = find_embedding(model).weight
    with torch.no_grad():
        weight[:, :10] = -0.5
        weight[:, 10] = 0.5
    torch.save(model.state_dict(), tmp_path / 'a.pt')
    assert 'never on: 10 (bits 0, 1, 2, 3, 4, 5, 6, 7, ...); always on: 1 (bit 10)' in printed(
        'show', str(tmp_path / 'a.pt')
    )


def test_the_picture(tmp_path, printed, refused):
    path = tmp_path / 'codes.png'
    assert f'picture     {path}\n' in printed('show', 'thermometer', '--num-bits', '8', '--output', str(path))
    with Image.open(path) as picture:
        title = 'thermometer   thermometer, M = 8'
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(codes_picture(thermometer_codes(8), title)))
    assert 'is there already' in refused('show', 'onehot', '--output', str(path))
    assert 'unknown kind of image' in refused('show', 'onehot', '--output', str(tmp_path / 'codes.xyz'))
    assert {entry.name for entry in tmp_path.iterdir()} == {'codes.png'}


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        (['thermometer', '--num-bits', '0'], 'num_bits=0'),
        (['wrn10_2_onehot', '--num-bits', '8'], 'only onehot and thermometer come in any length'),
        (['wrn10_2_p2be'], 'its table would be random. Name a checkpoint'),
        (['wrn10_2'], 'has no pixel embedding'),
        (['p2be'], "Unknown table 'p2be'"),
        (['onehot', '--overwrite'], '--overwrite needs --output'),
    ],
)
def test_misuse(args, said, refused):
    assert said in refused('show', *args)


def test_weights_that_cannot_be_shown_are_not_downloaded(hub, tmp_path, refused):
    table = published.embedding(tmp_path / 'table')
    hub.put('tester/table', table | {'model.safetensors': bytes(MAX_BYTES + 1)})
    assert f"'model.safetensors' of tester/table@{hub.repos['tester/table'].head.sha} has" in refused(
        'show', 'tester/table'
    )
    hub.put('tester/rgb', published.model(tmp_path / 'rgb', 'wrn10_2'))
    assert 'it has no table' in refused('show', 'tester/rgb')
    assert 'has 0 learned tables' in refused('show', tmp_path / 'rgb/model.safetensors')
    hub.put('tester/net', published.model(tmp_path / 'net', format_version=2))
    assert 'format_version is 2' in refused('show', 'tester/net')
    assert hub.count('config.json')
    assert not hub.count('model.safetensors')


def test_what_fails_its_check_is_not_shown(hub, tmp_path, refused):
    hub.put('tester/net', published.model(tmp_path / 'net', weights_sha256='0' * 64))
    assert 'but config.json states' in refused('show', 'tester/net')
    model = timm.create_model('wrn10_2_p2be', num_bits=8)
    state = model.state_dict()
    state['conv1.embedding.weight'][0, 0] = float('inf')
    torch.save(state, tmp_path / 'inf.pt')
    assert 'not finite' in refused('show', str(tmp_path / 'inf.pt'))


def test_a_fixed_table_in_a_folder_with_the_name_of_a_model(tmp_path, show, printed, monkeypatch):
    """train.py's output folder is often called so; it counts only once it holds something to show."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'wrn10_2_onehot').mkdir()
    assert show('wrn10_2_onehot')['statistics'] == _expected(onehot_codes(64))
    published.embedding(tmp_path / 'wrn10_2_onehot', encoding='thermometer')
    assert show('wrn10_2_onehot')['statistics'] == _expected(thermometer_codes(16))
    text = printed('show', 'wrn10_2_onehot')
    assert 'wrn10_2_onehot: embedding, thermometer codes of 16 bits\n' in text
    assert f'{codes_sha256(thermometer_codes(16))} of the packed codes' in text
    assert 'latents' not in text
