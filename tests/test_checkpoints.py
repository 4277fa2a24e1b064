"""The one reader of weights: every kind of file, and what it refuses without running anything."""

import argparse
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from timm_p2be.checkpoints import read_checkpoint, weights_sha256

STATE = {'conv.weight': torch.arange(8.0).reshape(2, 4), 'norm.count': torch.tensor(3)}


class Foreign:
    """Stands for any class in somebody else's pickle."""

    def __reduce__(self) -> Any:
        return (print, ('unpickled code ran',))


def assert_state(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = STATE) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_a_training_checkpoint(tmp_path: Path) -> None:
    content = {'state_dict': STATE, 'epoch': 3, 'arch': 'net', 'args': argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / 'last.pth.tar')
    found = read_checkpoint(tmp_path / 'last.pth.tar')
    assert_state(found.state_dict)
    assert found.args == {'lr': 0.1}
    assert found.raw.keys() == content.keys()
    assert found.raw['epoch'] == 3


@pytest.mark.parametrize('name', ['weights.pth', 'weights.pt', 'weights.safetensors'])
def test_bare_weights(tmp_path: Path, name: str) -> None:
    (save_file if name.endswith('safetensors') else torch.save)(STATE, str(tmp_path / name))
    found = read_checkpoint(str(tmp_path / name))
    assert_state(found.state_dict)
    assert (found.args, found.raw) == ({}, {})


def test_averaged_weights_go_first_and_prefixes_go(tmp_path: Path) -> None:
    average = {f'module._orig_mod.{name}': tensor + 1 for name, tensor in STATE.items()}
    torch.save({'state_dict': STATE, 'state_dict_ema': average}, tmp_path / 'ema.pth.tar')
    assert_state(
        read_checkpoint(tmp_path / 'ema.pth.tar').state_dict, {name: tensor + 1 for name, tensor in STATE.items()}
    )


def test_no_averaged_weights_are_no_weights(tmp_path: Path) -> None:
    torch.save({'state_dict': STATE, 'state_dict_ema': None}, tmp_path / 'plain.pth.tar')
    assert_state(read_checkpoint(tmp_path / 'plain.pth.tar').state_dict)


def _broken(kind: str, folder: Path) -> Path:
    path = folder / ('weights.safetensors' if 'safetensors' in kind else 'weights.pth.tar')
    if kind == 'folder':
        path.mkdir()
    elif kind.startswith('truncated'):
        (save_file if 'safetensors' in kind else torch.save)(STATE, str(path))
        path.write_bytes(path.read_bytes()[:-20])
    elif kind in ('empty', 'empty safetensors'):
        path.touch()
    elif kind in ('text', 'text safetensors'):
        path.write_text('no weights')
    elif kind == 'pickle in safetensors':
        path.write_bytes(pickle.dumps(Foreign()))
    elif kind == 'pickle':
        path.write_bytes(pickle.dumps(Foreign()))
    elif kind != 'missing':
        contents = {
            'class': {'state_dict': STATE, 'args': Foreign()},
            'blocked': {'state_dict': STATE, 'args': os.getcwd},
            'list': [torch.zeros(1)],
            'numbers': {'state_dict': {'a': 1.0}},
            'numbered': {'state_dict': {0: torch.zeros(1)}},
            'numbered weights': {0: torch.zeros(1)},
            'half an average': {'state_dict': STATE, 'state_dict_ema': torch.zeros(2)},
            'half a checkpoint': {'epoch': 1, 'weights': STATE},
        }
        torch.save(contents[kind], path)
    return path


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('missing', r'no such file\. Runs write last\.pth\.tar'),
        ('folder', 'no such file'),
        ('truncated', 'truncated or not a checkpoint'),
        ('empty', 'truncated or not a checkpoint'),
        ('text', 'truncated or not a checkpoint'),
        ('pickle', 'truncated or not a checkpoint|never loaded'),
        ('class', 'it holds Python objects, which are never loaded'),
        ('blocked', 'it holds Python objects, which are never loaded'),
        ('list', 'not a training checkpoint but a list'),
        ('numbers', 'its entries are not all tensors'),
        ('numbered', 'its entries are not all tensors with names'),
        ('numbered weights', 'its entries are not all tensors with names'),
        ('half an average', 'its entries are not all tensors'),
        ('half a checkpoint', 'its entries are not all tensors'),
        ('truncated safetensors', 'truncated or no safetensors file'),
        ('empty safetensors', 'truncated or no safetensors file'),
        ('text safetensors', 'truncated or no safetensors file'),
        ('pickle in safetensors', 'truncated or no safetensors file'),
    ],
)
def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, message: str) -> None:
    path = _broken(kind, tmp_path)
    with pytest.raises(ValueError, match=rf'^--weights {path}: .*({message})') as raised:
        read_checkpoint(path, what='--weights')
    assert 'weights_only' not in str(raised.value)  # torch's way to run it all the same
    assert 'unpickled code ran' not in capsys.readouterr().out


def test_the_digest_is_that_of_names_and_bytes_in_order() -> None:
    digest = hashlib.sha256()
    for name, tensor in STATE.items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    assert weights_sha256(STATE) == digest.hexdigest()
    assert weights_sha256(dict(reversed(STATE.items()))) != digest.hexdigest()
    flipped = {**STATE, 'conv.weight': STATE['conv.weight'] * torch.tensor([1.0, 1.0, 1.0, -1.0])}
    assert weights_sha256(flipped) != digest.hexdigest()
