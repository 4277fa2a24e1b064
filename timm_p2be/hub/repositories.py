"""What a folder or a Hub repository of ours holds, checked: an embedding, or a model that timm builds."""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor

from timm_p2be.checkpoints import read_checkpoint
from timm_p2be.encodings.codes import ENCODINGS, LEVELS
from timm_p2be.files import file_sha256
from timm_p2be.hub.artifact import FILES, MAX_BITS, MAX_CONFIG_BYTES, check_config, read_artifact
from timm_p2be.hub.provenance import check_provenance

MODEL_FORMAT_VERSION = 1
DEFAULT_BITS = 64  # of the models' entrypoints

# arguments of timm.create_model and build_model_with_cfg that are for whoever loads a model; timm hands them all that
# model_args names
LOADING_ARGS = frozenset(
    'cache_dir checkpoint_path device dtype exportable feature_cfg features_only kwargs_filter model_cfg model_cls '
    'model_name no_jit pretrained pretrained_cfg pretrained_cfg_overlay pretrained_filter_fn pretrained_model_args '
    'pretrained_strict pruned scriptable variant'.split()
)
_CFG_FIELDS = {field.name for field in fields(PretrainedCfg)}
_LEGACY_FIELDS = {'labels', 'num_features'}  # timm takes these out where config.json itself is the pretrained_cfg

_AGAIN = 'Pull or save it again, or ask its publisher.'
_UPDATE = 'Update: pip install -U timm timm-p2be.'


@dataclass(frozen=True)
class Record:
    """What config.json says of a repository.

    Attributes:
        kind: 'embedding' or 'model'.
        architecture: timm name of a model; None for an embedding.
        encoding: 'p2be', 'onehot', 'thermometer' or, for a model of pixel values, 'rgb'.
        num_bits: M; None for 'rgb'.
        weights_sha256: that of a model's model.safetensors, None if not stated.
        codes_sha256: that of an embedding's packed codes; None for a model.
        provenance: see `timm_p2be.hub.provenance.check_provenance`; None if unknown.
        is_ours: whether this package wrote it: timm's own config.json of a model lacks the key 'timm_p2be'.
    """

    kind: str
    architecture: str | None
    encoding: str
    num_bits: int | None
    weights_sha256: str | None
    codes_sha256: str | None
    provenance: dict[str, Any] | None
    is_ours: bool

    @property
    def dataset(self) -> str | None:
        """Name of the data set it was trained on, if known."""
        return ((self.provenance or {}).get('dataset') or {}).get('name')

    @property
    def clean_error(self) -> float | None:
        """Error on clean test images in percent, if known."""
        return (((self.provenance or {}).get('results') or {}).get('clean') or {}).get('error')

    def describe(self) -> str:
        """Return kind, architecture, encoding and code length in a few words."""
        codes = 'pixel values' if self.encoding == 'rgb' else f'{self.encoding} codes of {self.num_bits} bits'
        return f'embedding, {codes}' if self.kind == 'embedding' else f'model {self.architecture} on {codes}'


def read_record(folder: Path) -> Record:
    """Return what a folder's config.json says, checked; the weights are not looked at.

    Raises:
        ValueError: config.json is missing, too large, no JSON, of neither kind or of a newer format, or a value in it
            is not allowed.
    """
    path = folder / FILES[0]
    try:
        with path.open('rb') as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise ValueError(f'more than {MAX_CONFIG_BYTES} bytes')
        config = json.loads(content.decode(), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f'{path} cannot be read as a record ({error}). {_AGAIN}') from error
    if isinstance(config, dict) and 'format' in config:
        check_config(config, str(path))
        return Record(
            kind='embedding',
            architecture=None,
            encoding=config['encoding'],
            num_bits=config['num_bits'],
            weights_sha256=None,
            codes_sha256=config['codes_sha256'],
            provenance=config['provenance'],
            is_ours=True,
        )
    if not isinstance(config, dict) or not isinstance(config.get('architecture'), str):
        raise ValueError(
            f'{path} describes neither an embedding (format timm-p2be-embedding) nor a model of timm (architecture). '
            'Name a repository that timm-p2be publish wrote; timm-p2be list --remote NAMESPACE shows some.'
        )
    return _model_record(config, path)


def _no_constant(name: str) -> None:
    raise ValueError(f'{name} is no JSON value')


