"""The record of an embedding, its config.json: built, read and checked."""

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from timm_p2be.encodings.codes import ENCODINGS, INITS, LEVELS
from timm_p2be.hub.artifact.table import AGAIN, ArtifactError, codes_sha256, read_bounded
from timm_p2be.hub.provenance import check_provenance

FORMAT = 'timm-p2be-embedding'
FORMAT_VERSION = 1
CONFIG_FILE = 'config.json'

MAX_BITS = 4096
MAX_CONFIG_BYTES = 2**20

INSTALLED: str | None
try:
    INSTALLED = version('timm-p2be')
except PackageNotFoundError:  # a checkout on the path
    INSTALLED = None


def artifact_config(
    codes: Tensor,
    *,
    encoding: str,
    init: str,
    provenance: dict[str, Any] | None,
    package_version: str | None = INSTALLED,
) -> dict[str, Any]:
    """Return the config.json of a table, complete and checked.

    Args:
        codes: (256, M) tensor of 0 and 1, M at most 4096.
        encoding: 'p2be', 'onehot' or 'thermometer'.
        init: one of `timm_p2be.encodings.codes.INITS`.
        provenance: JSON values, see `timm_p2be.hub.provenance.check_provenance`; None if unknown.
        package_version: of this package; None if unknown.

    Raises:
        ArtifactError: a value that no reader would accept, or that JSON does not have.
    """
    other = codes.numel() if codes.is_meta else int(((codes != 0) & (codes != 1)).sum())
    if other or codes.dim() != 2:
        got = f'codes of shape {tuple(codes.shape)} on {codes.device}, {other} of them neither 0 nor 1'
        raise ArtifactError(
            f'Got {got}; allowed is a (256, M) table of 0 and 1. Pass the codes() of an embedding with values, none of '
            'them NaN.'
        )
    try:
        provenance = json.loads(json.dumps(provenance, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f'provenance holds what JSON cannot ({error}). Use numbers, texts, lists, dicts.'
        ) from error
    config = {
        'format': FORMAT,
        'format_version': FORMAT_VERSION,
        'package_version': package_version,
        'encoding': encoding,
        'levels': codes.shape[0],
        'num_bits': codes.shape[1],
        'plane_order': 'bit-major',
        'init': init,
        'codes_sha256': codes_sha256(codes),
        'provenance': provenance,
    }
    check_config(config, 'The embedding to be saved', 'Correct it and save again.')
    return config


def config_bytes(config: dict[str, Any]) -> bytes:
    """Return the content of config.json.

    Raises:
        ArtifactError: it would be larger than any reader accepts.
    """
    content = json.dumps(config, indent=1, allow_nan=False).encode()
    if len(content) > MAX_CONFIG_BYTES:
        raise ArtifactError(
            f'The record has {len(content)} bytes; allowed are {MAX_CONFIG_BYTES}. Shorten its provenance.'
        )
    return content


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the record of an embedding, checked; its table is not looked at.

    Raises:
        ArtifactError: config.json is missing, too large, no JSON, of another format or a newer version, or a value in
            it is not allowed.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise ArtifactError(f'{path} does not exist: no embedding, or one whose saving was cut short. {AGAIN}')
    content = read_bounded(path, MAX_CONFIG_BYTES)
    try:
        config = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f'{path} is no JSON ({error}). {AGAIN}') from error
    if not isinstance(config, dict):
        raise ArtifactError(f'{path} holds a {type(config).__name__}; allowed is a JSON object. {AGAIN}')
    check_config(config, str(path))
    return config


def check_config(config: dict[str, Any], where: str, next_step: str = AGAIN) -> None:
    """Raise unless a parsed config.json is the record of an embedding; the table it belongs to is not looked at.

    Args:
        config: as `json.loads` returns it.
        where: its path, or whatever else the message is to begin with.
        next_step: end of the message, what the user is to do.

    Raises:
        ArtifactError: it is of another format or a newer version, or a value in it is not allowed.
    """
    _check_format(config, where, next_step)
    try:
        json.dumps(config, allow_nan=False)
    except (ValueError, RecursionError) as error:  # Python reads NaN and 1e999, which JSON does not have
        raise ArtifactError(f'{where} holds what JSON cannot ({error}). {next_step}') from error
    allowed_keys = {'format', 'format_version', 'provenance', *_FIELDS}
    for problem, keys in (('lacks', allowed_keys - config.keys()), ('has unknown', config.keys() - allowed_keys)):
        if keys:
            raise ArtifactError(f'{where} {problem} keys: {_shown(sorted(keys))}. {next_step}')
    for name, (allowed, is_allowed) in _FIELDS.items():
        if not is_allowed(config[name]):
            raise ArtifactError(f'{where}: {name} is {_shown(config[name])}; allowed is {allowed}. {next_step}')
    if config['encoding'] != 'p2be' and config['init'] != 'normal':
        raise ArtifactError(f"{where}: init is {config['init']!r}; a fixed encoding has 'normal'. {next_step}")
    try:
        check_provenance(config['provenance'])
    except ValueError as error:
        raise ArtifactError(f'{where}: {error} {next_step}') from error


def _is_hex(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set('0123456789abcdef')


def _is_version(value: Any) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= 100 and value.isprintable())


_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    'package_version': ('a version or null', _is_version),
    'encoding': (f'one of {list(ENCODINGS)}', lambda value: value in ENCODINGS),
    'levels': (str(LEVELS), lambda value: type(value) is int and value == LEVELS),
    'num_bits': (f'an integer in 1..{MAX_BITS}', lambda value: type(value) is int and 1 <= value <= MAX_BITS),
    'plane_order': ("'bit-major'", lambda value: value == 'bit-major'),
    'init': (f'one of {list(INITS)}', lambda value: value in INITS),
    'codes_sha256': ('64 hexadecimal digits', _is_hex),
}


def _check_format(config: dict[str, Any], where: str, next_step: str) -> None:
    """Raise unless the record is an embedding's, and of a version this package reads."""
    found, version = config.get('format'), config.get('format_version')
    if found is None and 'architecture' in config:
        raise ArtifactError(
            f'{where} holds a timm model ({_shown(config["architecture"])}); allowed is an embedding. Load the model '
            "with timm.create_model('hf-hub:ORG/NAME', pretrained=True), or 'local-dir:FOLDER', after import "
            'timm_p2be; timm_p2be.find_embedding(model) is its table.'
        )
    if found != FORMAT:
        raise ArtifactError(f'{where}: format is {_shown(found)}; allowed is {FORMAT!r}. {next_step}')
    if type(version) is int and version > FORMAT_VERSION:
        raise ArtifactError(
            f'{where} has format version {version}, this timm-p2be reads up to {FORMAT_VERSION}. Update timm-p2be: '
            'pip install -U timm-p2be.'
        )
    if type(version) is not int or version != FORMAT_VERSION:
        raise ArtifactError(f'{where}: format_version is {_shown(version)}; allowed is {FORMAT_VERSION}. {next_step}')


def _shown(value: Any) -> str:
    return repr(value)[:100]
