"""One file of an embedding: read within bounds, and the error that names it."""

from pathlib import Path

AGAIN = 'Download or save the embedding again.'


class ArtefactError(ValueError):
    """The folder holds no embedding that can be used; the message names the file, the reason and what to do."""


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the content of a file, never reading more than `limit` bytes and one.

    Raises:
        ArtefactError: the file is larger, or cannot be read.
    """
    try:
        with path.open('rb') as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ArtefactError(f'{path} cannot be read ({error}). {AGAIN}') from error
    if len(content) > limit:
        raise ArtefactError(f'{path} has {path.stat().st_size} bytes; allowed are at most {limit}. {AGAIN}')
    return content
