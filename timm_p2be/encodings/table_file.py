"""A table as a folder: packed bits and latents in `model.safetensors`, and what they are in `config.json`.

The table is there twice, as latents (p2be only) and as packed bits, and is used only if the two, the sha256 in
`config.json` and, for a fixed encoding, the formula agree. Reading opens no other file of the folder.
"""

import hashlib
import json
import re
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from timm_p2be.encodings.codes import ENCODINGS, INITS, LEVELS, fixed_codes
from timm_p2be.files import Schema, atomic_write, check_schema, read_json, shown

FORMAT = 'timm-p2be-embedding'
FORMAT_VERSION = 1
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = 'config.json', 'model.safetensors', 'README.md'
MAX_BITS = 4096
MAX_TABLE_BYTES = LEVELS * (4 * MAX_BITS + MAX_BITS // 8) + 2**16  # the header takes about 200

_AGAIN = 'Download or save the table again.'
_PLACES = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device='cpu')

INSTALLED: str | None
try:
    INSTALLED = version('timm-p2be')
except PackageNotFoundError:  # a checkout on the path
    INSTALLED = None


def is_sha256(value: Any) -> bool:
    """Return whether `value` is 64 hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch('[0-9a-f]{64}', value) is not None


def names_table(model: str) -> bool:
    """Return whether a timm name, 'resnet18_p2be.table_m64_cifar10' say, has a tag that stands for a table alone."""
    return model.partition('.')[2].startswith('table_')


CONFIG: Schema = {
    'format': (repr(FORMAT), lambda value: value == FORMAT),
    'format_version': (
        f'{FORMAT_VERSION} (update by: pip install -U timm-p2be)',
        lambda value: type(value) is int and value == FORMAT_VERSION,
    ),
    'package_version': (
        'a version or null',
        lambda value: value is None or (isinstance(value, str) and len(value) <= 100 and value.isprintable()),
    ),
    'encoding': (f'one of {list(ENCODINGS)}', lambda value: value in ENCODINGS),
    'levels': (str(LEVELS), lambda value: type(value) is int and value == LEVELS),
    'num_bits': (f'an integer in 1..{MAX_BITS}', lambda value: type(value) is int and 1 <= value <= MAX_BITS),
    'plane_order': ("'bit-major'", lambda value: value == 'bit-major'),
    'init': (f'one of {list(INITS)}', lambda value: value in INITS),
    'codes_sha256': ('64 hexadecimal digits', is_sha256),
    'provenance': ('an object or null', lambda value: value is None or isinstance(value, dict)),
}


@dataclass(frozen=True, eq=False)
class TableFile:
    """A table with what its folder says of it."""

    encoding: str
    init: str  # how the latents once started, one of `codes.INITS`; 'normal' for a fixed encoding
    codes: Tensor  # (256, M) float32, 0 and 1, M at most 4096
    latents: Tensor | None  # (256, M) float, saved as float32; None for a fixed encoding
    provenance: dict[str, Any] | None = None  # training record, see `timm_p2be.hub.training_record`
    package_version: str | None = INSTALLED  # that wrote it

    def config(self) -> dict[str, Any]:
        """Return the content of config.json, after checking it and the table."""
        config = {
            'format': FORMAT,
            'format_version': FORMAT_VERSION,
            'package_version': self.package_version,
            'encoding': self.encoding,
            'levels': self.codes.shape[0],
            'num_bits': self.codes.shape[1],
            'plane_order': 'bit-major',
            'init': self.init,
            'codes_sha256': codes_sha256(self.codes),
            'provenance': self.provenance,
        }
        check_config(config, 'The table to be saved')
        self.check('The table to be saved')
        return config

    def write(self, folder: str | Path, card: str | None = None) -> None:
        """Write the table and its card; the folder has a config.json only while everything else is complete.

        Args:
            folder: created if it is not there; other files in it stay, also a README.md that is no card of ours.
            card: what README.md is to hold; None leaves that file alone.

        Raises:
            ValueError: `read_table_file` would refuse the table; nothing was written.
        """
        config = json.dumps(self.config(), indent=1, allow_nan=False).encode()
        tensors = {'codes': pack_codes(self.codes)}
        if self.latents is not None:
            tensors['weight'] = self.latents.detach().to('cpu', torch.float32).contiguous()
        content = {WEIGHTS_FILE: safetensors.torch.save(tensors, metadata={'format': 'pt'}), CONFIG_FILE: config}
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if card is not None and _may_write_card(folder / CARD_FILE):
            content = {CARD_FILE: card.encode(), **content}
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        for name, data in content.items():
            with atomic_write(folder / name) as file:
                file.write(data)

    def check(self, where: str) -> None:
        """Raise ValueError unless the codes are those of the encoding or of the latents, and the latents finite."""
        codes, latents = self.codes.detach().cpu(), self.latents
        if (latents is None) != (self.encoding != 'p2be') or (latents is not None and latents.shape != codes.shape):
            got = 'no latents' if latents is None else f'latents of shape {tuple(latents.shape)}'
            raise ValueError(
                f"{where} has encoding {self.encoding!r}, codes of shape {tuple(codes.shape)} and {got}; only 'p2be' "
                'has latents, in the shape of its codes.'
            )
        if latents is None:
            bits, rule = fixed_codes(self.encoding, codes.shape[1]), f'encoding {self.encoding!r}'
        else:
            saved = latents.detach().to('cpu', torch.float32)
            if wrong := int((~saved.isfinite()).sum()):
                raise ValueError(f'{where}: {wrong} latents are NaN or infinite; allowed are finite ones. {_AGAIN}')
            bits, rule = (saved >= 0).float(), 'the signs of the latents'
        if differing := (bits != codes).nonzero().tolist():
            level, bit = differing[0]
            raise ValueError(
                f'{where}: {len(differing)} of {codes.numel()} bits are not those of {rule}, the first at level '
                f'{level}, bit {bit}. {_AGAIN}'
            )


def read_table_file(folder: str | Path) -> TableFile:
    """Return the table in a folder, after checking everything about it but its training record."""
    config = read_json(Path(folder) / CONFIG_FILE)
    check_config(config, str(Path(folder) / CONFIG_FILE))
    path, num_bits = Path(folder) / WEIGHTS_FILE, config['num_bits']
    tensors = _read_tensors(path)
    expected = {'codes': (torch.uint8, (LEVELS, (num_bits + 7) // 8))}
    if config['encoding'] == 'p2be':
        expected['weight'] = (torch.float32, (LEVELS, num_bits))
    got = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if got != expected:
        raise ValueError(f'{path} holds the tensors {shown(got)}; allowed are exactly {expected}. {_AGAIN}')
    packed = tensors['codes']
    if (found := _digest(packed)) != config['codes_sha256']:
        raise ValueError(f'{path}: the codes have sha256 {found}, config.json says {config["codes_sha256"]}. {_AGAIN}')
    bits = (packed[:, :, None] & _PLACES).ne(0).flatten(1)
    codes, latents = bits[:, :num_bits].float(), tensors.get('weight')
    about = (config['provenance'], config['package_version'])
    table = TableFile(config['encoding'], config['init'], codes, latents, *about)
    table.check(str(path))
    return table


def check_config(config: dict[str, Any], where: str) -> None:
    """Raise ValueError unless a config.json describes a table of a version this package reads."""
    check_schema(config, CONFIG, where)
    if config['encoding'] != 'p2be' and config['init'] != 'normal':
        raise ValueError(f"{where}: init is {config['init']!r}; a fixed encoding has 'normal'. {_AGAIN}")


def codes_sha256(codes: Tensor) -> str:
    """Return the sha256 of (256, M) codes as packed in the file: ceil(M / 8) bytes a row, its first bit highest."""
    return _digest(pack_codes(codes))


def _digest(packed: Tensor) -> str:
    return hashlib.sha256(packed.numpy().tobytes()).hexdigest()


def pack_codes(codes: Tensor) -> Tensor:
    """Return (256, M) codes as uint8 (256, ceil(M / 8)) on the CPU, the first bit of a row highest."""
    bits = codes.detach().cpu().to(torch.uint8)
    padded = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 8))
    return (padded.view(len(bits), -1, 8) * _PLACES).sum(dim=-1, dtype=torch.uint8)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(
            f'{path} does not exist; tables are read from there only, never from a pickle. Get one saved by '
            'PixelEmbedding.save_pretrained.'
        )
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise ValueError(f'{path} has {path.stat().st_size} bytes; allowed are at most {MAX_TABLE_BYTES}. {_AGAIN}')
    try:
        return safetensors.torch.load(path.read_bytes())
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f'{path} is damaged or no safetensors file ({error}). {_AGAIN}') from error


def _may_write_card(path: Path) -> bool:
    """Return whether nothing is lost: `path` does not exist, or is a card of this package; else warn."""
    if not path.exists() or re.match(rb'---\n((?!---\n).*\n)*library_name: timm-p2be\n', path.read_bytes()):
        return True
    warnings.warn(
        f'{path} is no card of timm-p2be. It was left as it is, and the table saved beside it without a card; for '
        'one, move the file away and save again.',
        stacklevel=4,
    )
    return False
