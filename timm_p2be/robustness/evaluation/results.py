"""The result file of a benchmark: schema, configuration, environment, per-example bits, and when it is continued."""

import base64
import json
import math
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from timm_p2be.files import write_json

SCHEMA_VERSION = 1
Bits = NDArray[np.bool_]
File = TypeVar('File', bound='ResultFile')
_PACKAGES = ('timm-p2be', 'torch', 'timm', 'numpy', 'scipy', 'scikit-image', 'opencv-python', 'pillow')


class ResultFile:
    """What a benchmark has found so far, JSON values in memory and, if there is a `path`, on disk."""

    kind: str  # of a subclass

    def __init__(self, content: dict[str, Any], path: Path | None = None) -> None:
        self.content, self.path = content, path
        self.writes = True  # False on all ranks but the first

    @classmethod
    def open(
        cls: type[File],
        path: Path | None,
        configuration: dict[str, Any],
        results: dict[str, Any],
        overwrite: bool = False,
    ) -> File:
        """Return the file of an earlier run of the same configuration and versions if it is there, else a new one.

        `results` are those of a run that has found nothing yet.
        """
        head = {'schema_version': SCHEMA_VERSION, 'kind': cls.kind}
        content = {**head, **configuration, 'environment': environment(), **results}
        content = json.loads(json.dumps(content))  # as it will be read back
        if path is None or overwrite or not path.exists():
            return cls(content, path)
        earlier = read_json(path, cls.kind)
        then, now = (
            {'versions': of.get('environment', {}).get('versions'), **{key: of.get(key) for key in configuration}}
            for of in (earlier, content)
        )
        changes = list(_differences(then, now))
        if changes:
            shown = '; '.join(changes[:4]) + (f'; and {len(changes) - 4} more' if len(changes) > 4 else '')
            raise ValueError(
                f'{path} has results of another configuration ({shown}). Choose another --output, or pass --overwrite '
                'to start afresh.'
            )
        return cls(earlier, path)

    def write(self) -> None:
        """Write the file, if there is one, whole or not at all."""
        if self.path is not None and self.writes:
            write_json(self.path, self.content)


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """Return the content of a result file of `kind` ('corruptions' or 'attacks')."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ValueError(f'{path} cannot be read as a result file: {error}. Move it away to start afresh.') from error
    found = (content.get('kind'), content.get('schema_version')) if isinstance(content, dict) else None
    if found != (kind, SCHEMA_VERSION):
        raise ValueError(
            f'{path} holds kind and schema version {found}; this version reads {(kind, SCHEMA_VERSION)}. '
            'Choose another output folder.'
        )
    return content


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


def pack_bits(bits: Bits) -> str:
    """Return one bit an example as base64 text; the first example is the highest bit of the first byte.

    Example:
        >>> unpack_bits(pack_bits(np.array([True, False, True])), 3).tolist()
        [True, False, True]
    """
    return base64.b64encode(np.packbits(np.asarray(bits, bool)).tobytes()).decode()


def unpack_bits(text: str, count: int) -> Bits:
    """Return the `count` bits that `pack_bits` wrote."""
    raw = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(raw) != (count + 7) // 8:
        raise ValueError(f'Got {len(raw)} bytes for {count} bits; the result file is damaged. Compute it again.')
    return np.unpackbits(raw, count=count).astype(bool)


def proportion(bits: Bits) -> dict[str, Any]:
    """Return number, count, share and 95 % interval of the true bits."""
    number = int(bits.sum())
    low, high = wilson(number, len(bits))
    return {'number': number, 'count': len(bits), 'accuracy': number / len(bits), 'low': low, 'high': high}


def wilson(successes: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, 95 % by default (Wilson, 1927, doi 10.2307/2276774).

    Example:
        >>> low, high = wilson(0, 200)
        >>> round(low, 4), round(high, 4)
        (0.0, 0.0188)
    """
    rate = successes / count
    center = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return max(0.0, center - half), min(1.0, center + half)


def _differences(then: Any, now: Any, path: str = '') -> Iterator[str]:
    """Yield what differs between two JSON values, as 'data.seed: 0 -> 1'."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in sorted({*then, *now}):
            yield from _differences(then.get(key), now.get(key), f'{path}.{key}' if path else key)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for number, (old, new) in enumerate(zip(then, now, strict=True)):
            yield from _differences(old, new, f'{path}[{number}]')
    elif then != now:
        yield f'{path}: {_names(then)} -> {_names(now)}'


def _names(value: Any) -> str:
    """Return a value in words; of a list of models or attacks, their names are enough."""
    if isinstance(value, list) and all(isinstance(entry, Mapping) and 'name' in entry for entry in value):
        return ', '.join(entry['name'] for entry in value)
    return str(value)
