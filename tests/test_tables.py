"""Names with a tag that stands for a table: `resnet18_p2be.table_m64_cifar10`."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from timm_p2be.encodings import EmbeddingParameter, PixelEmbedding
from timm_p2be.hub.find_table import find_table
from timm_p2be.hub.repository import read_contents
from timm_p2be.models import tables
from timm_p2be.robustness.pixel_model import load_model
from timm_p2be.stem import find_embedding

TAG = 'table_m64_cifar10'
ROOT = Path(__file__).parents[1]
P2BE = timm.list_models('*_p2be')


def latents(model: nn.Module) -> Tensor:
    return find_embedding(model).weight


def shipped(tag: str = TAG) -> Tensor:
    return PixelEmbedding.from_pretrained(tables.table_path(tag)).weight.detach()


def test_every_table_in_the_checkout_has_a_tag_and_is_in_the_wheel() -> None:
    folders = [path for path in (ROOT / 'hub_cards').iterdir() if path.is_dir()]
    embeddings = {folder.name for folder in folders if read_contents(folder).kind == 'embedding'}
    assert set(tables.TABLES.values()) == embeddings
    assert all(tag == 'table_' + name[len('p2be-') :].replace('-', '_') for tag, name in tables.TABLES.items())
    pyproject = (ROOT / 'pyproject.toml').read_text()
    assert all(f'"hub_cards/{name}"' in pyproject for name in embeddings)


def test_timm_lists_the_tags_of_every_p2be_network() -> None:
    listed = set(timm.list_pretrained('*.table_*'))
    assert listed == {f'{name}.{tag}' for name in [*P2BE, 'encoded'] for tag in tables.TABLES}
    assert 'resnet18_p2be' not in timm.list_models(pretrained=True)
    with pytest.raises(RuntimeError, match='No pretrained weights exist for resnet18_p2be'):  # a table is no default
        timm.create_model('resnet18_p2be', pretrained=True)


@pytest.mark.parametrize('tag', tables.TABLES)
@pytest.mark.parametrize('name', ['wrn10_2_p2be', 'encoded'])
def test_the_table_is_loaded_and_frozen_under_fresh_weights(name: str, tag: str) -> None:
    backbone = {'backbone': 'wrn10_2'} if name == 'encoded' else {}
    states = []
    for source in ({}, {'embedding': str(tables.table_path(tag)), 'freeze_embedding': True}):
        torch.manual_seed(0)
        given: dict[str, Any] = {**backbone, **source}
        model = timm.create_model(name if source else f'{name}.{tag}', pretrained=not source, num_classes=3, **given)
        embedding = find_embedding(model)
        assert isinstance(embedding.weight, EmbeddingParameter)
        assert not embedding.weight.requires_grad
        assert embedding.provenance == read_contents(tables.table_path(tag)).provenance
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert torch.equal(latents(model), shipped(tag))


def test_the_table_may_be_trained_on_or_left_out() -> None:
    model = timm.create_model(f'wrn10_2_p2be.{TAG}', pretrained=True, freeze_embedding=False)
    assert latents(model).requires_grad
    assert torch.equal(latents(model), shipped())
    assert latents(timm.create_model(f'wrn10_2_p2be.{TAG}', num_bits=8)).requires_grad  # not pretrained


def test_as_timms_scripts_create_it() -> None:
    args = timm.models.resolve_model_input_args(f'wrn10_2_p2be.{TAG}', pretrained=True)
    model = timm.create_model(**args)
    assert torch.equal(latents(model), shipped())
    assert not latents(model).requires_grad


def test_a_file_of_weights_goes_before_the_table(tmp_path: Path) -> None:
    weights = timm.create_model('wrn10_2_p2be').state_dict()
    save_file(weights, tmp_path / 'net.safetensors')
    overlay = {'file': str(tmp_path / 'net.safetensors')}
    model = timm.create_model(f'wrn10_2_p2be.{TAG}', pretrained=True, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert latents(model).requires_grad


def test_a_saved_model_brings_its_own_weights(tmp_path: Path) -> None:
    model = timm.create_model(f'encoded.{TAG}', backbone='wrn10_2', pretrained=True)
    with torch.no_grad():
        latents(model).add_(0.125)
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert not latents(loaded).requires_grad


@pytest.mark.parametrize(
    ('name', 'kwargs', 'message'),
    [
        ('wrn10_2_p2be.table_nope', {}, "Got the tag 'table_nope'; the tables that ship are table_m64_cifar10,"),
        ('encoded.table_nope', {'backbone': 'wrn10_2'}, "Got the tag 'table_nope'; .* any other one by embedding="),
         (f'encoded.{TAG}', {'backbone': 'wrn10_2', 'encoding': 'onehot'}, "encoding 'onehot' is fixed. Use 'p2be'"),
        (f'wrn10_2_p2be.{TAG}', {'num_bits': 8}, rf'num_bits=8, but .* wrn10_2_p2be.{TAG} .* 64 bits. Use 64'),
        (f'wrn10_2_p2be.{TAG}', {'embedding_init': 'thermometer'}, 'the table is loaded, so it is not drawn'),
        (f'wrn10_2_p2be.{TAG}', {'embedding': 'a/b'}, 'is a table itself. Leave out embedding or the tag'),
        (f'wrn10_2_p2be.{TAG}', {'device': 'meta'}, 'the meta device, which holds no values'),
        (f'wrn10_2_p2be.{TAG}', {'pretrained_cfg_overlay': {'file': '/nowhere'}}, 'There is no folder /nowhere'),
    ],
)  # fmt: skip
def test_bad_requests(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **{'pretrained': True, **kwargs})


def test_the_name_is_known_elsewhere() -> None:
    """`timm-p2be show` takes it; benchmarks refuse it, for there are no trained weights."""
    found = find_table(f'resnet50_p2be.{TAG}').file
    assert torch.equal(found.latents, shipped())
    assert found.provenance == read_contents(tables.table_path(TAG)).provenance
    with pytest.raises(ValueError, match=f'wrn10_2_p2be.{TAG} has a table, but no trained weights; name a checkpoint'):
        load_model(f'wrn10_2_p2be.{TAG}')
