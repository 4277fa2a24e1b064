"""Files and folders that are written whole or not at all, and the sha256 that tells whether a file is whole."""

import glob
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def temporary_beside(path: Path) -> Path:
    """Return a name for what becomes `path` once complete, and delete what killed writers of this machine left."""
    prefix = f'.{path.name}.{platform.node()}.'
    for other in path.parent.glob(f'{glob.escape(prefix)}*'):
        if other.suffix[1:].isdigit() and not _is_running(int(other.suffix[1:])):
            shutil.rmtree(other) if other.is_dir() else other.unlink(missing_ok=True)
    return path.with_name(f'{prefix}{os.getpid()}')


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # asks, sends nothing
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing; a reader, or a killed writer, finds the old file or the new one, never half of one.

    Raises:
        OSError: the disk is full or the folder is not writable; the old file is intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open('wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all.

    Raises:
        OSError: the disk is full or the folder is not writable; the old file is intact.
        ValueError: a value that JSON does not have, such as NaN.
    """
    text = json.dumps(content, indent=1, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text.encode())


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
