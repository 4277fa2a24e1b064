"""Pulling a model or an embedding from the Hub: one commit of it, verified, into the cache or a folder."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from timm_p2be.files import file_sha256, temporary_beside
from timm_p2be.hub.artifact import FILES, MAX_CONFIG_BYTES
from timm_p2be.hub.artifact import MAX_BYTES as MAX_TABLE_BYTES
from timm_p2be.hub.repositories import Record, read_record, verify
from timm_p2be.hub.sources import (
    MAX_BYTES,
    SourceError,
    fetch,
    local_folder,
    remember,
    resolved_commit,
    split_revision,
)

_OPTIONAL = ('README.md', 'results.json')
_MAX_OPTIONAL_BYTES = 2**24


@dataclass(frozen=True)
class Pulled:
    """A repository that was pulled and verified.

    Attributes:
        repo_id: 'org/name'.
        commit: 40 hexadecimal digits.
        folder: where its files lie.
        record: what config.json says.
        sha256: file name -> sha256 of its bytes, hexadecimal.
        is_new: False if the output folder held exactly these files already.
    """

    repo_id: str
    commit: str
    folder: Path
    record: Record
    sha256: dict[str, str]
    is_new: bool = True

    @property
    def pinned(self) -> str:
        """'org/name@commit', which means the same files for ever."""
        return f'{self.repo_id}@{self.commit}'


def pull(source: str, revision: str | None = None, output: Path | None = None, overwrite: bool = False) -> Pulled:
    """Download a repository at one commit, verify it, and say where it lies.

    Files in the cache that fail the verification are downloaded once more, in case the disk damaged them.

    Args:
        source: 'org/name' or 'org/name@revision'; never a local folder.
        revision: branch, tag or commit; None takes the one in `source`, or the default branch.
        output: folder to write plain files to, all of them or none; None leaves them in the cache.
        overwrite: replace what an earlier pull wrote to `output`.

    Raises:
        ValueError: what arrived is not what it claims to be, or `output` holds other files.
        SourceError: two revisions, or it could not be downloaded.
        OSError: the disk is full or `output` is not writable.
    """
    repo_id, _ = split_revision(source.removeprefix('hf-hub:'))
    try:
        folder, record = _fetch_verified(source, revision)
    except SourceError:
        raise
    except ValueError as damage:
        try:
            folder, record = _fetch_verified(source, revision, force_download=True)
        except SourceError as error:
            raise damage from error
    commit = resolved_commit(folder)
    assert commit is not None, 'what comes from the Hub has a commit'
    is_new = output is None or _write_folder(folder, output.absolute(), overwrite)
    place = folder if output is None else output.absolute()
    return Pulled(repo_id, commit, place, record, _digests(place), is_new)


def _fetch_verified(source: str, revision: str | None, force_download: bool = False) -> tuple[Path, Record]:
    """Return folder and record of a repository; its weights are asked for last."""
    pinned, record = fetch_record(f'hf-hub:{source.removeprefix("hf-hub:")}', revision, force_download)
    fetch(pinned, FILES[:1], optional=_OPTIONAL, max_bytes=_MAX_OPTIONAL_BYTES)
    folder = fetch_weights(pinned, record, force_download)
    record = verify(folder)
    remember(source, revision, folder)
    return folder, record


def fetch_record(source: str, revision: str | None = None, force_download: bool = False) -> tuple[str, Record]:
    """Return the one commit that a source means by now, and what its config.json says; nothing else is downloaded.

    Args:
        source: as in `timm_p2be.hub.sources.fetch`.
        revision: likewise.
        force_download: likewise.

    Returns:
        'hf-hub:org/name@commit', or 'local-dir:' and the folder; and the record.

    Raises:
        ValueError: as `timm_p2be.hub.repositories.read_record` and `timm_p2be.hub.sources.fetch`.
    """
    folder = fetch(source, FILES[:1], revision, force_download=force_download, max_bytes=MAX_CONFIG_BYTES)
    record = read_record(folder)
    if local_folder(source) is not None:
        return f'local-dir:{folder}', record
    return f'hf-hub:{split_revision(source.removeprefix("hf-hub:"))[0]}@{resolved_commit(folder)}', record


def fetch_weights(pinned: str, record: Record, force_download: bool = False) -> Path:
    """Return the folder of what `fetch_record` returned, with weights in it, no larger than those of its kind are.

    Raises:
        SourceError: as `timm_p2be.hub.sources.fetch`.
    """
    limit = MAX_TABLE_BYTES if record.kind == 'embedding' else MAX_BYTES
    return fetch(pinned, FILES, force_download=force_download, max_bytes=limit)


def _digests(folder: Path) -> dict[str, str]:
    paths = (folder / name for name in (*FILES, *_OPTIONAL))
    return {path.name: file_sha256(path) for path in paths if path.is_file()}


def _write_folder(snapshot: Path, output: Path, overwrite: bool) -> bool:
    """Copy a snapshot to `output`, all of it or nothing; return False if it is there already."""
    wanted = _digests(snapshot)
    if _holds(output, wanted):
        return False
    _check_replaceable(output, overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(output)
    new, old = temporary / 'new', temporary / 'old'
    try:
        new.mkdir(parents=True)
        for name in wanted:
            shutil.copyfile(snapshot / name, new / name)
        if overwrite and output.exists():
            output.rename(old)
        try:
            new.rename(output)
        except OSError as error:
            if _holds(output, wanted):
                return False
            if output.exists():
                raise ValueError(f'Another process wrote other files to {output} meanwhile. Pull again.') from error
            if old.exists():
                old.rename(output)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _holds(folder: Path, digests: dict[str, str]) -> bool:
    """Return whether a folder holds exactly these files."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} == set(digests) and _digests(folder) == digests


def _check_replaceable(output: Path, overwrite: bool) -> None:
    """Raise unless nothing of value is at `output`."""
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir() or output.is_symlink():
        raise ValueError(f'{output} is not a folder. Choose another --output.')
    found = {path.name for path in output.iterdir()}
    if foreign := sorted(found - {*FILES, *_OPTIONAL}):
        raise ValueError(f'{output} holds files that no pull wrote, such as {foreign[0]!r}. Choose another --output.')
    if found and not overwrite:
        raise ValueError(f'{output} holds another version already. Choose another --output, or pass --overwrite.')
