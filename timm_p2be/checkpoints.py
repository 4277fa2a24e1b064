"""The one reader of weights: training checkpoints, state dicts and safetensors, none of which can run code."""

import argparse
import hashlib
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor

from timm_p2be.files import file_sha256, leaves_of, shown


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file of weights holds: tensors on the CPU, averaged ones if it has some, without prefixes of DDP."""

    state_dict: dict[str, Tensor]
    args: dict[str, Any]  # flags of the training run; empty if the file has none
    raw: dict[str, Any]  # entries of a training checkpoint, in timm's format; else empty


def sha256_beside(path: Path) -> Path:
    """Return the file that holds the sha256 of another one, as `sha256sum --check` reads it."""
    return path.with_name(f'{path.name}.sha256')


def read_checkpoint(path: str | Path, *, what: str = 'checkpoint') -> Checkpoint:
    """Return the weights in a file, and what a training checkpoint holds besides them.

    Pickles are read by torch's `weights_only=True`, which loads tensors and plain containers; `argparse.Namespace`, in
    which timm saves flags, is the one class allowed besides. Compressed files are refused, and tensors that are larger
    than the file. A sha256 that lies beside the file has to be the file's.

    Args:
        path: a checkpoint of train.py (.pth.tar), a state dict (.pth, .pt) or a .safetensors file.
        what: what messages call the file, such as the flag that named it.
    """
    path, named = Path(path), f'{what} {path}'
    if not path.is_file():
        raise ValueError(
            f'{named}: no such file. Runs write last.pth.tar and model_best.pth.tar into their output folder.'
        )
    _check_sha256(path, named)
    if path.suffix == '.safetensors':
        try:
            return Checkpoint(load_file(path), {}, {})
        except Exception as error:  # of dtypes that torch does not have, say
            raise ValueError(
                f'{named}: truncated or no safetensors file ({error}). Copy or download it again.'
            ) from error
    content = _load(path, named)
    if not isinstance(content, dict):
        raise ValueError(
            f'{named}: not a training checkpoint but a {type(content).__name__}; allowed is one, or a state dict.'
        )
    averaged = content.get('state_dict_ema')
    state = content.get('state_dict', content) if averaged is None else averaged
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise ValueError(
            f'{named}: its entries are not all tensors with names, so it is neither a checkpoint nor a state dict.'
        )
    args = content.get('args')
    return Checkpoint(
        clean_state_dict(state),
        vars(args) if isinstance(args, argparse.Namespace) else {},
        {} if state is content else content,
    )


def _load(path: Path, named: str) -> Any:
    """Return what torch reads from a file without running code, and within limits."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                    raise ValueError('it is compressed')
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter('ignore')  # of storages of old torch, of a pickle's protocol
            content = torch.load(path, map_location='cpu', weights_only=True)
        _check_tensors(content, 4 * path.stat().st_size)
    except Exception as error:  # a damaged pickle can raise anything
        text = str(error)
        unsafe = 'unsupported global' in text.lower() or 'unsupported class' in text.lower()
        reason = 'it holds Python objects, which are never loaded' if unsafe else 'truncated or not a checkpoint'
        if type(error) is ValueError:
            reason += f' ({text:.100})'
        # not `from error`: torch advises to load it all the same
        raise ValueError(
            f'{named}: {reason}. Older files of its folder may be whole; a state dict saved by torch.save, '
            'or a .safetensors file, does as well.'
        ) from None
    return content


def _check_tensors(content: Any, most_bytes: int) -> None:
    """Raise ValueError if tensors, each counted as if it had memory of its own, are larger than their file can hold."""
    for value in leaves_of(content):
        if isinstance(value, Tensor):
            most_bytes -= value.numel() * value.element_size()
            if value.layout != torch.strided or value.is_quantized or value.is_meta or most_bytes < 0:
                raise ValueError('tensors larger than the file, or sparse, quantized or empty')


def _check_sha256(path: Path, named: str) -> None:
    beside = sha256_beside(path)
    if not beside.is_file():
        return
    with beside.open('rb') as file:
        recorded = file.read(64).decode(errors='replace')
    if file_sha256(path) != recorded:
        raise ValueError(
            f'{named}: damaged, its sha256 is not {shown(recorded)} of {beside.name}. Older files of its folder may be '
            f'whole. Delete {beside.name} if you replaced the checkpoint yourself.'
        )


def weights_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names and values of all tensors, in the order of their module, whatever file held them."""
    digest = hashlib.sha256()
    for name, tensor in state_dict.items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
