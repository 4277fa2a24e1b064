"""An embedding from the Hub or a folder, checked."""

import os
from pathlib import Path

from timm_p2be.artefact.folder import FILES, MAX_BYTES, Artefact, read_artefact
from timm_p2be.artefact.record import read_config
from timm_p2be.sources import SourceError, UnreachableError, fetch


def fetch_artefact(
    source: str | os.PathLike[str],
    revision: str | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Artefact:
    """Return an embedding; its two files come from one commit.

    Args:
        source: a folder, 'org/name' or 'org/name@revision', see `timm_p2be.sources.fetch`.
        revision: branch, tag or commit; main by default.
        cache_dir: the Hub's cache; that of huggingface_hub by default.
        token: of the Hub; the one of `hf auth login` or HF_TOKEN by default, False for none.
        local_files_only: use what was downloaded before, ask nothing.
        force_download: download again what was downloaded before.

    Raises:
        SourceError: no such folder, repository, revision or file, no access, no connection, not in the cache.
        ArtefactError: what is there is no embedding, damaged, or written by a newer version.
    """

    def fetched(filenames: tuple[str, ...]) -> Path:
        return fetch(
            source,
            filenames,
            revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
            max_bytes=MAX_BYTES,
        )

    try:
        return read_artefact(fetched(FILES))
    except UnreachableError:
        raise
    except SourceError:
        read_config(fetched(FILES[:1]))  # a model's weights are too large for a table; its record says what it is
        raise
