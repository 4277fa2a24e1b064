"""The table of an embedding, its model.safetensors: packed bits, and the latents of a learned one."""

import hashlib
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from timm_p2be.encodings.codes import LEVELS, fixed_codes

WEIGHTS_FILE = 'model.safetensors'
AGAIN = 'Download or save the embedding again.'

_MAX_HEADER_BYTES = 2**16  # ours take about 200
_PICKLES = ('.bin', '.ckpt', '.pickle', '.pkl', '.pt', '.pth', '.tar')


class ArtifactError(ValueError):
    """The folder holds no embedding that can be used; the message names the file, the reason and what to do."""


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the content of a file, never reading more than `limit` bytes and one.

    Raises:
        ArtifactError: the file is larger, or cannot be read.
    """
    try:
        with path.open('rb') as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ArtifactError(f'{path} cannot be read ({error}). {AGAIN}') from error
    if len(content) > limit:
        raise ArtifactError(f'{path} has {path.stat().st_size} bytes; allowed are at most {limit}. {AGAIN}')
    return content


def codes_sha256(codes: Tensor) -> str:
    """Return the sha256 of a table of codes, packed as in the file.

    Args:
        codes: (256, M) tensor of 0 and 1, any dtype.

    Returns:
        64 hexadecimal digits, over 256 rows of ceil(M / 8) bytes; a row's first bit is its first byte's highest.
    """
    return hashlib.sha256(_pack(codes).tobytes()).hexdigest()


def max_weights_bytes(num_bits: int) -> int:
    """Return how large the model.safetensors of an M-bit table can be, in bytes."""
    return 8 + _MAX_HEADER_BYTES + LEVELS * (4 * num_bits + _row_bytes(num_bits))


def table_bytes(codes: Tensor, latents: Tensor | None, encoding: str) -> bytes:
    """Return the content of the file.

    Args:
        codes: (256, M) tensor of 0 and 1.
        latents: (256, M) floating point tensor, saved as float32; None for a fixed encoding.
        encoding: 'p2be', 'onehot' or 'thermometer'.

    Raises:
        ArtifactError: the table is one that `read_table` would refuse.
    """
    tensors = {'codes': torch.from_numpy(_pack(codes))}
    if latents is not None:
        latents = tensors['weight'] = latents.detach().to('cpu', torch.float32).contiguous()
    _check_table(codes.detach().cpu(), latents, encoding, 'The embedding to be saved', 'Correct it and save again.')
    return safetensors.torch.save(tensors, metadata={'format': 'pt'})


def read_table(path: Path, encoding: str, num_bits: int, sha256: str) -> tuple[Tensor, Tensor | None]:
    """Return codes and latents as (256, M) float32 tensors; latents are None for a fixed encoding.

    Args:
        path: the file.
        encoding: 'p2be', 'onehot' or 'thermometer'.
        num_bits: M.
        sha256: of the packed codes, hexadecimal.

    Raises:
        ArtifactError: the file is missing, too large or damaged, holds other tensors, shapes or dtypes, latents that
            are not finite, or bits that are not the signs of the latents, not those of the fixed encoding, or not
            those of this `sha256`.
    """
    if not path.is_file():
        pickles = sorted(other.name for other in path.parent.glob('*') if other.suffix in _PICKLES)
        instead = f', only {pickles[:3]}: pickles, which can run code and are never opened here' if pickles else ''
        raise ArtifactError(
            f'{path} does not exist{instead}. Get an embedding saved by PixelEmbedding.save_pretrained.'
        )
    packed, latents = _parse(path, encoding, num_bits)
    found = hashlib.sha256(packed.tobytes()).hexdigest()
    if found != sha256:
        raise ArtifactError(f'{path}: the codes have sha256 {found}, config.json says {sha256}. {AGAIN}')
    bits = np.unpackbits(packed, axis=1)
    if bits[:, num_bits:].any():
        raise ArtifactError(f'{path}: bits beyond the {num_bits} of a code are set; allowed is 0. {AGAIN}')
    codes = torch.from_numpy(bits[:, :num_bits].astype(np.float32))
    _check_table(codes, latents, encoding, str(path), AGAIN)
    return codes, latents


def _row_bytes(num_bits: int) -> int:
    return (num_bits + 7) // 8


def _pack(codes: Tensor) -> NDArray[np.uint8]:
    return np.packbits(codes.detach().cpu().numpy().astype(np.uint8), axis=1)


def _parse(path: Path, encoding: str, num_bits: int) -> tuple[NDArray[np.uint8], Tensor | None]:
    """Return packed codes and latents of the right shapes and dtypes, nothing else checked."""
    try:
        found = dict(safetensors.deserialize(read_bounded(path, max_weights_bytes(num_bits))))
    except safetensors.SafetensorError as error:
        raise ArtifactError(f'{path} is damaged or no safetensors file ({error}). {AGAIN}') from error
    expected = {'codes': ('U8', [LEVELS, _row_bytes(num_bits)])}
    if encoding == 'p2be':
        expected['weight'] = ('F32', [LEVELS, num_bits])
    got = {name: (tensor['dtype'], list(tensor['shape'])) for name, tensor in found.items()}
    if got != expected:
        shown = dict(sorted(got.items())[:4])  # a foreign file may hold thousands
        raise ArtifactError(f'{path} holds the tensors {str(shown)[:300]}; allowed are exactly {expected}. {AGAIN}')
    packed = np.frombuffer(found['codes']['data'], np.uint8).reshape(LEVELS, -1)
    if encoding != 'p2be':
        return packed, None
    latents = np.frombuffer(found['weight']['data'], '<f4').astype(np.float32).reshape(LEVELS, num_bits)
    return packed, torch.from_numpy(latents)


def _check_table(codes: Tensor, latents: Tensor | None, encoding: str, where: str, next_step: str) -> None:
    """Raise unless the codes are those of the encoding or of the latents, and the latents finite."""
    if (latents is None) != (encoding != 'p2be'):
        got = 'no latents' if latents is None else 'latents'
        raise ArtifactError(f"{where} has encoding {encoding!r} and {got}; only 'p2be' has latents. {next_step}")
    if latents is None:
        bits, rule = fixed_codes(encoding, codes.shape[1]), f'encoding {encoding!r}'
    else:
        if latents.shape != codes.shape:
            shapes = f'latents of shape {tuple(latents.shape)}; allowed is {tuple(codes.shape)}, that of its codes'
            raise ArtifactError(f'{where} has {shapes}. {next_step}')
        wrong = int((~latents.isfinite()).sum())
        if wrong:
            raise ArtifactError(f'{where}: {wrong} latents are NaN or infinite; allowed are finite ones. {next_step}')
        bits, rule = (latents >= 0).float(), 'the signs of the latents'
    differing = (bits != codes).nonzero().tolist()
    if differing:
        raise ArtifactError(
            f'{where}: {len(differing)} of {codes.numel()} bits are not those of {rule}, the first at level '
            f'{differing[0][0]}, bit {differing[0][1]}. {next_step}'
        )
