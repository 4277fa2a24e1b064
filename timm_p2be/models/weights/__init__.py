"""Weights of our own training that ship with the package; shipped.json has the sha256 and provenance of each."""

from pathlib import Path
from typing import Any

from timm_p2be.files import file_sha256, read_json

FOLDER = Path(__file__).parent
_SUFFIX = '.safetensors'
_REINSTALL = 'Reinstall: pip install --force-reinstall --no-deps timm-p2be.'


def weights_path(name: str) -> str:
    """Return where the shipped weights `name` ('wrn16_2.cifar10': architecture and tag) lie, for a cfg's `file`.

    Whether the file is there and whole is the business of `verify_weights`, when it is used.
    """
    return str(FOLDER / f'{name}{_SUFFIX}')


def shipped_weights() -> dict[str, str]:
    """Return name (architecture and tag) -> sha256 of the weights that ship with this version."""
    return {name: entry['sha256'] for name, entry in _shipped().items()}


def shipped_provenance(name: str) -> dict[str, Any]:
    """Return how the shipped weights `name` were trained and what they reach, see `timm_p2be.hub.training_record`."""
    return _entry(name)['provenance']


def _shipped() -> dict[str, dict[str, Any]]:
    try:
        return read_json(FOLDER / 'shipped.json')
    except ValueError as error:
        raise ValueError(f'The list of shipped weights, {error} {_REINSTALL}') from error


def _entry(name: str) -> dict[str, Any]:
    shipped = _shipped()
    if name not in shipped:
        raise ValueError(f'The weights {name} do not ship with this version; it has {sorted(shipped)}.')
    return shipped[name]


def is_shipped(path: str) -> bool:
    """Return whether the file `path` lies in the folder of the shipped weights."""
    return Path(path).parent == FOLDER


def verify_weights(path: str) -> None:
    """Check a shipped file against the sha256 that it was released with."""
    expected = _entry(Path(path).name.removesuffix(_SUFFIX))['sha256']
    try:
        found = file_sha256(Path(path))
    except OSError as error:
        raise ValueError(f'The shipped weights {path} cannot be read: {error}. {_REINSTALL}') from error
    if found != expected:
        raise ValueError(
            f'The shipped weights {path} are damaged: their sha256 is {found}, not the released {expected}. '
            f'{_REINSTALL}'
        )
