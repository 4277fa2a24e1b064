"""From 'org/name@revision' or a folder to files on disk: the one place of this package that downloads."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from timm_p2be.hub.errors import FetchError, UnreachableError, asking

MAX_BYTES = 4 * 2**30

_COMMIT = re.compile(r'[0-9a-f]{40}')
_REVISION = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.+/-]{0,199}')  # also a file name below refs/ in the cache
_logger = logging.getLogger(__name__)


def split_revision(name: str) -> tuple[str, str | None]:
    """Return the repository and the revision of 'org/name' or 'org/name@revision'."""
    repo_id, at, revision = name.partition('@')
    try:
        validate_repo_id(repo_id)
        well_formed = repo_id.count('/') == 1 and repo_id.isprintable()
    except HFValidationError:
        well_formed = False
    if not well_formed:
        raise FetchError(
            f"Got {name!r}, which is no folder here and no repository on the Hub; write 'org/name', "
            "'org/name@revision', or the path of a folder."
        )
    if at and (not _REVISION.fullmatch(revision) or re.search(r'\.\.|//|/\.|/$|\.$|\.lock(/|$)', revision)):
        raise FetchError(f'Got the revision {revision!r}; name a branch, a tag or a commit, such as main or v1.')
    return repo_id, revision if at else None


def local_folder(source: str | os.PathLike[str]) -> Path | None:
    """Return the folder that `source` means, or None if it means a repository."""
    if isinstance(source, str) and source.startswith('hf-hub:'):
        return None
    if source in ('', 'local-dir:'):
        raise FetchError(f"Got {source!r}; write the path of a folder, or 'org/name'.")  # '' is not '.'
    path = Path(source.removeprefix('local-dir:') if isinstance(source, str) else source).expanduser()
    if (path / 'config.json').is_file():
        return path
    if isinstance(source, str) and not source.startswith('local-dir:'):
        try:
            split_revision(source)
            return None
        except FetchError:
            if not path.is_dir():
                raise
    if not path.is_dir():
        raise FetchError(f'There is no folder {path}; check the path.')
    return path


def resolved_commit(folder: str | os.PathLike[str]) -> str | None:
    """Return the commit of a snapshot folder in the Hub's cache, 40 hexadecimal digits, or None for other folders."""
    path = Path(folder)
    return path.name if path.parent.name == 'snapshots' and _COMMIT.fullmatch(path.name) else None


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
        source: a folder, 'org/name' or 'org/name@revision'.
        filenames: files that have to be there.
        revision: branch, tag or commit, if `source` names none; default: main.
        optional: files that are fetched if they exist.
        cache_dir, token, local_files_only, force_download: as in huggingface_hub.
        max_bytes: the largest file accepted; larger ones are not downloaded.
    """
    folder = local_folder(source)
    if folder is None:
        name = str(source).removeprefix('hf-hub:')
        repo_id, named = split_revision(name if revision is None else f'{name.partition("@")[0]}@{revision}')
        if revision is not None and split_revision(name)[1] not in (None, revision):
            raise FetchError(f'Got two revisions, {name!r} and revision={revision!r}; leave one of them out.')
        cache = None if cache_dir is None else Path(cache_dir).expanduser()
        repository = _Repository(repo_id, named or 'main', cache, token)
        if local_files_only or constants.HF_HUB_OFFLINE:
            folder = repository.offline(filenames, force_download)
        else:
            folder = repository.online(filenames, optional, force_download, max_bytes)
    elif revision is not None:
        raise FetchError(f'Got revision={revision!r} for the folder {folder}; folders have no revisions, leave it out.')
    _check_files(folder, filenames, optional, max_bytes)
    return folder


@dataclass(frozen=True)
class _Repository:
    """A repository at a revision, and its copy in the client's cache."""

    repo_id: str
    revision: str
    cache_dir: Path | None
    token: str | bool | None

    @property
    def name(self) -> str:
        return self.repo_id if self.revision == 'main' else f'{self.repo_id}@{self.revision}'

    def offline(self, filenames: Sequence[str], force_download: bool) -> Path:
        if force_download:
            raise FetchError(f'{self.name} cannot be downloaded again while offline; leave out force_download.')
        folder = self._cached(filenames)
        if folder is None:
            raise FetchError(
                f'{self.name} is not in the cache, or not completely, and downloads are off (HF_HUB_OFFLINE=1 or '
                f'local_files_only). Run `timm-p2be pull {self.name}` while online, or use a local folder.'
            )
        return folder

    def online(self, filenames: Sequence[str], optional: Sequence[str], force_download: bool, max_bytes: int) -> Path:
        """Return the snapshot folder after downloading what is missing, or an older one if the Hub is unreachable.

        The first request is made once, without the client's pauses and repetitions: a Hub that is down is told at once.
        """
        wanted = [*filenames, *optional]
        if _COMMIT.fullmatch(self.revision) and not force_download and (folder := self._cached(wanted)):
            return folder  # a commit never changes: nothing to ask
        try:
            with asking(self.name, self.token):
                info = HfApi(token=self.token).model_info(
                    self.repo_id,
                    revision=self.revision,
                    files_metadata=True,
                    timeout=constants.HF_HUB_ETAG_TIMEOUT,
                )
        except UnreachableError as error:
            if force_download or (folder := self._cached(filenames)) is None:
                raise
            _logger.warning('%s Using the copy in the cache, commit %s.', error, folder.name)
            return folder
        sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
        if missing := [name for name in filenames if name not in sizes]:
            there = ', '.join(sorted(sizes)[:10]) or 'nothing'
            raise FetchError(f'{self.name} has no file {missing[0]!r} (404). It has: {there}. Is it the right one?')
        for name in wanted:
            if (size := sizes.get(name) or 0) > max_bytes:
                raise _too_large(f'{name!r} of {self.name}', size, max_bytes)
        with asking(self.name, self.token):  # one after the other: an interrupt would wait for the client's threads
            paths = [
                hf_hub_download(
                    self.repo_id,
                    name,
                    revision=info.sha,
                    cache_dir=self.cache_dir,
                    token=self.token,
                    force_download=force_download,
                )
                for name in wanted
                if name in sizes
            ]
            folder = Path(paths[0]).parent
            if self.revision != info.sha:  # by this name it is found offline
                ref = folder.parents[1] / 'refs' / self.revision
                ref.parent.mkdir(parents=True, exist_ok=True)
                ref.write_text(str(info.sha))
        return folder

    def _cached(self, filenames: Sequence[str]) -> Path | None:
        """Return the snapshot folder of this revision if all files are in it, else None."""
        paths = [try_to_load_from_cache(self.repo_id, name, self.cache_dir, self.revision) for name in filenames]
        return Path(str(paths[0])).parent if all(isinstance(path, str) for path in paths) else None


def _check_files(folder: Path, filenames: Sequence[str], optional: Sequence[str], max_bytes: int) -> None:
    """Accept files that are regular, not too large, and inside the folder even if links are followed."""
    real = folder.resolve()
    homes = [real]
    if resolved_commit(real):  # snapshots link to the blobs of their repository, or to those shared by the whole cache
        homes += [real.parents[1] / 'blobs', real.parents[2] / 'blobs']
    for name in (*filenames, *optional):
        path = folder / name
        if not path.exists():
            if name in filenames:
                raise FetchError(f'{folder} has no file {name!r}. Is it the right folder, and whole?')
            continue
        if not path.is_file() or not any(path.resolve().is_relative_to(home) for home in homes):
            raise FetchError(f'{path} is no regular file, or a link that leads out of its folder; put the file there.')
        if path.stat().st_size > max_bytes:
            raise _too_large(str(path), path.stat().st_size, max_bytes)


def _too_large(what: str, size: int, max_bytes: int) -> FetchError:
    return FetchError(
        f'{what} has {size} bytes; at most {max_bytes} are accepted. Is it the right one? If so, read it in '
        'Python: timm_p2be.hub.fetch.fetch takes another max_bytes.'
    )
