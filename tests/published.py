"""Repositories as they are published: an embedding and a small model, as files in memory."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

import timm_p2be
from timm_p2be.encodings.codes import binarize, fixed_codes
from timm_p2be.encodings.table_file import TableFile

PROVENANCE: dict[str, Any] = {
    'dataset': {'name': 'CIFAR-10', 'id': 'uoft-cs/cifar10', 'split': 'train', 'note': 'compressed once'},
    'model': 'wrn10_2_p2be',
    'recipe': 'cifar10_plain_cpu.yaml',
    'flags': {'lr': 0.1},
    'seed': 42,
    'epochs': 15,
    'smoothness': 1.0,
    'reduction': 'mean',
    'base_model': None,
    'results': {
        'clean': {'error': 8.4, 'images': 10000, 'split': 'test', 'weights': 'as published', 'source': 'a.json'},
        'corruptions': {'label': 'CIFAR-10-C-style', 'images': 2000, 'mean_corruption_error': 34.4, 'mce': None},
        'attacks': [{'name': 'lspga-official', 'eps': 8, 'images': 200, 'accuracy': 0.0}],
    },
}
CARD = b'---\ntags:\n- timm-p2be\n- p2be\n---\n# A card\n'


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def contents(folder: Path) -> dict[str, bytes]:
    """Return name -> bytes of the files in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def latents(num_bits: int, seed: int = 0) -> torch.Tensor:
    """Return a (256, num_bits) table that drifts with the level, as learned ones do."""
    steps = torch.randn(256, num_bits, generator=torch.Generator().manual_seed(seed))
    return steps.cumsum(dim=0) * 0.2 + steps[0]


def embedding(folder: Path, num_bits: int = 16, encoding: str = 'p2be', seed: int = 0) -> dict[str, bytes]:
    """Write an embedding with a card into `folder` and return its files."""
    weight = latents(num_bits, seed) if encoding == 'p2be' else None
    codes = binarize(weight) if weight is not None else fixed_codes(encoding, num_bits)
    record = PROVENANCE if weight is not None else None
    TableFile(encoding, 'normal', codes, weight, record, timm_p2be.__version__).write(folder)
    (folder / 'README.md').write_bytes(CARD)
    return contents(folder)


def model(folder: Path, name: str = 'wrn10_2_p2be', **changes: Any) -> dict[str, bytes]:
    """Write a model's repository into `folder` and return its files; `changes` go into config.json's 'timm_p2be'."""
    torch.manual_seed(0)
    args = {} if name == 'wrn10_2' else {'num_bits': 8}
    network = timm.create_model(name, num_classes=10, **args).eval()
    save_for_hf(network, folder, model_args=args, safe_serialization=True)
    amend(folder, changes)
    (folder / 'README.md').write_bytes(CARD)
    return contents(folder)


def amend(folder: Path, changes: dict[str, Any]) -> None:
    """Give a model's config.json the record of this package, `changes` applied."""
    path = folder / 'config.json'
    digest = hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()
    record = {'format_version': 1, 'package_version': '0.1.0', 'provenance': PROVENANCE, 'weights_sha256': digest}
    config = json.loads(path.read_text()) | {'timm_p2be': record | changes}
    path.write_text(json.dumps(config))


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> dict[str, bytes]:
    """Change a model's weights, the sha256 in its config.json as well, and return its files."""
    save_file(change(load_file(folder / 'model.safetensors')), folder / 'model.safetensors', metadata={'format': 'pt'})
    amend(folder, {})
    return contents(folder)


def poison(folder: Path) -> dict[str, bytes]:
    """Put NaN into a model's weights, otherwise consistent, and return its files."""
    return edit(folder, lambda state: state | {'layer1.0.conv1.weight': state['layer1.0.conv1.weight'] * float('nan')})
