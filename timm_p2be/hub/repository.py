"""What a folder or a Hub repository of ours holds, checked: a table of codes, or a model that timm builds."""

import inspect
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg
from torch import Tensor

from timm_p2be.checkpoints import read_checkpoint
from timm_p2be.encodings.codes import ENCODINGS, LEVELS
from timm_p2be.encodings.table_file import (
    CARD_FILE,
    CONFIG,
    CONFIG_FILE,
    MAX_TABLE_BYTES,
    WEIGHTS_FILE,
    check_config,
    is_sha256,
    read_table_file,
)
from timm_p2be.files import Schema, check_schema, file_sha256, read_json, shown
from timm_p2be.hub.fetch import MAX_BYTES, fetch, local_folder, resolved_commit, split_revision
from timm_p2be.hub.training_record import check_training_record

FILES = (CONFIG_FILE, WEIGHTS_FILE)
RELEASE_FILES = (
    *FILES,
    CARD_FILE,
    'results.json',
    'codes.png',
    'corruptions.png',
)  # nothing else is ever published or pulled
MODEL_FORMAT_VERSION = 1
DEFAULT_BITS = 64  # of the models' entrypoints

# arguments that are for whoever loads a model; timm hands its functions all that model_args names
_LOADERS = (timm.create_model, build_model_with_cfg)
LOADING_ARGS = {name for function in _LOADERS for name in inspect.signature(function).parameters} - {'kwargs'}
LOADING_ARGS |= {'device', 'dtype', 'features_only', 'pruned'}
_MODEL: Schema = {
    'architecture': (
        'a name of timm.list_models() (update by: pip install -U timm timm-p2be)',
        lambda value: (
            isinstance(value, str)
            and re.fullmatch(r'\w[\w.-]{0,127}', value, re.ASCII) is not None
            and timm.is_model(value)
        ),
    ),
    'model_args': ('an object', lambda value: isinstance(value, dict)),
    'timm_p2be': ('an object or null', lambda value: value is None or isinstance(value, dict)),
}
_OURS: Schema = {
    'format_version': (
        f'{MODEL_FORMAT_VERSION} (update by: pip install -U timm-p2be)',
        lambda value: type(value) is int and value == MODEL_FORMAT_VERSION,
    ),
    'weights_sha256': ('64 hexadecimal digits or null', lambda value: value is None or is_sha256(value)),
}
_MAX_TEXT_BYTES = 2**24  # of cards and results; config.json has a lower limit
_AGAIN = 'Pull or save it again, or ask its publisher.'


@dataclass(frozen=True)
class Contents:
    """What config.json says of a repository."""

    kind: str  # 'embedding' or 'model'
    encoding: str  # 'rgb' for a model of pixel values
    num_bits: int | None  # None for 'rgb'
    provenance: dict[str, Any] | None  # training record, see `timm_p2be.hub.training_record`
    architecture: str | None = None  # of a model
    weights_sha256: str | None = None  # of a model's model.safetensors, if stated
    codes_sha256: str | None = None  # of an embedding's packed codes
    num_classes: int = 0  # the largest number that a model's config.json names
    is_ours: bool = True  # timm's own config.json of a model lacks the key 'timm_p2be'

    def describe(self) -> str:
        """Return kind, architecture, encoding and code length in a few words."""
        codes = 'pixel values' if self.encoding == 'rgb' else f'{self.encoding} codes of {self.num_bits} bits'
        return f'embedding, {codes}' if self.kind == 'embedding' else f'model {self.architecture} on {codes}'


def read_contents(folder: Path) -> Contents:
    """Return what a folder's config.json says, checked; the weights are not looked at."""
    path = folder / CONFIG_FILE
    config = read_json(path)
    if 'format' in config:
        check_config(config, str(path))
        check_training_record(config['provenance'], f'{path}: provenance')
        encoding, num_bits, digest = config['encoding'], config['num_bits'], config['codes_sha256']
        return Contents('embedding', encoding, num_bits, config['provenance'], codes_sha256=digest)
    if 'architecture' not in config:
        raise ValueError(
            f'{path} describes neither an embedding (format timm-p2be-embedding) nor a model of timm (architecture). '
            'Name a repository that timm-p2be publish wrote; timm-p2be list --remote NAMESPACE shows some.'
        )
    return _model_contents(config, str(path))


