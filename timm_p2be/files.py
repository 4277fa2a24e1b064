"""Files and folders written whole or not at all, JSON and YAML read within limits, schemas, and sha256."""

import argparse
import glob
import hashlib
import json
import math
import os
import platform
import reprlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

MAX_JSON_BYTES = 2**20
MAX_DEPTH = 50  # of containers in containers, so that no code that goes through them recurses too deeply
_MAX_VALUES = 2**18  # in a file, counted as often as they are referred to
_STALE_SECONDS = 24 * 3600

Field = tuple[str, Callable[[Any], bool]]  # what is allowed, in words, and the test of it
Schema = Mapping[str, Field]


def temporary_beside(path: Path) -> Path:
    """Return a name for what becomes `path` once complete, and delete what writers left that were killed a day ago."""
    prefix = f'.{path.name}.{platform.node()}.'
    for other in path.parent.glob(f'{glob.escape(prefix)}*'):
        if time.time() - other.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(other) if other.is_dir() else other.unlink(missing_ok=True)
    return path.with_name(f'{prefix}{os.getpid()}')


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing; a reader, or a killed writer, finds the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open('wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Let a renamed file have its new name after a power cut, too; only POSIX opens folders."""
    if os.name == 'posix':
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `path` at the end; on an error `path` is what it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    new, old = temporary / 'new', temporary / 'old'
    try:
        new.mkdir(parents=True)
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all; a value that JSON does not have, such as NaN, is a ValueError."""
    text = json.dumps(content, indent=1, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text.encode())


def _text_of(path: Path, max_bytes: int) -> str:
    with path.open('rb') as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f'more than {max_bytes} bytes')
    return content.decode()


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return a JSON object, never reading more than `max_bytes` and one.

    Raises:
        ValueError: the file is missing, larger, no JSON (which has no NaN and no infinity), or no object.
    """
    try:
        parsed = json.loads(_text_of(path, max_bytes), parse_constant=_finite, parse_float=_finite)
        if not isinstance(parsed, dict):
            raise ValueError(f'a {type(parsed).__name__}, not an object')
        check_extent(parsed)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f'{path} cannot be read as JSON ({error}). Restore it, or get it again.') from error
    return parsed


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, a few of which can stand for more values than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError('it has an alias (*NAME); write the value out')
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> Any:
    """Return what a YAML file of plain values holds, never reading more than `MAX_JSON_BYTES` and one.

    Raises:
        ValueError: the file cannot be read, is larger, or no YAML of plain values.
    """
    try:
        loader = _PlainLoader(_text_of(path, MAX_JSON_BYTES))
        try:
            parsed = loader.get_single_data()
        finally:
            loader.dispose()
        check_extent(parsed)
    except Exception as error:  # constructors of dates, numbers and keys raise whatever they like
        raise ValueError(
            f'{path} cannot be read as YAML ({error or type(error).__name__}). Mend or restore it.'
        ) from error
    return parsed


def check_extent(content: Any) -> None:
    """Raise unless nested containers are `MAX_DEPTH` deep at most, and hold no more values than a file should."""
    for _ in leaves_of(content):
        pass


def leaves_of(content: Any) -> Iterator[Any]:
    """Yield keys and values in nested containers, or raise as `check_extent` does."""
    left, waiting = _MAX_VALUES, [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        value = vars(value) if isinstance(value, argparse.Namespace) else value
        if not isinstance(value, dict | list | tuple | set):
            yield value
            continue
        left -= len(value)
        if depth == MAX_DEPTH or left < 0:
            raise ValueError(f'containers nested {MAX_DEPTH} deep, or more than {_MAX_VALUES} values')
        inside = (*value, *value.values()) if isinstance(value, dict) else value
        waiting += [(inner, depth + 1) for inner in inside]


@contextmanager
def content_of(named: str) -> Iterator[None]:
    """Turn errors about the content of a stranger's file into one ValueError whose message begins with `named`."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        raise ValueError(
            f'{named} does not hold what it should ({reason:.200}). Restore it, or get it again.'
        ) from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f'{text} is no JSON value')
    return number


def check_schema(values: Any, schema: Schema, where: str, extra: bool = False) -> None:
    """Raise unless `values` is an object with all keys of a schema, each as it may be.

    Args:
        values: as `read_json` returns it, or a part of that.
        schema: key -> what is allowed.
        where: what messages begin with.
        extra: allow further keys, with any values.

    Example:
        >>> check_schema({'seed': 1}, {'seed': ('an integer', lambda value: isinstance(value, int))}, 'args')
    """
    if not isinstance(values, dict):
        raise ValueError(f'{where} is {shown(values)}; allowed is an object.')
    missing, unknown = sorted(schema.keys() - values.keys()), sorted(map(str, values.keys() - schema.keys()))
    if missing:
        raise ValueError(f'{where} lacks {missing}; every key has to be there, null where unknown.')
    if unknown and not extra:
        raise ValueError(f'{where} has the unknown keys {shown(unknown)}; allowed are {sorted(schema)}.')
    for name, (allowed, is_allowed) in schema.items():
        if not is_allowed(values[name]):
            raise ValueError(f'{where}: {name} is {shown(values[name])}; allowed is {allowed}.')


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200  # more than is shown, so that the end is cut


def shown(value: Any) -> str:
    """Return `value` for a message; a hostile file may hold a megabyte of it, or a list that holds itself."""
    text = _SHORT.repr(value)
    return text if len(text) <= 100 else f'{text[:100]}...'


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
