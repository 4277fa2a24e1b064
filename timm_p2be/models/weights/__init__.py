"""Weights of our own training that ship with the package; shipped.json has the sha256 and provenance of each."""

from pathlib import Path
from typing import Any

from timm_p2be.files import file_sha256, read_json

FOLDER = Path(__file__).parent


def weights_path(name: str) -> str:
    """Return where the shipped weights `name` ('wrn16_2.cifar10': architecture and tag) lie, for a cfg's `file`."""
    return str(FOLDER / f'{name}.safetensors')


def shipped_weights() -> dict[str, dict[str, Any]]:
    """Return name (architecture and tag) -> `sha256` and `provenance`, a training record, of all that ships."""
    return read_json(FOLDER / 'shipped.json')


def verify_weights(path: Path) -> None:
    """Raise unless a file in the folder of the shipped weights is one that was released; other files pass."""
    if path.parent != FOLDER:
        return
    expected = shipped_weights().get(path.stem, {}).get('sha256')
    found = file_sha256(path) if path.is_file() else None
    if found is None or found != expected:
        raise ValueError(
            f'The shipped weights {path} are damaged: their sha256 is {found}, not the released {expected}. '
            'Reinstall: pip install --force-reinstall --no-deps timm-p2be.'
        )
