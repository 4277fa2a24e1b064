"""From 'organization/name@revision' or a folder to files on disk: the one place of this package that downloads."""

import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants

from timm_p2be.hub.sources.failures import clear_errors, sound_answers
from timm_p2be.hub.sources.folders import check_files, local_folder, resolved_commit
from timm_p2be.hub.sources.names import SourceError, UnreachableError, check_filename, checked_revision, split_revision
from timm_p2be.hub.sources.repository import Repository, checked_token

__all__ = [
    'MAX_BYTES',
    'SourceError',
    'UnreachableError',
    'checked_token',
    'clear_errors',
    'fetch',
    'local_folder',
    'remember',
    'resolved_commit',
    'sound_answers',
    'split_revision',
]

MAX_BYTES = 4 * 2**30


def fetch(
    source: str | os.PathLike[str],
    filenames: Sequence[str],
    revision: str | None = None,
    *,
    optional: Sequence[str] = (),
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Return a folder that has the named files, downloaded from one commit if it is not a local folder.

    A folder goes before a repository of the same spelling if it contains config.json; the prefixes 'local-dir:' and
    'hf-hub:' decide otherwise. Nothing but the named files is downloaded or looked at. If the Hub cannot be reached,
    what was downloaded last for this revision is used, with a warning.

    Args:
        source: a folder, 'organization/name' or 'organization/name@revision'.
        filenames: files that have to be there, as paths relative to the folder with '/'.
        revision: branch, tag or commit, if `source` names none; default: main.
        optional: files that are fetched if they exist.
        cache_dir: the Hub's cache; default: that of huggingface_hub.
        token: as in huggingface_hub; None is the token of `hf auth login` or HF_TOKEN, False is none.
        local_files_only: whether to stay offline, as HF_HUB_OFFLINE=1 does.
        force_download: whether to download again what is in the cache.
        max_bytes: the largest file accepted; larger ones are not downloaded.

    Returns:
        The folder itself, or the snapshot folder in the cache.

    Raises:
        SourceError: the source does not exist, cannot be reached, or is not allowed.
    """
    for name in (*filenames, *optional):
        check_filename(name)
    if not filenames:
        raise SourceError('Got no file names; name at least one file that has to be there.')
    folder = local_folder(source)
    if folder is None:
        place = _repository(str(source), revision, cache_dir, token)
        if local_files_only or constants.HF_HUB_OFFLINE:
            folder = place.offline(filenames, force_download)
        else:
            folder = place.online(filenames, optional, force_download, max_bytes)
    elif revision is not None:
        raise SourceError(
            f'Got revision={revision!r} for the folder {folder}; folders have no revisions, leave it out.'
        )
    check_files(folder, filenames, optional, max_bytes)
    return folder


def remember(source: str, revision: str | None, folder: Path) -> None:
    """Let a Hub id mean a snapshot in the cache while offline.

    `fetch` does so by itself, unless the snapshot still lacks files that the one before had.

    Args:
        source: 'organization/name' or 'organization/name@revision'.
        revision: as in `fetch`.
        folder: as `fetch` returned it for a commit of that repository.

    Raises:
        SourceError: malformed names.
    """
    _repository(source, revision, None, None).remember(folder)


def _repository(
    source: str, revision: str | None, cache_dir: str | os.PathLike[str] | None, token: str | bool | None
) -> Repository:
    repo_id, named = split_revision(source.removeprefix('hf-hub:'))
    if revision is None:
        revision = named or 'main'
    elif named not in (None, revision):
        raise SourceError(f'Got two revisions, {source!r} and revision={revision!r}; leave one of them out.')
    where = None if cache_dir is None else Path(cache_dir).expanduser()
    return Repository(repo_id, checked_revision(revision), where, checked_token(token))
