"""The folder of an embedding: both files written, both read and held against each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from timm_p2be.artefact.record import CONFIG_FILE, MAX_BITS, artefact_config, config_bytes, read_config
from timm_p2be.artefact.table import WEIGHTS_FILE, max_weights_bytes, read_table, table_bytes
from timm_p2be.whole_files import whole_file

FILES = (CONFIG_FILE, WEIGHTS_FILE)
MAX_BYTES = max_weights_bytes(MAX_BITS)  # no file of an embedding is larger


@dataclass(frozen=True, eq=False)
class Artefact:
    """A table read from a folder.

    Attributes:
        encoding: 'p2be', 'onehot' or 'thermometer'.
        num_bits: M, code length.
        init: how the latents once started, 'normal' or 'thermometer'.
        codes: (256, M) float32 tensor of 0 and 1.
        latents: (256, M) float32 tensor, or None for a fixed encoding.
        provenance: see `timm_p2be.provenance.check_provenance`; None if unknown.
        codes_sha256: sha256 of the packed codes, hexadecimal.
    """

    encoding: str
    num_bits: int
    init: str
    codes: Tensor
    latents: Tensor | None
    provenance: dict[str, Any] | None
    codes_sha256: str


def write_artefact(
    folder: str | Path,
    codes: Tensor,
    latents: Tensor | None,
    *,
    encoding: str,
    init: str,
    provenance: dict[str, Any] | None,
    package_version: str | None,
) -> None:
    """Write a table and its record; the folder has a config.json only while both are complete.

    Args:
        folder: created if it is not there; other files in it stay.
        codes: (256, M) tensor of 0 and 1, M at most 4096.
        latents: (256, M) floating point tensor, saved as float32; None for a fixed encoding.
        encoding: 'p2be', 'onehot' or 'thermometer'.
        init: 'normal' or 'thermometer'.
        provenance: JSON values, see `timm_p2be.provenance.check_provenance`; None if unknown.
        package_version: version of this package; None if unknown.

    Raises:
        ArtefactError: the table or the record is one that `read_artefact` would refuse; nothing was written.
        OSError: the disk is full or the folder is not writable.
    """
    config = artefact_config(
        codes, encoding=encoding, init=init, provenance=provenance, package_version=package_version
    )
    record, table = config_bytes(config), table_bytes(codes, latents, encoding)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    for name, content in ((WEIGHTS_FILE, table), (CONFIG_FILE, record)):
        with whole_file(folder / name) as file:
            file.write(content)


def read_artefact(folder: str | Path) -> Artefact:
    """Return the embedding in a folder, after checking everything about it.

    Raises:
        ArtefactError: a file is missing, too large, damaged, of another format or a newer version; a value, tensor,
            shape or dtype is not allowed; latents are not finite; bits are not the signs of the latents, not those
            of the fixed encoding, or not those whose sha256 the record gives.
    """
    config = read_config(folder)
    encoding, num_bits, sha256 = config['encoding'], config['num_bits'], config['codes_sha256']
    codes, latents = read_table(Path(folder) / WEIGHTS_FILE, encoding, num_bits, sha256)
    return Artefact(encoding, num_bits, config['init'], codes, latents, config['provenance'], sha256)
