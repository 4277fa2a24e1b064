"""The embedding artifact: a folder with a table in `model.safetensors` and its whole record in `config.json`.

The table is there twice, as latents (p2be only) and as packed bits, and is used only if the two, the sha256 in the
record and, for a fixed encoding, the formula agree. Reading opens no other file of the folder.
"""

from timm_p2be.hub.artifact.folder import FILES, MAX_BYTES, Artifact, fetch_artifact, read_artifact, write_artifact
from timm_p2be.hub.artifact.record import (
    FORMAT_VERSION,
    MAX_BITS,
    MAX_CONFIG_BYTES,
    artifact_config,
    check_config,
    read_config,
)
from timm_p2be.hub.artifact.table import ArtifactError, codes_sha256

__all__ = [
    'FILES',
    'FORMAT_VERSION',
    'MAX_BITS',
    'MAX_BYTES',
    'MAX_CONFIG_BYTES',
    'Artifact',
    'ArtifactError',
    'artifact_config',
    'check_config',
    'codes_sha256',
    'fetch_artifact',
    'read_artifact',
    'read_config',
    'write_artifact',
]