def _model_record(config: dict[str, Any], path: Path) -> Record:
    """Return the record in the config.json of a model: timm's own, with the key 'timm_p2be' if we wrote it."""

    def require(holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f'{path}: {allowed}. {_AGAIN}')

    architecture, args, ours = config['architecture'], config.get('model_args', {}), config.get('timm_p2be')
    require(ours is None or isinstance(ours, dict), 'timm_p2be must be an object')
    stated = ours or {}
    version, sha256 = stated.get('format_version', MODEL_FORMAT_VERSION), stated.get('weights_sha256')
    if type(version) is int and version > MODEL_FORMAT_VERSION:
        raise ValueError(
            f'{path} has format version {version}; this timm-p2be reads up to {MODEL_FORMAT_VERSION}. {_UPDATE}'
        )
    require(type(version) is int and version == MODEL_FORMAT_VERSION, f'format_version must be {MODEL_FORMAT_VERSION}')
    require(
        sha256 is None or (isinstance(sha256, str) and re.fullmatch('[0-9a-f]{64}', sha256) is not None),
        'weights_sha256 must be 64 hexadecimal digits',
    )
    require(isinstance(args, dict), 'model_args must be an object')
    refused = args.keys() & LOADING_ARGS
    if architecture != 'encoded':  # of which both are part of the name
        refused |= args.keys() & {'backbone', 'encoding'}
    if ours is not None:  # whose table is in the weights alone; what timm saves by itself may name one
        refused |= args.keys() & {'embedding'}
    require(
        not refused,
        f'model_args must not name {", ".join(sorted(refused))}; allowed is what the network itself is made from',
    )
    _check_cfg(config.get('pretrained_cfg', config), 'pretrained_cfg' not in config, path)
    if not re.fullmatch(r'\w[\w.-]{0,127}', architecture, re.ASCII) or not timm.is_model(architecture):
        raise ValueError(
            f'{path} has the architecture {architecture[:100]!r}, unknown to timm and timm-p2be here. {_UPDATE}'
        )
    encoding = encoding_of(architecture, args)
    require(encoding in (*ENCODINGS, 'rgb'), f'encoding must be one of {list(ENCODINGS)}')
    num_bits = args.get('num_bits', DEFAULT_BITS)
    require(type(num_bits) is int and 1 <= num_bits <= MAX_BITS, f'num_bits must be an integer in 1..{MAX_BITS}')
    try:
        check_provenance(stated.get('provenance'))
    except ValueError as error:
        raise ValueError(f'{path}: {error} {_AGAIN}') from error
    return Record(
        kind='model',
        architecture=architecture,
        encoding=encoding,
        num_bits=None if encoding == 'rgb' else num_bits,
        weights_sha256=sha256,
        codes_sha256=None,
        provenance=stated.get('provenance'),
        is_ours=ours is not None,
    )


def _check_cfg(cfg: Any, legacy: bool, path: Path) -> None:
    """Raise unless timm takes the pretrained_cfg, and loads model.safetensors with it."""
    if not isinstance(cfg, dict) or cfg.get('hf_hub_filename') is not None:  # which leads to another file
        raise ValueError(f'{path}: pretrained_cfg must be an object without hf_hub_filename. {_AGAIN}')
    unknown = sorted(cfg.keys() - _CFG_FIELDS - (_LEGACY_FIELDS if legacy else set()))
    if unknown:
        raise ValueError(f'{path}: pretrained_cfg has {str(unknown)[:100]}, unknown to timm here. {_UPDATE}')


def encoding_of(architecture: str, model_args: dict[str, Any]) -> Any:
    """Return what a model reads: the encoding in its arguments, or at the end of its name, or 'rgb'."""
    architecture = architecture.partition('.')[0]  # without a tag
    named = next((name for name in ENCODINGS if architecture.endswith(f'_{name}')), 'rgb')
    return model_args.get('encoding', named if architecture != 'encoded' else ENCODINGS[0])


def verified_weights(folder: Path, record: Record) -> dict[str, Tensor]:
    """Return the weights of a model's repository.

    Raises:
        ValueError: they are missing, damaged, not finite, or not those whose sha256 the record states.
    """
    path = folder / FILES[1]
    if not path.is_file():
        raise ValueError(f'{path} does not exist; weights are read from there only, never from a pickle. {_AGAIN}')
    if record.weights_sha256 not in (None, found := file_sha256(path)):
        raise ValueError(f'{path} has sha256 {found}, but config.json states {record.weights_sha256}. {_AGAIN}')
    state = read_checkpoint(path, what='weights').state_dict
    for name, tensor in state.items():
        if not bool(tensor.float().isfinite().all()):
            raise ValueError(f'{path}: {name} holds values that are not finite. Ask the publisher for sound weights.')
        if name.endswith('embedding.weight') and record.encoding == 'p2be':
            _check_table(path, name, tensor, record.num_bits)
    return state


def _check_table(path: Path, name: str, table: Tensor, num_bits: int | None) -> None:
    """Raise unless a learned table has the record's shape, in float32: float16 turns -1e-9 into -0, a 0 into a 1."""
    if table.dtype != torch.float32 or list(table.shape) != [LEVELS, num_bits]:
        raise ValueError(
            f'{path}: {name} is {list(table.shape)} {table.dtype}; allowed is {[LEVELS, num_bits]} torch.float32, as '
            f'{FILES[0]} has it. Ask the publisher for sound weights.'
        )


def verify(folder: Path) -> Record:
    """Return what a folder's config.json says, after checking it and the weights beside it.

    Raises:
        ValueError: as `read_record` and, by kind, `timm_p2be.hub.artifact.read_artifact` or `verified_weights`.
    """
    record = read_record(folder)
    if record.kind == 'embedding':
        read_artifact(folder)
    else:
        verified_weights(folder, record)
    return record