def _model_contents(config: dict[str, Any], where: str) -> Contents:
    """Return what the config.json of a model says: timm's own, with the key 'timm_p2be' if we wrote it."""
    check_schema({'model_args': {}, 'timm_p2be': None, **config}, _MODEL, where, extra=True)
    architecture, args, ours = config['architecture'], config.get('model_args', {}), config.get('timm_p2be')
    stated = {'format_version': MODEL_FORMAT_VERSION, 'weights_sha256': None, 'provenance': None, **(ours or {})}
    check_schema(stated, _OURS, f'{where}: timm_p2be', extra=True)
    check_training_record(stated['provenance'], f'{where}: provenance')
    refused = args.keys() & LOADING_ARGS
    if architecture != 'encoded':  # of which both are part of the name
        refused |= args.keys() & {'backbone', 'encoding'}
    if ours is not None:  # whose table is in the weights alone; what timm saves by itself may name one
        refused |= args.keys() & {'embedding'}
    if refused:
        raise ValueError(
            f'{where}: model_args must not name {", ".join(sorted(refused))}; allowed is what the network itself is '
            f'made from. {_AGAIN}'
        )
    cfg = config.get('pretrained_cfg', config)
    if not isinstance(cfg, dict) or cfg.get('hf_hub_filename') is not None:  # which leads to another file
        raise ValueError(f'{where}: pretrained_cfg must be an object without hf_hub_filename. {_AGAIN}')
    encoding, num_bits = encoding_of(architecture, args), args.get('num_bits', DEFAULT_BITS)
    if encoding != 'rgb':
        found = {'encoding': encoding, 'num_bits': num_bits}
        check_schema(found, {name: CONFIG[name] for name in found}, where)
    counts = [part.get('num_classes') or 0 for part in (config, cfg, args)]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f'{where}: num_classes is {shown(counts)}; allowed is an integer from 0. {_AGAIN}')
    return Contents(
        'model',
        encoding,
        None if encoding == 'rgb' else num_bits,
        stated['provenance'],
        architecture,
        stated['weights_sha256'],
        num_classes=max(counts),
        is_ours=ours is not None,
    )


def encoding_of(architecture: str, model_args: dict[str, Any]) -> Any:
    """Return what a model reads: the encoding in its arguments, or at the end of its name, or 'rgb'."""
    architecture = architecture.partition('.')[0]  # without a tag
    named = next((name for name in ENCODINGS if architecture.endswith(f'_{name}')), 'rgb')
    return model_args.get('encoding', named if architecture != 'encoded' else ENCODINGS[0])


def fetch_repository(
    source: str | os.PathLike[str],
    revision: str | None = None,
    *,
    optional: Sequence[str] = (),
    check: Callable[[Contents], None] | None = None,
    **options: Any,
) -> tuple[Path, Contents]:
    """Return a folder with config.json and model.safetensors of one commit, and what the first says of it.

    config.json comes first: what it says decides how large the weights may be, and `check` raises if they are not
    wanted. They are not verified. The other arguments are those of `timm_p2be.hub.fetch.fetch`.
    """
    folder = fetch(source, FILES[:1], revision, optional=optional, max_bytes=_MAX_TEXT_BYTES, **options)
    contents = read_contents(folder)
    if check is not None:
        check(contents)
    pinned: str | Path = folder
    if local_folder(source) is None:
        pinned = f'hf-hub:{split_revision(str(source).removeprefix("hf-hub:"))[0]}@{resolved_commit(folder)}'
    limit = MAX_TABLE_BYTES if contents.kind == 'embedding' else MAX_BYTES
    return fetch(pinned, FILES, max_bytes=limit, **options), contents


def verified_weights(folder: Path, contents: Contents) -> dict[str, Tensor]:
    """Return the weights of a model's repository."""
    path = folder / WEIGHTS_FILE
    if contents.weights_sha256 not in (None, found := file_sha256(path)):
        raise ValueError(f'{path} has sha256 {found}, but config.json states {contents.weights_sha256}. {_AGAIN}')
    state = read_checkpoint(path, what='weights').state_dict
    largest = max((size for tensor in state.values() for size in tensor.shape), default=0)
    if contents.num_classes > largest:  # or a network of that size would be built before they are found not to fit
        raise ValueError(
            f'{path} has no tensor for the {contents.num_classes} classes of config.json; its largest size is '
            f'{largest}. {_AGAIN}'
        )
    for name, tensor in state.items():
        if not bool(tensor.float().isfinite().all()):
            raise ValueError(f'{path}: {name} holds values that are not finite. Ask the publisher for sound weights.')
        got, allowed = (tensor.dtype, list(tensor.shape)), (torch.float32, [LEVELS, contents.num_bits])
        # float16 turns -1e-9 into -0, a 0 into a 1
        if name.endswith('embedding.weight') and contents.encoding == 'p2be' and got != allowed:
            raise ValueError(f'{path}: {name} is {got}; allowed is {allowed}. Ask the publisher for sound weights.')
    return state


def verify(folder: Path) -> Contents:
    """Return what a folder's config.json says, after checking it and the weights beside it."""
    contents = read_contents(folder)
    if contents.kind == 'embedding':
        read_table_file(folder)
    else:
        verified_weights(folder, contents)
    return contents


def fetch_verified(source: str, **options: Any) -> tuple[Path, Contents]:
    """Return what `fetch_repository` does, after checking the weights, too."""
    folder, _ = fetch_repository(source, **options)
    return folder, verify(folder)
