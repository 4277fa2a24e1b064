"""A repository of the Hub at one revision, and its copy in the client's cache."""

import logging
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, get_token, hf_hub_download, try_to_load_from_cache

from timm_p2be.hub.sources.failures import LOGIN, clear_errors, no_hub, sound_answers
from timm_p2be.hub.sources.folders import too_large
from timm_p2be.hub.sources.names import COMMIT, SourceError, UnreachableError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Repository:
    """A repository at a revision, and how its files get here.

    Attributes:
        repo_id: 'organization/name'.
        revision: branch, tag or commit.
        cache_dir: the Hub's cache, None for the client's default.
        token: as in huggingface_hub.
    """

    repo_id: str
    revision: str
    cache_dir: Path | None
    token: str | bool | None

    def __str__(self) -> str:
        return self.repo_id if self.revision == 'main' else f'{self.repo_id}@{self.revision}'

    def cached(self, filenames: Sequence[str]) -> Path | None:
        """Return the snapshot folder of this revision if all files are in it, else None."""
        folder = None
        for name in filenames:
            path = try_to_load_from_cache(self.repo_id, name, self.cache_dir, folder.name if folder else self.revision)
            if not isinstance(path, str):
                return None
            folder = _above(path, name)
        return folder

    def offline(self, filenames: Sequence[str], force_download: bool) -> Path:
        """Return the snapshot folder without asking the Hub.

        Raises:
            SourceError: a file is not in the cache, or it should be downloaded again.
        """
        if force_download:
            raise SourceError(f'{self} cannot be downloaded again while offline; leave out force_download.')
        folder = self.cached(filenames)
        if folder is None:
            raise SourceError(
                f'{self} is not in the cache, or not completely, and downloads are off (HF_HUB_OFFLINE=1 or '
                f'local_files_only). Run `timm-p2be pull {self}` while online, or use a local folder.'
            )
        return folder

    def online(self, filenames: Sequence[str], optional: Sequence[str], force_download: bool, max_bytes: int) -> Path:
        """Return the snapshot folder after downloading what is missing, or an older one if the Hub is unreachable.

        The client repeats failed requests for a file up to five times, with a log message and a pause of seconds; the
        first request of all is made once, so that a Hub that is down is reported at once.

        Raises:
            SourceError: the Hub refused, or could not be reached and nothing is cached, or a file is too large.
        """
        if COMMIT.fullmatch(self.revision) and not force_download:
            folder = self.cached([*filenames, *optional])  # a commit never changes: nothing to ask
            if folder is not None:
                return folder
        try:
            commit, sizes = self._listing()
        except UnreachableError as error:
            folder = None if force_download else self.cached(filenames)
            if folder is None:
                raise
            _logger.warning('%s Using the copy in the cache, commit %s.', error, folder.name)
            return folder
        wanted = [*filenames, *(name for name in optional if name in sizes)]
        self._check_sizes(sizes, wanted, max_bytes)
        folder = self._download(commit, wanted, force_download)
        earlier = self._remembered(folder)
        # with less than the earlier snapshot had, this one would be of less use while offline
        if not any((earlier / name).exists() and not (folder / name).exists() for name in sizes):
            self.remember(folder)
        return folder

    def _download(self, commit: str, wanted: Sequence[str], force_download: bool) -> Path:
        with clear_errors(str(self)):
            paths = [
                hf_hub_download(
                    self.repo_id,
                    name,
                    revision=commit,
                    cache_dir=self.cache_dir,
                    token=self.token,
                    force_download=force_download,
                )
                for name in wanted
            ]
        return _above(paths[0], wanted[0])

    def _listing(self) -> tuple[str, dict[str, int | None]]:
        """The commit and the sizes of its files, in one request."""
        with sound_answers(str(self)):
            info = HfApi(token=self.token).model_info(
                self.repo_id, revision=self.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
            raise no_hub(str(self))
        return info.sha, {sibling.rfilename: sibling.size for sibling in info.siblings or ()}

    def _check_sizes(self, sizes: dict[str, int | None], wanted: Sequence[str], max_bytes: int) -> None:
        """Refuse what is not there or too large before anything is downloaded."""
        for name in wanted:
            if name not in sizes:
                there = ', '.join(sorted(sizes)[:10]) or 'nothing'
                raise SourceError(f'{self} has no file {name!r} (404). It has: {there}. Is it the right repository?')
            size = sizes[name]
            if size is None or size > max_bytes:
                raise SourceError(too_large(f'{name!r} of {self}', size, max_bytes))

    def remember(self, folder: Path) -> None:
        """Let the revision mean this snapshot while offline."""
        if self.revision == folder.name:
            return
        ref = self._ref(folder)
        new = ref.with_name(f'{ref.name}.{uuid.uuid4().hex}.tmp')
        try:
            ref.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(folder.name)
            new.replace(ref)
        except OSError as error:  # a cache may be read-only
            _logger.warning('The cache cannot remember the commit of %s: %s', self, error)

    def _remembered(self, snapshot: Path) -> Path:
        """Return the snapshot that the revision has meant so far, this one if there is none."""
        try:
            commit = self._ref(snapshot).read_text()
        except (OSError, UnicodeDecodeError):
            return snapshot
        return snapshot.with_name(commit) if COMMIT.fullmatch(commit) else snapshot

    def _ref(self, snapshot: Path) -> Path:
        """Where the cache keeps the commit that the revision means."""
        return snapshot.parent.parent / 'refs' / self.revision


def _above(path: str, name: str) -> Path:
    """The folder in which `name` is the file at `path`."""
    return Path(path).parents[len(PurePosixPath(name).parts) - 1]


def checked_token(token: str | bool | None) -> str | bool | None:
    """Return `token` unless it, or the stored one, does not fit into an HTTP header.

    The HTTP library would repeat it in its message.

    Raises:
        SourceError: it does not fit.
    """
    value = token if isinstance(token, str) else None if token is False else get_token()
    if value is not None and not re.fullmatch(r'[!-~]+', value):
        raise SourceError(f'The token contains spaces, line breaks or other characters no token has; {LOGIN} again.')
    return token
