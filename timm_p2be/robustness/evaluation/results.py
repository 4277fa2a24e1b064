"""The result file of a benchmark: schema, configuration, environment, per-example bits, and when it is continued."""

import base64
import json
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from timm_p2be import files
from timm_p2be.files import content_of, shown, write_json

SCHEMA_VERSION = 1
_MAX_BYTES = 2**30
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
        device: torch.device | None = None,
    ) -> File:
        """Return the file of an earlier run of the same configuration and versions if it is there, else a new one.

        `results` are those of a run that has found nothing yet.
        """
        head = {'schema_version': SCHEMA_VERSION, 'kind': cls.kind}
        content = {**head, **configuration, 'environment': environment(device), **results}
        content = json.loads(json.dumps(content))  # as it will be read back
        if path is not None and overwrite:
            path.unlink(missing_ok=True)
        if path is None or not path.exists():
            return cls(content, path)
        earlier = read_json(path, cls.kind)
        with content_of(str(path)):
            then, now = (
                _leaves({'versions': of['environment'].get('versions'), **{key: of.get(key) for key in configuration}})
                for of in (earlier, content)
            )
        changed = sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
        if changed:
            shown = '; '.join(f'{key}: {then.get(key)} -> {now.get(key)}' for key in changed[:4])
            more = f'; and {len(changed) - 4} more' if len(changed) > 4 else ''
            raise ValueError(
                f'{path} has results of another configuration ({shown}{more}). Choose another --output, or pass '
                '--overwrite to start afresh.'
            )
        return cls(earlier, path)

    def write(self) -> None:
        """Write the file, if there is one, whole or not at all."""
        if self.path is not None and self.writes:
            write_json(self.path, self.content)


def read_json(path: Path, *kinds: str) -> dict[str, Any]:
    """Return the content of a result file of one of the `kinds`: 'corruptions', 'attacks'."""
    content = files.read_json(path, _MAX_BYTES)
    kind, schema = content.get('kind'), content.get('schema_version')
    if kind not in kinds or schema != SCHEMA_VERSION:
        raise ValueError(
            f'{path} holds kind {shown(kind)}, schema version {shown(schema)}; this version reads '
            f'{" and ".join(kinds)} of `timm-p2be benchmark`, schema version {SCHEMA_VERSION}. Name another file.'
        )
    return content


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Return versions and hardware that a figure may depend on, JSON values only; `device` is that of the model."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        'python': platform.python_version(),
        'machine': platform.machine(),
        'device': 'cpu' if device is None else device.type,
        'gpu': torch.cuda.get_device_name(device) if device is not None and device.type == 'cuda' else None,
        'threads': torch.get_num_threads(),
        'versions': versions,
    }


def pack_bits(bits: Bits) -> str:
    """Return one bit an example as base64 text; the first example is the highest bit of the first byte."""
    return base64.b64encode(np.packbits(np.asarray(bits, bool)).tobytes()).decode()


def unpack_bits(text: str, count: int) -> Bits:
    """Return the `count` bits that `pack_bits` wrote."""
    try:
        raw = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except ValueError:
        raw = np.empty(0, np.uint8)
    if len(raw) != (count + 7) // 8:
        raise ValueError(f'Got {len(raw)} bytes for {count} bits; the result file is damaged. Compute it again.')
    return np.unpackbits(raw, count=count).astype(bool)


def proportion(bits: Bits) -> dict[str, Any]:
    """Return number, count, share and 95 % interval (Wilson, 1927, doi 10.2307/2276774) of the true bits.

    Example:
        >>> figures = proportion(np.zeros(200, bool))
        >>> figures['low'], round(figures['high'], 4)
        (0.0, 0.0188)
    """
    number, count, z = int(bits.sum()), len(bits), 1.959964
    rate = number / count
    center = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    low, high = max(0.0, center - half), min(1.0, center + half)
    return {'number': number, 'count': count, 'accuracy': rate, 'low': low, 'high': high}


def interval(values: NDArray[np.float64]) -> str:
    """Return the 95 % interval, in percent, of the mean of values 0..1 of as many images; Wilson's of bits."""
    if set(values) <= {0.0, 1.0}:
        share = proportion(values.astype(bool))
        low, high = share['low'], share['high']
    else:
        mean, half = values.mean(), 1.959964 * values.std() / np.sqrt(len(values))
        low, high = mean - half, mean + half
    return f'{100 * low:.1f} to {100 * high:.1f}'


def interval_of_differences(values: NDArray[np.float64]) -> str:
    """Return the 95 % interval, in percent, of a mean of -1..1 (Agresti & Min, 2005, doi 10.1002/sim.1781)."""
    count = len(values) + 2
    mean = values.sum() / count
    half = 1.959964 * np.sqrt((((values**2).sum() + 1) / count - mean**2) / count)
    return f'{100 * (mean - half):.1f} to {100 * (mean + half):.1f}'


def _leaves(value: Any, path: str = '') -> dict[str, Any]:
    """Return the numbers and texts in a JSON value by their places, as {'data.seed': 0}."""
    if not isinstance(value, dict | list):
        return {path: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    inner = (_leaves(part, f'{path}.{key}' if path else str(key)) for key, part in parts)
    return {key: leaf for leaves in inner for key, leaf in leaves.items()}
