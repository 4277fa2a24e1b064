"""Weights of our own training that ship with the package; shipped.json has the sha256 and provenance of each."""

from collections.abc import Iterable
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
    shipped = _shipped()
    if name not in shipped:
        raise _not_shipped(name, shipped)
    return shipped[name]['provenance']


def _shipped() -> dict[str, dict[str, Any]]:
    """Return the list of shipped weights: name -> sha256 and provenance."""
    path = FOLDER / 'shipped.json'
    try:
        listed = read_json(path)
    except ValueError as error:
        raise ValueError(f'The list of shipped weights, {error} {_REINSTALL}') from error
    if not all(isinstance(entry, dict) and entry.keys() == {'sha256', 'provenance'} for entry in listed.values()):
        raise ValueError(f'{path}, the list of shipped weights, lacks their sha256 or provenance. {_REINSTALL}')
    return listed


def _not_shipped(name: str, shipped: Iterable[str]) -> ValueError:
    return ValueError(f'The weights {name} do not ship with this version; it has {sorted(shipped)}.')


def is_shipped(path: str) -> bool:
    """Return whether the file `path` lies in the folder of the shipped weights."""
    return Path(path).parent == FOLDER


def verify_weights(path: str) -> None:
    """Check a shipped file against the sha256 that it was released with."""
    name = Path(path).name.removesuffix(_SUFFIX)
    expected = shipped_weights().get(name)
    if expected is None:
        raise _not_shipped(name, shipped_weights())
    try:
        found = file_sha256(Path(path))
    except OSError as error:
        raise ValueError(f'The shipped weights {path} cannot be read: {error}. {_REINSTALL}') from error
    if found != expected:
        raise ValueError(
            f'The shipped weights {path} are damaged: their sha256 is {found}, not the released {expected}. '
            f'{_REINSTALL}'
        )
