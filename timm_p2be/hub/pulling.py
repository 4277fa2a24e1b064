"""Pulling a model or an embedding from the Hub: one commit of it, verified, into the cache or a folder."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from timm_p2be.files import atomic_folder, file_sha256
from timm_p2be.hub.errors import FetchError
from timm_p2be.hub.fetch import resolved_commit, split_revision
from timm_p2be.hub.repository import RELEASE_FILES, Contents, fetch_verified


@dataclass(frozen=True)
class Pulled:
    """A repository that was pulled and verified."""

    repo_id: str
    commit: str
    folder: Path
    contents: Contents
    sha256: dict[str, str]  # of files, by their names
    is_new: bool = True  # False if the output folder held exactly these files already

    @property
    def pinned(self) -> str:
        """'org/name@commit', which means the same files for ever."""
        return f'{self.repo_id}@{self.commit}'


def pull(source: str, output: Path | None = None, overwrite: bool = False) -> Pulled:
    """Download a repository at one commit, verify it, and say where it lies.

    Files in the cache that fail the verification are downloaded once more, in case the disk damaged them.

    Args:
        source: 'org/name' or 'org/name@revision'; never a local folder.
        output: folder to write plain files to, all of them or none; None leaves them in the cache.
        overwrite: replace what an earlier pull wrote to `output`.
    """
    name = source.removeprefix('hf-hub:')
    repo_id, _ = split_revision(name)
    get = partial(fetch_verified, f'hf-hub:{name}', optional=RELEASE_FILES[2:])
    try:
        folder, contents = get()
    except FetchError:
        raise
    except ValueError as damage:
        try:
            folder, contents = get(force_download=True)
        except FetchError as error:
            raise damage from error
    commit = resolved_commit(folder)
    assert commit is not None, 'what comes from the Hub has a commit'
    is_new = output is None or _write_folder(folder, output.absolute(), overwrite)
    place = folder if output is None else output.absolute()
    return Pulled(repo_id, commit, place, contents, _digests(place), is_new)


def _digests(folder: Path) -> dict[str, str]:
    paths = (folder / name for name in RELEASE_FILES)
    return {path.name: file_sha256(path) for path in paths if path.is_file()}


def _write_folder(snapshot: Path, output: Path, overwrite: bool) -> bool:
    """Copy a snapshot to `output`, all of it or nothing; return False if it is there already."""
    wanted = _digests(snapshot)
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise ValueError(f'{output} is not a folder. Choose another --output.')
    found = {path.name for path in output.iterdir()} if output.exists() else set()
    if found == set(wanted) and _digests(output) == wanted:
        return False
    if foreign := sorted(found - {*RELEASE_FILES}):
        raise ValueError(f'{output} holds files that no pull wrote, such as {foreign[0]!r}. Choose another --output.')
    if found and not overwrite:
        raise ValueError(f'{output} holds another version already. Choose another --output, or pass --overwrite.')
    with atomic_folder(output) as folder:
        for name in wanted:
            shutil.copyfile(snapshot / name, folder / name)
    return True
