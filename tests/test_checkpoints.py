"""The one reader of weights: every kind of file, and what it refuses without running anything."""

import argparse
import hashlib
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from published import Bomb
from safetensors.torch import save_file

from timm_p2be.checkpoints import read_checkpoint, weights_sha256
from timm_p2be.robustness.pixel_model import load_model

TRACE = Path('unpickled')  # in the folder of each test
STATE = {'conv.weight': torch.arange(8.0).reshape(2, 4), 'norm.count': torch.tensor(3)}


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
    expected = {name: tensor + 1 for name, tensor in STATE.items()}
    assert_state(read_checkpoint(tmp_path / 'ema.pth.tar').state_dict, expected)
    torch.save({'state_dict': STATE, 'state_dict_ema': None}, tmp_path / 'plain.pth.tar')
    assert_state(read_checkpoint(tmp_path / 'plain.pth.tar').state_dict)


@pytest.mark.parametrize(('bits', 'error'), [(8, None), (10**12, 'does not fit encoded with 3 classes')])
def test_a_network_is_built_as_its_checkpoint_recorded_it(tmp_path: Path, bits: int, error: str | None) -> None:
    kwargs = {'backbone': 'test_resnet', 'num_bits': 8}
    model = timm.create_model('encoded', num_classes=3, **kwargs)
    args = argparse.Namespace(model='encoded', model_kwargs={**kwargs, 'num_bits': bits}, num_classes=3, img_size=40)
    torch.save({'state_dict': model.state_dict(), 'args': args}, tmp_path / 'last.pth.tar')
    with pytest.raises(ValueError, match=error) if error else nullcontext():
        found = load_model(f'encoded={tmp_path / "last.pth.tar"}')
        assert (found.num_classes, found.input_size) == (3, (3, 40, 40))


SAVED = [  # content of a .pth.tar
    ({'state_dict': STATE, 'args': Bomb(TRACE)}, 'it holds Python objects, which are never loaded'),
    ([torch.zeros(1)], 'not a training checkpoint but a list'),
    ({'state_dict': {'a': 1.0}}, 'its entries are not all tensors'),
    ({'state_dict': {0: torch.zeros(1)}}, 'its entries are not all tensors with names'),
    ({'epoch': 1, 'weights': STATE}, 'its entries are not all tensors'),
]
BYTES = [b'', b'no weights', pickle.dumps(Bomb(TRACE))]


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=rf'^--weights {path}: .*({message})') as raised:
        read_checkpoint(path, what='--weights')
    assert 'weights_only' not in str(raised.value)  # torch's way to run it all the same


@pytest.mark.parametrize(('content', 'message'), SAVED)
def test_what_holds_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, 'weights.pth.tar')
    assert_refused(Path('weights.pth.tar'), message)
    assert not TRACE.exists()


@pytest.mark.parametrize('name', ['weights.pth.tar', 'weights.safetensors'])
def test_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    assert_refused(path, r'no such file\. Runs write last\.pth\.tar')
    path.mkdir()
    assert_refused(path, 'no such file')
    path.rmdir()
    (save_file if name.endswith('safetensors') else torch.save)(STATE, str(path))
    for content in (path.read_bytes()[:-20], *BYTES):
        path.write_bytes(content)
        assert_refused(path, 'truncated or no(t a checkpoint| safetensors file)|never loaded')
    assert not TRACE.exists()


def test_the_digest_is_that_of_names_and_bytes_in_order() -> None:
    digest = hashlib.sha256()
    for name, tensor in STATE.items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    assert weights_sha256(STATE) == digest.hexdigest()
    assert weights_sha256(dict(reversed(STATE.items()))) != digest.hexdigest()
    flipped = {**STATE, 'conv.weight': STATE['conv.weight'] * torch.tensor([1.0, 1.0, 1.0, -1.0])}
    assert weights_sha256(flipped) != digest.hexdigest()
