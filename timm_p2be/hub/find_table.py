"""The table of codes that a name, a file, a folder or a repository stands for, and where it comes from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models import split_model_name_tag
from torch import Tensor

from timm_p2be.checkpoints import read_checkpoint
from timm_p2be.encodings.codes import LEVELS, binarize, check_num_bits, fixed_codes
from timm_p2be.encodings.table_file import names_table, read_table_file
from timm_p2be.hub.fetch import resolved_commit
from timm_p2be.hub.repository import DEFAULT_BITS, FILES, Contents, fetch_repository, verified_weights
from timm_p2be.models.tables import table_path
from timm_p2be.models.weights import shipped_weights
from timm_p2be.stem import find_embedding

_FIXED = ('onehot', 'thermometer')


@dataclass(frozen=True, eq=False)
class Table:
    """A table of codes with its history."""

    source: str  # what was asked for
    origin: str  # what that turned out to be, in a few words
    encoding: str
    codes: Tensor  # (256, M) float32, 0 and 1
    latents: Tensor | None = None  # (256, M) float32; None for a fixed encoding
    provenance: dict[str, Any] | None = None
    commit: str | None = None


def find_table(source: str, num_bits: int | None = None) -> Table:
    """Return the table that `source` stands for, by the rules of `timm-p2be show --help`.

    Args:
        source: a name, file, folder or repository.
        num_bits: M of 'onehot' or 'thermometer', 64 by default; for nothing else.
    """
    if source in _FIXED:
        bits = DEFAULT_BITS if num_bits is None else num_bits
        check_num_bits(bits)
        return Table(source, f'fixed encoding of {bits} bits', source, fixed_codes(source, bits))
    if num_bits is not None:
        raise ValueError(f'Got num_bits={num_bits} for {source}; only {" and ".join(_FIXED)} come in any length.')
    path = Path(source)
    if path.is_file():
        return _of_checkpoint(path)
    if ':' in source or '/' in source or (path / FILES[0]).is_file():
        return _of_repository(source)
    if timm.is_model(source):
        return _of_registered(source)
    if path.is_dir():
        raise ValueError(
            f'The folder {source} has no {FILES[0]}. Name a checkpoint in it: {path / "model_best.pth.tar"}.'
        )
    raise ValueError(
        f'Unknown table {source!r}. Name {" or ".join(_FIXED)}, a checkpoint file, a folder with a {FILES[0]}, '
        "'org/name[@revision]' on the Hub, or a model with shipped weights (timm-p2be list shows them)."
    )


def _of_checkpoint(path: Path) -> Table:
    checkpoint = read_checkpoint(path)
    latents = _learned_table(checkpoint.state_dict, str(path))
    model = checkpoint.args.get('model')
    origin = f'table in a checkpoint of {model!r:.100}' if model else 'table in a file of weights'
    return Table(str(path), origin, 'p2be', binarize(latents), latents)


def _of_repository(source: str) -> Table:
    def has_table(found: Contents) -> None:
        if found.num_bits is None:
            raise ValueError(f'{source} is a {found.describe()}: it has no table. Name an encoded model.')

    folder, found = fetch_repository(source, check=has_table)
    latents: Tensor | None
    if found.kind == 'embedding':
        file = read_table_file(folder)
        codes, latents = file.codes, file.latents
    else:
        state = verified_weights(folder, found)
        latents = None if found.encoding in _FIXED else _learned_table(state, source)
        codes = fixed_codes(found.encoding, found.num_bits or 0) if latents is None else binarize(latents)
    commit = resolved_commit(folder)
    return Table(source, found.describe(), found.encoding, codes, latents, found.provenance, commit)


def _of_registered(name: str) -> Table:
    if names_table(name):
        file = read_table_file(table_path(split_model_name_tag(name)[1]))
        origin = 'table that ships with the package'
        return Table(name, origin, file.encoding, file.codes, file.latents, file.provenance)
    has_weights = timm.is_model_pretrained(name)
    embedding = find_embedding(timm.create_model(name, pretrained=has_weights))
    if embedding.weight is None:
        return Table(name, 'fixed table of a model', embedding.encoding, embedding.codes())
    if not has_weights:
        raise ValueError(f'{name} has no shipped weights, so its table would be random. Name a checkpoint of it.')
    latents = embedding.weight.detach()
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    provenance = shipped_weights()[f'{cfg.architecture}.{cfg.tag}']['provenance']
    return Table(name, 'table in the shipped weights of a model', 'p2be', binarize(latents), latents, provenance)


def _learned_table(state: dict[str, Tensor], where: str) -> Tensor:
    """Return the one learned table in a model's weights, float32."""
    found = {
        name: tensor
        for name, tensor in state.items()
        if name.endswith('embedding.weight')
        and f'{name.removesuffix("embedding.weight")}weight' in state  # of the convolution that reads the codes
        and tensor.ndim == 2
        and tensor.shape[0] == LEVELS
    }
    if len(found) != 1:
        raise ValueError(
            f'{where} has {len(found)} learned tables (256 rows, beside the first convolution); exactly one is needed. '
            'Models of pixel values have none; a fixed one is shown by timm-p2be show thermometer --num-bits M, an '
            'embedding by its folder.'
        )
    (latents,) = found.values()
    if not bool(latents.isfinite().all()):
        raise ValueError(f'{where}: the table holds values that are not finite. Choose another checkpoint.')
    return latents.detach().float().cpu()
