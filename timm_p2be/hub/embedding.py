"""What a `PixelEmbedding` needs of the Hub: its card, its download, its upload."""

import os
from typing import Any

from timm_p2be.encodings.table_file import TableFile, read_table_file
from timm_p2be.hub.card import render_card
from timm_p2be.hub.errors import asking
from timm_p2be.hub.repository import Contents, fetch_repository

__all__ = ['asking', 'fetch_table', 'render_card']


def fetch_table(source: str | os.PathLike[str], revision: str | None = None, **options: Any) -> TableFile:
    """Return a table, every part of which has been checked; arguments as of `timm_p2be.hub.fetch.fetch`."""
    return read_table_file(fetch_repository(source, revision, check=_is_table, **options)[0])


def _is_table(contents: Contents) -> None:
    if contents.kind != 'embedding':
        raise ValueError(
            f'Got a {contents.describe()}, no table. Load it with timm.create_model("hf-hub:ORG/NAME" or '
            '"local-dir:FOLDER", pretrained=True); timm_p2be.find_embedding(model) is its table.'
        )
