"""The table of codes that a name, a file, a folder or a repository stands for, and where it comes from."""

from dataclasses import dataclass, replace
from pathlib import Path

import timm
from timm.models import split_model_name_tag
from torch import Tensor

from timm_p2be.checkpoints import read_checkpoint
from timm_p2be.encodings.codes import LEVELS, binarize, check_num_bits, fixed_codes
from timm_p2be.encodings.table_file import TableFile, names_table, read_table_file
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
    file: TableFile  # as `PixelEmbedding.save_pretrained` would write it
    commit: str | None = None


def find_table(source: str, num_bits: int | None = None) -> Table:
    """Return the table that `source` stands for, by the rules of `timm-p2be show --help`.

    `num_bits` is for 'onehot' and 'thermometer' alone, by default 64.
    """
    if source in _FIXED:
        bits = DEFAULT_BITS if num_bits is None else num_bits
        return Table(source, f'fixed encoding of {bits} bits', _fixed(source, bits))
    if num_bits is not None:
        raise ValueError(f'Got num_bits={num_bits} for {source}; only {" and ".join(_FIXED)} come in any length.')
    path = Path(source)
    if path.is_file():
        checkpoint = read_checkpoint(path)
        model = checkpoint.args.get('model')
        origin = f'table in a checkpoint of {model!r:.100}' if isinstance(model, str) else 'table in a file of weights'
        return Table(source, origin, _learned(checkpoint.state_dict, source))
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


def _of_repository(source: str) -> Table:
    def has_table(found: Contents) -> None:
        if found.num_bits is None:
            raise ValueError(f'{source} is a {found.describe()}: it has no table. Name an encoded model.')

    folder, found = fetch_repository(source, check=has_table)
    if found.kind == 'embedding':
        file = read_table_file(folder)
    else:
        state = verified_weights(folder, found)
        fixed = found.encoding in _FIXED
        file = _fixed(found.encoding, found.num_bits or 0) if fixed else _learned(state, source)
    return Table(source, found.describe(), replace(file, provenance=found.provenance), resolved_commit(folder))


def _of_registered(name: str) -> Table:
    if names_table(name):
        file = read_table_file(table_path(split_model_name_tag(name)[1]))
        return Table(name, 'table that ships with the package', file)
    has_weights = timm.is_model_pretrained(name)
    file = find_embedding(timm.create_model(name, pretrained=has_weights)).table_file()
    if file.latents is None:
        return Table(name, 'fixed table of a model', file)
    if not has_weights:
        raise ValueError(f'{name} has no shipped weights, so its table would be random. Name a checkpoint of it.')
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    provenance = shipped_weights()[f'{cfg.architecture}.{cfg.tag}']['provenance']
    return Table(name, 'table in the shipped weights of a model', replace(file, provenance=provenance))


def _fixed(encoding: str, num_bits: int) -> TableFile:
    check_num_bits(num_bits)
    return TableFile(encoding, 'normal', fixed_codes(encoding, num_bits), None)


def _learned(state: dict[str, Tensor], where: str) -> TableFile:
    """Return the one learned table in a model's weights."""
    found = [
        tensor
        for name, tensor in state.items()
        if name.endswith('embedding.weight')
        and f'{name.removesuffix("embedding.weight")}weight' in state  # of the convolution that reads the codes
        and tensor.ndim == 2
        and tensor.shape[0] == LEVELS
    ]
    if len(found) != 1:
        raise ValueError(
            f'{where} has {len(found)} learned tables (256 rows, beside the first convolution); exactly one is needed. '
            'Models of pixel values have none; a fixed one is shown by timm-p2be show thermometer --num-bits M, an '
            'embedding by its folder.'
        )
    latents = found[0].detach().float().cpu()
    if not bool(latents.isfinite().all()):
        raise ValueError(f'{where}: the table holds values that are not finite. Choose another checkpoint.')
    return TableFile('p2be', 'normal', binarize(latents), latents)
