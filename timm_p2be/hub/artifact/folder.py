"""An embedding as a whole: its two files written to a folder, read and held against each other, or fetched."""

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from timm_p2be.files import atomic_write
from timm_p2be.hub.artifact.record import CONFIG_FILE, INSTALLED, MAX_BITS, artifact_config, config_bytes, read_config
from timm_p2be.hub.artifact.table import WEIGHTS_FILE, max_weights_bytes, read_table, table_bytes
from timm_p2be.hub.sources import SourceError, UnreachableError, fetch

FILES = (CONFIG_FILE, WEIGHTS_FILE)
CARD_FILE = 'README.md'
MAX_BYTES = max_weights_bytes(MAX_BITS)  # no file of an embedding is larger


@dataclass(frozen=True, eq=False)
class Artifact:
    """A table read from a folder.

    Attributes:
        encoding: 'p2be', 'onehot' or 'thermometer'.
        num_bits: M, code length.
        init: how the latents once started, one of `timm_p2be.encodings.codes.INITS`.
        codes: (256, M) float32 tensor of 0 and 1.
        latents: (256, M) float32 tensor, or None for a fixed encoding.
        provenance: see `timm_p2be.hub.provenance.check_provenance`; None if unknown.
        codes_sha256: sha256 of the packed codes, hexadecimal.
    """

    encoding: str
    num_bits: int
    init: str
    codes: Tensor
    latents: Tensor | None
    provenance: dict[str, Any] | None
    codes_sha256: str


def write_artifact(
    folder: str | Path,
    codes: Tensor,
    latents: Tensor | None,
    *,
    encoding: str,
    init: str,
    provenance: dict[str, Any] | None,
    package_version: str | None = INSTALLED,
    card: str | None = None,
) -> None:
    """Write a table, its record and its card; the folder has a config.json only while everything else is complete.

    Args:
        folder: created if it is not there; other files in it stay, also a README.md that is no card of this package.
        codes: (256, M) tensor of 0 and 1, M at most 4096.
        latents: (256, M) floating point tensor, saved as float32; None for a fixed encoding.
        encoding: 'p2be', 'onehot' or 'thermometer'.
        init: one of `timm_p2be.encodings.codes.INITS`.
        provenance: JSON values, see `timm_p2be.hub.provenance.check_provenance`; None if unknown.
        package_version: of this package; None if unknown.
        card: what README.md is to hold; None leaves that file alone.

    Raises:
        ArtifactError: the table or the record is one that `read_artifact` would refuse; nothing was written.
        OSError: the disk is full or the folder is not writable.
    """
    config = artifact_config(
        codes, encoding=encoding, init=init, provenance=provenance, package_version=package_version
    )
    content = {WEIGHTS_FILE: table_bytes(codes, latents, encoding), CONFIG_FILE: config_bytes(config)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if card is not None and _may_write_card(folder / CARD_FILE):
        content = {CARD_FILE: card.encode(), **content}
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    for name, data in content.items():
        with atomic_write(folder / name) as file:
            file.write(data)


def _may_write_card(path: Path) -> bool:
    """Return whether nothing is lost: `path` does not exist, or is a card of this package; else warn."""
    if not path.exists():
        return True
    try:
        if re.match(r'---\n((?!---\n).*\n)*library_name: timm-p2be\n', path.read_text(encoding='utf-8')):
            return True
    except (OSError, UnicodeDecodeError):
        pass
    warnings.warn(
        f'{path} is no card of timm-p2be. It was left as it is, and the table saved beside it without a card; for '
        'one, move the file away and save again.',
        stacklevel=4,
    )
    return False


def read_artifact(folder: str | Path) -> Artifact:
    """Return the embedding in a folder, after checking everything about it.

    Raises:
        ArtifactError: a file is missing, too large, damaged, of another format or a newer version; a value, tensor,
            shape or dtype is not allowed; latents are not finite; bits are not the signs of the latents, not those
            of the fixed encoding, or not those whose sha256 the record gives.
    """
    config = read_config(folder)
    encoding, num_bits, sha256 = config['encoding'], config['num_bits'], config['codes_sha256']
    codes, latents = read_table(Path(folder) / WEIGHTS_FILE, encoding, num_bits, sha256)
    return Artifact(encoding, num_bits, config['init'], codes, latents, config['provenance'], sha256)


def fetch_artifact(
    source: str | os.PathLike[str],
    revision: str | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Artifact:
    """Return an embedding; its two files come from one commit.

    Args:
        source: a folder, 'org/name' or 'org/name@revision', see `timm_p2be.hub.sources.fetch`.
        revision: branch, tag or commit; main by default.
        cache_dir: the Hub's cache; that of huggingface_hub by default.
        token: of the Hub; the one of `hf auth login` or HF_TOKEN by default, False for none.
        local_files_only: use what was downloaded before, ask nothing.
        force_download: download again what was downloaded before.

    Raises:
        SourceError: no such folder, repository, revision or file, no access, no connection, not in the cache.
        ArtifactError: what is there is no embedding, damaged, or written by a newer version.
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
        return read_artifact(fetched(FILES))
    except UnreachableError:
        raise
    except SourceError:
        read_config(fetched(FILES[:1]))  # a model's weights are too large for a table; its record says what it is
        raise
