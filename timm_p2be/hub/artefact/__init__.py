"""The embedding artefact: a folder with a table in `model.safetensors` and its whole record in `config.json`.

The table is there twice, as latents (p2be only) and as packed bits, and is used only if the two, the sha256 in the
record and, for a fixed encoding, the formula agree. Reading opens no other file of the folder.
"""

from timm_p2be.hub.artefact.folder import FILES, MAX_BYTES, Artefact, fetch_artefact, read_artefact, write_artefact
from timm_p2be.hub.artefact.record import (
    FORMAT_VERSION,
    MAX_BITS,
    MAX_CONFIG_BYTES,
    artefact_config,
    check_config,
    read_config,
)
from timm_p2be.hub.artefact.table import ArtefactError, codes_sha256

__all__ = [
    'FILES',
    'FORMAT_VERSION',
    'MAX_BITS',
    'MAX_BYTES',
    'MAX_CONFIG_BYTES',
    'Artefact',
    'ArtefactError',
    'artefact_config',
    'check_config',
    'codes_sha256',
    'fetch_artefact',
    'read_artefact',
    'read_config',
    'write_artefact',
]
