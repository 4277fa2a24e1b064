"""`timm-p2be show`: a table of codes in figures and as a picture, and where it comes from."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from timm_p2be.cli.interruption import run_long
from timm_p2be.encodings.statistics import CodeStatistics, code_statistics, latent_statistics
from timm_p2be.encodings.table_file import codes_sha256
from timm_p2be.files import atomic_write
from timm_p2be.hub.find_table import Table, find_table
from timm_p2be.hub.pictures import codes_picture

_APART = (1, 2, 4, 8, 16, 32, 64, 128)
_EPILOG = """\
TABLE is read by the first rule that fits:
  onehot, thermometer     the fixed table of --num-bits bits
  a file                  the learned table in a checkpoint: .pth.tar, .pt or .safetensors
  a folder, ORG/NAME[@REVISION]
                          an embedding, or the table in a model's weights; the folder needs a config.json. The prefixes
                          local-dir: and hf-hub: decide between a folder and the Hub.
  a name of timm          the table in the weights that ship with timm-p2be, or a model's fixed table

examples:
  timm-p2be show wrn40_2_p2be --output codes.png
  timm-p2be show thermometer --num-bits 64
  timm-p2be show org/p2be-cifar10-m64@v1 --json
"""


def declare(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the flags of `show` and return the command."""
    parser.epilog = _EPILOG
    parser.add_argument('table', metavar='TABLE', help='a name, file, folder or repository, see below')
    parser.add_argument('--num-bits', type=int, metavar='M', help='of onehot and thermometer (default: 64)')
    parser.add_argument('--output', type=Path, metavar='FILE', help='write the picture there, as .png or .jpg')
    parser.add_argument('--overwrite', action='store_true', help='replace FILE')
    parser.add_argument('--json', action='store_true', help='for programs: everything as JSON')

    return lambda args: run_long(parser, lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    if args.overwrite and args.output is None:
        raise ValueError('--overwrite needs --output FILE.')
    table = find_table(args.table, args.num_bits)
    report = _report(table)
    if args.output is not None:
        _save(codes_picture(table.file.codes, _title(table)), args.output, args.overwrite)
    print(json.dumps(report, indent=1) if args.json else _text(table, report, args.output))
    return 0


def _save(image: Image.Image, path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise ValueError(f'{path} is there already. Choose another place, or pass --overwrite.')
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f'{path}: unknown kind of image {path.suffix!r}; name a .png or .jpg file.')
    with atomic_write(path) as file:
        image.save(file, kind)


def _report(table: Table) -> dict[str, Any]:
    file = table.file
    return {
        'source': table.source,
        'origin': table.origin,
        'encoding': file.encoding,
        'commit': table.commit,
        'codes_sha256': codes_sha256(file.codes),
        'statistics': asdict(code_statistics(file.codes)),
        'latents': None if file.latents is None else asdict(latent_statistics(file.latents)),
        'provenance': file.provenance,
    }


def _title(table: Table) -> str:
    """Return one line above a picture."""
    dataset = ((table.file.provenance or {}).get('dataset') or {}).get('name')
    source = '/'.join(Path(table.source).parts[-2:])[-100:]
    parts = [source, f'{table.file.encoding}, M = {table.file.codes.shape[1]}', dataset]
    return '   '.join(part for part in parts if part)


def _text(table: Table, report: dict[str, Any], picture: Path | None) -> str:
    statistics = CodeStatistics(**report['statistics'])
    low, mean, high = statistics.neighbors
    lines = [
        ('table', f'{table.source}: {table.origin}'),
        ('codes', f'256 levels of {statistics.num_bits} bits, {statistics.distinct} different codes'),
        ('', f'{statistics.ones:.1f} of {statistics.num_bits} bits set in a code'),
        ('', f'{statistics.unlike_thermometer:,} of {256 * statistics.num_bits:,} bits unlike the thermometer code'),
        ('constant', f'never on: {_bits(statistics.never_on)}; always on: {_bits(statistics.always_on)}'),
        ('neighbors', f'Hamming distance of levels k and k + 1: mean {mean:.2f}, {low:.0f} to {high:.0f} bits'),
        ('distance', '|i - j|  ' + ''.join(f'{apart:>8}' for apart in _APART)),
        ('', 'mean bits' + ''.join(f'{statistics.distances[apart]:>8.2f}' for apart in _APART)),
    ]
    if (latents := report['latents']) is not None:
        lines += [
            (
                'latents',
                f'|w|: mean {latents["mean_magnitude"]:.3g}, smallest {latents["smallest_magnitude"]:.3g}, '
                f'largest {latents["largest_magnitude"]:.3g}',
            ),
            ('', f'{100 * latents["saturated"]:.1f} % have |w| >= 1, where the approximate sign has no gradient'),
        ]
    lines += _provenance(table.file.provenance) if latents is not None else []
    if table.commit is not None:
        lines.append(('commit', table.commit))
    lines.append(('sha256', f'{report["codes_sha256"]} of the packed codes'))
    lines.append(('picture', str(picture) if picture is not None else 'none; pass --output FILE.png'))
    return '\n'.join(f'{label:<12}{text}' for label, text in lines)


def _bits(bits: Sequence[int]) -> str:
    if not bits:
        return 'none'
    listed = ', '.join(map(str, bits[:8])) + (', ...' if len(bits) > 8 else '')
    return f'{len(bits)} ({"bit" if len(bits) == 1 else "bits"} {listed})'


def _provenance(provenance: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return label and text of what a training record knows."""
    if provenance is None:
        return [('provenance', 'not recorded; timm-p2be publish records it')]
    results = provenance['results'] or {}
    parts = [*provenance.items(), *results.items(), *(('attack', attack) for attack in results.get('attacks') or ())]
    return [(label, _known(part)) for label, part in parts if part and label not in ('results', 'attacks')]


def _known(part: Any) -> str:
    if not isinstance(part, dict):
        return str(part)
    return ', '.join(f'{key} {value}' for key, value in part.items() if value is not None)
