"""hub_cards/ has one folder for each artifact of ours, and says of it what is true."""

import json
import re
import shutil
import sys
from pathlib import Path

import published
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from timm_p2be import PixelEmbedding, find_embedding
from timm_p2be.files import file_sha256
from timm_p2be.hub.card import render_card
from timm_p2be.hub.repository import read_contents
from timm_p2be.models import weights
from timm_p2be.models.tables import TABLES

sys.path.insert(0, str(Path(__file__).parents[1] / 'hub_cards'))
import ship

CARDS = Path(__file__).parents[1] / 'hub_cards'
FOLDERS = sorted(path for path in CARDS.iterdir() if path.is_dir()) if CARDS.is_dir() else []


def test_every_shipped_model_has_a_card():
    models = {folder.name for folder in FOLDERS if read_contents(folder).kind == 'model'}
    assert models == set(weights.shipped_weights())


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_a_card_describes_what_is_shipped(folder, tmp_path, monkeypatch, capsys):
    record = read_contents(folder)
    config = json.loads((folder / 'config.json').read_text())
    text = (folder / 'README.md').read_text()
    is_table = record.kind == 'embedding'
    (tag,) = [tag for tag, name in TABLES.items() if name == folder.name] if is_table else [None]
    name = f'{record.provenance["model"]}.{tag}' if is_table else folder.name
    pictures = sorted(path.name for path in folder.glob('*.png'))
    shown = {'codes.png': record.encoding != 'rgb', 'corruptions.png': record.provenance['results'].get('corruptions')}
    assert pictures == [name for name, there in shown.items() if there]
    assert text == render_card(config, pictures=pictures, shipped=name)
    Image.new('RGB', (32, 32)).save(tmp_path / 'image.png')
    monkeypatch.chdir(tmp_path)
    exec(re.search(r'```python\n(.*?)```', text, re.DOTALL)[1], {})  # type: ignore[index]
    if is_table:
        table = PixelEmbedding.from_pretrained(folder)  # checks the whole folder
        assert table.provenance == record.provenance
        return
    assert re.fullmatch(r'(\d+\.\d% [a-z]+\n){5}', capsys.readouterr().out)
    results = json.loads((folder / 'results.json').read_text())
    assert {**config['timm_p2be']['provenance']['results'], 'files': results['files']} == results
    assert record.weights_sha256 == weights.shipped_weights()[folder.name]['sha256']
    assert record.provenance == weights.shipped_weights()[folder.name]['provenance']
    assert results['clean']['weights'] == 'as published'
    assert not (folder / 'model.safetensors').exists()
    codes = results.get('codes')
    if codes is not None:
        learned = find_embedding(timm.create_model(folder.name, pretrained=True)).codes()
        assert codes['distinct'] == len(learned.unique(dim=0))


@pytest.mark.parametrize('folder', sorted(CARDS.glob('*.augmix_cifar10')), ids=lambda folder: folder.name)
def test_the_files_behind_a_card_are_here(folder):
    kept = (CARDS.parent / 'benchmarks/results/shipped').glob('*.json')
    assert json.loads((folder / 'results.json').read_text())['files'].keys() <= {*map(file_sha256, kept)}


def test_the_figures_in_the_readme_are_those_of_the_cards():
    figures = []
    for name in weights.shipped_weights():
        results = json.loads((CARDS / name / 'results.json').read_text())
        figures.append(results['clean']['error'])
        if results['corruptions']:
            figures.append(results['corruptions']['mean_corruption_error'])
        if results.get('codes'):
            figures.append(100 * results['codes']['moved'] / results['codes']['bits'])
    readme = (CARDS.parent / 'README.md').read_text(encoding='utf-8')
    paragraph = readme[readme.index('Weights that ship with the package') : readme.index('Tables without a network')]
    assert sorted(re.findall(r'\d+\.\d+', paragraph)) == sorted(f'{figure:.1f}' for figure in figures)


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_a_card_names_no_place_of_ours(folder):
    for path in folder.iterdir():
        if path.suffix in ('.md', '.json'):
            assert not re.search(r'(?<![:/\w.])/(?:home|root|tmp|work|Users)\b|[A-Z]:\\', path.read_text()), path


def test_shipping_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, 'FOLDER', tmp_path / 'weights')
    (tmp_path / 'weights').mkdir()
    published.model(tmp_path / 'release', encoding='p2be', num_bits=8)
    for name in ('wrn10_2_p2be.first', 'wrn10_2_p2be.second'):
        ship.ship(tmp_path / 'release', name, tmp_path / 'cards')
    assert [*weights.shipped_weights()] == ['wrn10_2_p2be.first', 'wrn10_2_p2be.second']
    assert weights.shipped_weights()['wrn10_2_p2be.first']['provenance'] == published.PROVENANCE
    assert {path.name for path in (tmp_path / 'cards' / name).iterdir()} == {'README.md', 'codes.png', 'config.json'}
    weights.verify_weights(Path(weights.weights_path(name)))
    shipped = load_file(weights.weights_path(name))
    state = load_file(tmp_path / 'release' / 'model.safetensors')
    assert shipped.keys() == state.keys()
    assert all(torch.equal(shipped[key], value) for key, value in state.items())


def test_shipping_a_table(tmp_path):
    published.embedding(tmp_path / 'release')
    (tmp_path / 'release' / 'notes.txt').write_text('mine')
    ship.ship(tmp_path / 'release', 'p2be-m16', tmp_path / 'cards')
    files = {path.name for path in (tmp_path / 'cards' / 'p2be-m16').iterdir()}
    assert files == {'README.md', 'codes.png', 'config.json', 'model.safetensors'}
    assert PixelEmbedding.from_pretrained(tmp_path / 'cards' / 'p2be-m16').num_bits == 16


def test_what_is_no_release_is_not_shipped(tmp_path, capsys):
    published.model(tmp_path / 'release')
    with pytest.raises(ValueError, match=r'is a model wrn10_2_p2be .*begins with wrn10_2_p2be'):
        ship.ship(tmp_path / 'release', 'wrn16_2_p2be.any', tmp_path / 'cards')
    for name in ('', '..', 'a/b', '.hidden'):
        with pytest.raises(ValueError, match='it becomes a folder'):
            ship.ship(tmp_path / 'release', name, tmp_path / 'cards')
    shutil.rmtree(tmp_path / 'release')
    with pytest.raises(SystemExit, match='2'):
        ship.main([str(tmp_path / 'release'), 'wrn10_2_p2be.cifar10'])
    assert 'config.json' in capsys.readouterr().err
    assert not (tmp_path / 'cards').exists()
