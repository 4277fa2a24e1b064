"""What a `PixelEmbedding` needs of the Hub: its card, its download, its upload."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from timm_p2be.encodings.table_file import TableFile, check_config, read_table_file
from timm_p2be.hub.card import embedding_card
from timm_p2be.hub.errors import asking
from timm_p2be.hub.repository import Contents, fetch_repository

__all__ = ['embedding_card', 'fetch_table', 'uploading']


def fetch_table(source: str | os.PathLike[str], revision: str | None = None, **options: Any) -> TableFile:
    """Return a table, every part of which has been checked; its two files come from one commit.

    Args:
        source: a folder, 'org/name' or 'org/name@revision'.
        revision: branch, tag or commit; main by default.
        **options: `cache_dir`, `token`, `local_files_only`, `force_download` of `timm_p2be.hub.fetch.fetch`.

    Raises:
        FetchError: no such folder, repository, revision or file, no access, no connection, not in the cache.
        ValueError: what is there is no table, damaged, or written by a newer version.
    """
    return read_table_file(fetch_repository(source, revision, check=_is_table, **options)[0])


def _is_table(contents: Contents) -> None:
    if contents.kind != 'embedding':
        check_config({'architecture': contents.architecture}, 'config.json')


@contextmanager
def uploading(repo_id: str, token: str | bool | None) -> Iterator[None]:
    """Turn what goes wrong in an upload into a FetchError that says what to do next."""
    with asking(repo_id, token, trust_arguments=False):
        yield
