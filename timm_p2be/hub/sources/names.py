"""What a source and its parts may be called, and the error of everything that cannot be used."""

import re
from pathlib import PurePosixPath, PureWindowsPath

_PART = re.compile(r'[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?')
_REVISION = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.+/-]{0,254}')  # also a file name below refs/ in the cache
COMMIT = re.compile(r'[0-9a-f]{40}')


class SourceError(ValueError):
    """A source that cannot be used. The message says what to do next and never shows a token."""


class UnreachableError(SourceError):
    """The Hub did not answer, or not now: a copy in the cache will do."""


def split_revision(name: str) -> tuple[str, str | None]:
    """Return the repository and the revision of 'organization/name' or 'organization/name@revision'.

    Args:
        name: each part has 1 to 96 letters, digits and `_.-`; a revision is a branch, a tag or a commit.

    Returns:
        The repository, and the revision or None.

    Raises:
        SourceError: the name is malformed.
    """
    repo_id, at, revision = name.partition('@')
    parts = repo_id.split('/')
    well_formed = len(parts) == 2 and all(_PART.fullmatch(part) and not re.search(r'\.\.|--', part) for part in parts)
    if not well_formed or repo_id.endswith('.git'):
        raise SourceError(
            f"Got {name!r}, which is no folder here and no repository on the Hub; write 'organization/name', "
            "'organization/name@revision', or the path of a folder."
        )
    return repo_id, checked_revision(revision) if at else None


def checked_revision(revision: str) -> str:
    """Return `revision` if it may be one: it becomes a file name in the cache, and must not lead out of it.

    The rules are those of https://git-scm.com/docs/git-check-ref-format that matter for a path.

    Raises:
        SourceError: it may not.
    """
    if not _REVISION.fullmatch(revision) or re.search(r'\.\.|//|/\.|/$|\.$|\.lock(/|$)', revision):
        raise SourceError(f'Got the revision {revision!r}; name a branch, a tag or a commit, such as main or v1.')
    return revision


def check_filename(name: str) -> None:
    """Accept a relative path with '/' that stays inside its folder.

    Raises:
        SourceError: the path is another.
    """
    parts = PurePosixPath(name).parts
    if not parts or '..' in parts or '\\' in name or PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
        raise SourceError(f"Got the file name {name!r}; it has to be relative, with '/' and without '..'.")
