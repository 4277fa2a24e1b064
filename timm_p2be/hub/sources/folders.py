"""Folders on this machine, the snapshots in the Hub's cache among them."""

import os
from collections.abc import Sequence
from pathlib import Path

from timm_p2be.hub.sources.names import COMMIT, SourceError, split_revision


def local_folder(source: str | os.PathLike[str]) -> Path | None:
    """Return the folder that `source` means, or None if it means a repository.

    Raises:
        SourceError: it means a folder that is not there, or is neither.
    """
    if isinstance(source, str) and source.startswith('hf-hub:'):
        return None
    if source in ('', 'local-dir:'):
        raise SourceError(f"Got {source!r}; write the path of a folder, or 'organization/name'.")  # '' is not '.'
    path = Path(source.removeprefix('local-dir:') if isinstance(source, str) else source).expanduser()
    named = not isinstance(source, str) or source.startswith('local-dir:')
    if (path / 'config.json').is_file():
        return path
    if not named:
        try:
            split_revision(str(source))
        except SourceError:
            if not path.is_dir():
                raise
        else:
            return None
    if not path.is_dir():
        raise SourceError(f'There is no folder {path}; check the path.')
    return path


def resolved_commit(folder: str | os.PathLike[str]) -> str | None:
    """Return the commit of a snapshot folder in the Hub's cache, 40 hexadecimal digits, or None for other folders.

    See https://huggingface.co/docs/huggingface_hub/guides/manage-cache for the layout.
    """
    path = Path(folder)
    return path.name if path.parent.name == 'snapshots' and COMMIT.fullmatch(path.name) else None


def check_files(folder: Path, filenames: Sequence[str], optional: Sequence[str], max_bytes: int) -> None:
    """Accept files that are regular, not too large, and inside the folder even if links are followed.

    Raises:
        SourceError: one of them is not, or one of `filenames` is missing.
    """
    real = folder.resolve()
    homes = [real]
    if resolved_commit(real):  # snapshots link to the blobs of their repository, or to those shared by the whole cache
        homes += [real.parents[1] / 'blobs', real.parents[2] / 'blobs']
    for name in (*filenames, *optional):
        path = folder / name
        if not path.exists():
            if name in filenames:
                raise SourceError(f'{folder} has no file {name!r}. Is it the right folder, and whole?')
            continue
        if not any(path.resolve().is_relative_to(home) for home in homes):
            raise SourceError(f'{path} is a link that leads out of its folder; put the file itself there.')
        if not path.is_file():
            raise SourceError(f'{path} is no regular file; put the file itself there.')
        if path.stat().st_size > max_bytes:
            raise SourceError(too_large(str(path), path.stat().st_size, max_bytes))


def too_large(what: str, size: int | None, max_bytes: int) -> str:
    """Return the message on a file with more than `max_bytes` bytes, or with an unknown number of them."""
    known = 'does not tell its size' if size is None else f'has {size} bytes'
    return (
        f'{what} {known}; at most {max_bytes} are accepted. Is it the right one? If so, read it in Python: '
        'timm_p2be.hub.sources.fetch takes another max_bytes.'
    )
