"""What every result file has: a schema version, its environment, per-example bits."""

import base64
import json
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SCHEMA_VERSION = 1
_PACKAGES = ('timm-p2be', 'torch', 'timm', 'numpy', 'scipy', 'scikit-image', 'opencv-python', 'pillow')


def environment() -> dict[str, Any]:
    """Return versions and hardware that a figure may depend on, JSON values only."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        'python': platform.python_version(),
        'machine': platform.machine(),
        'threads': torch.get_num_threads(),
        'versions': versions,
    }


def pack_bits(bits: NDArray[np.bool_]) -> str:
    """Return one bit an example as base64 text; the first example is the highest bit of the first byte.

    Example:
        >>> unpack_bits(pack_bits(np.array([True, False, True])), 3).tolist()
        [True, False, True]
    """
    return base64.b64encode(np.packbits(np.asarray(bits, bool)).tobytes()).decode()


def unpack_bits(text: str, count: int) -> NDArray[np.bool_]:
    """Return the `count` bits that `pack_bits` wrote.

    Raises:
        ValueError: the text holds another number of bits, or is no base64.
    """
    raw = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(raw) != (count + 7) // 8:
        raise ValueError(f'Got {len(raw)} bytes for {count} bits; the result file is damaged. Compute it again.')
    return np.unpackbits(raw, count=count).astype(bool)


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """Return a result file of `kind` ('corruptions' or 'attacks').

    Raises:
        ValueError: no JSON, another kind, or a schema this version does not know.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f'{path} cannot be read as a result file: {error}. Move it away to start afresh.') from error
    found = (content.get('kind'), content.get('schema_version')) if isinstance(content, dict) else None
    if found != (kind, SCHEMA_VERSION):
        raise ValueError(
            f'{path} holds kind and schema version {found}; this version reads {(kind, SCHEMA_VERSION)}. '
            'Choose another output folder.'
        )
    return content


def wilson(successes: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, 95 % by default (Wilson, 1927, doi 10.2307/2276774).

    Raises:
        ValueError: `count` below 1, or successes outside 0..count.

    Example:
        >>> low, high = wilson(0, 200)
        >>> round(low, 4), round(high, 4)
        (0.0, 0.0188)
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(
            f'Got {successes} successes of {count}; a proportion needs 0 <= successes <= count, count >= 1.'
        )
    rate = successes / count
    center = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return max(0.0, center - half), min(1.0, center + half)
