"""Measure what `convert(..., preserve=True)` keeps of an RGB network, and what one epoch of fine-tuning makes of it.

    python benchmarks/warm_start.py [--only outputs|training] [--lr LR ...] [--limit N] [--threads N]

- outputs: largest difference between the RGB network and the encoded one on photographs at 224 pixels, of the stem's
  feature map (all of it, and its border alone) and of the logits, each relative to the largest value; networks of timm
  with random weights, seed 0, float32.
- training: error of benchmarks/networks/wrn10_2.safetensors on CIFAR-10's test images, with its stem converted or
  replaced by a fresh one, before any training and after one epoch by recipes/cifar10_plain_cpu.yaml at --lr. Both
  errors are computed in float32.

Set P2BE_DATA to a folder with cifar10/ and imagenet_sample/. Without it, outputs are compared on crops of
scikit-image's astronaut, and there is no training. On two cores outputs take 2 minutes, each training run 2 to 4.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from corruptions import photographs
from safetensors.torch import load_file, save_file
from timm.models import load_checkpoint
from torch import Tensor, nn

from timm_p2be import convert
from timm_p2be.robustness.images import as_batch, read_images

SCHEMA = 1
ROOT = Path(__file__).parents[1]
NETWORK = 'wrn10_2'
RECIPE = 'cifar10_plain_cpu.yaml'
BATCH = 500
PHOTOGRAPHS = 16
STEMS = {
    'resnet18': 'plain',
    'tf_efficientnet_b0': 'TensorFlow padding',
    'vit_tiny_patch16_224': 'patches of 16',
    'convnext_atto': 'patches of 4',
    'nf_resnet26': 'standardized',
    'vit_tiny_r_s16_p8_224': 'standardized, TensorFlow padding',
}
CODES = (('p2be', 9), ('p2be', 64), ('thermometer', 64), ('thermometer', 256), ('onehot', 64), ('onehot', 256))
OUTPUT_COLUMNS = {
    'network': '{}', 'stem': '{}', 'codes': '{}', 'feature_map': '{:.1e}', 'border': '{:.1e}', 'logits': '{:.1e}',
}  # fmt: skip
TRAINING_COLUMNS = {
    'stem': '{}', 'codes': '{}', 'lr': '{:g}', 'seed': '{}', 'error_before': '{:.2f}', 'error_after': '{:.2f}',
}  # fmt: skip


@dataclass(frozen=True)
class Start:
    """What a training run starts from: the trained RGB network with another stem, or unchanged."""

    stem: str
    encoding: str = ''
    num_bits: int = 0

    @property
    def codes(self) -> str:
        """Name of the codes in the tables."""
        return f'{self.encoding} {self.num_bits}' if self.encoding else '-'

    @property
    def model(self) -> tuple[str, dict[str, int]]:
        """timm name and arguments of the network."""
        return (f'{NETWORK}_{self.encoding}', {'num_bits': self.num_bits}) if self.encoding else (NETWORK, {})

    def build(self, seed: int) -> nn.Module:
        """Return the trained RGB network with this stem; a fresh P2BE table starts as the recipe says."""
        torch.manual_seed(seed)
        network = timm.create_model(NETWORK)
        network.load_state_dict(load_file(ROOT / 'benchmarks' / 'networks' / f'{NETWORK}.safetensors'))
        if self.stem == 'preserved':
            convert(network, self.encoding, self.num_bits, preserve=True)
        elif self.stem == 'fresh':
            convert(network, self.encoding, self.num_bits, init='thermometer' if self.encoding == 'p2be' else None)
        return network.eval()


STARTS = (
    Start('RGB'),
    *(Start('preserved', encoding, bits) for encoding, bits in CODES if (encoding, bits) != ('p2be', 9)),
    *(Start('fresh', encoding, 64) for encoding in ('p2be', 'thermometer', 'onehot')),
)


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference over the largest value."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def border(maps: Tensor) -> Tensor:
    """Return the outermost pixels of (B, O, H, W) feature maps."""
    sides = (maps[:, :, 0], maps[:, :, -1], maps[:, :, :, 0], maps[:, :, :, -1])
    return torch.cat([side.flatten() for side in sides])


@torch.no_grad()
def compare_outputs(name: str, levels: Tensor) -> list[dict[str, Any]]:
    """Return the differences of one network for all codes, on (B, 3, H, W) uint8 levels."""
    rows = []
    for encoding, num_bits in CODES:
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        cfg = model.pretrained_cfg
        mean, std = (torch.tensor(cfg[key]).view(1, 3, 1, 1) for key in ('mean', 'std'))
        images = (levels / 255 - mean) / std
        features, logits = model.get_submodule(cfg['first_conv'])(images), model(images)
        convert(model, encoding, num_bits, preserve=True)
        found = model.get_submodule(cfg['first_conv'])(levels)
        rows.append(
            {
                'network': name,
                'stem': STEMS[name],
                'codes': f'{encoding} {num_bits}',
                'feature_map': relative_difference(found, features),
                'border': relative_difference(border(found), border(features)),
                'logits': relative_difference(model(levels), logits),
            }
        )
    return rows


def measure_outputs(networks: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the output differences, row by row."""
    images, source = photographs(224, PHOTOGRAPHS)
    levels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    for name in networks:
        for row in compare_outputs(name, levels):
            yield {**row, 'images': f'{len(images)} of {source}'}


@torch.no_grad()
def error(model: nn.Module, levels: Tensor, labels: Tensor) -> float:
    """Return the error in percent on uint8 levels; RGB or encoded, the network reads levels / 255."""
    wrong = 0
    for images, classes in zip(levels.split(BATCH), labels.split(BATCH), strict=True):
        wrong += int((model(images / 255).argmax(1) != classes).sum())
    return 100 * wrong / len(labels)


def fine_tune(start: Start, weights: Path, data: Path, lr: float, seed: int, limit: int | None, output: Path) -> None:
    """Train one epoch from `weights` by train.py, on the first `limit` images.

    Raises:
        RuntimeError: train.py failed.
    """
    name, kwargs = start.model
    scripts = ROOT / 'train_scripts'
    part = f'[:{limit}]' if limit else ''
    command = [sys.executable, str(scripts / 'train.py'), '-c', str(scripts / 'recipes' / RECIPE)]
    command += ['--dataset', f'hfds/{data}/cifar10', '--input-key', 'img', '--target-key', 'label']
    command += ['--train-split', f'train{part}', '--val-split', f'test{part}', '--initial-checkpoint', str(weights)]
    command += ['--model', name, '--epochs', '1', '--lr', str(lr), '--seed', str(seed)]
    command += ['--output', str(output.parent), '--experiment', output.name]
    if kwargs:
        command += ['--model-kwargs', *(f'{key}={value}' for key, value in kwargs.items())]
    threads = {'OMP_NUM_THREADS': str(torch.get_num_threads())}
    child = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **threads})
    if child.returncode:
        raise RuntimeError(f'train.py ended with exit code {child.returncode}:\n{child.stderr[-2000:]}')


def measure_training(
    data: Path, rates: Sequence[float], seeds: Sequence[int], limit: int | None
) -> Iterator[dict[str, Any]]:
    """Yield the errors before and after one epoch, run by run."""
    test = read_images(f'hfds/{data}/cifar10', None, 'test', limit=limit, input_key='img', target_key='label')
    levels, labels = as_batch(test, range(len(test)))
    began = time.perf_counter()
    for lr, seed, start in product(rates, seeds, STARTS):
        print(f'{time.perf_counter() - began:5.0f} s  {start.stem} {start.codes}, lr {lr:g}, {seed}', file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            weights, output = Path(folder) / 'start.safetensors', Path(folder) / 'run'
            model = start.build(seed)
            before = error(model, levels, labels)
            save_file(model.state_dict(), weights)
            fine_tune(start, weights, data, lr, seed, limit, output)
            load_checkpoint(model, str(output / 'last.pth.tar'))
            errors = {'error_before': before, 'error_after': error(model, levels, labels)}
        yield {'stem': start.stem, 'codes': start.codes, 'lr': lr, 'seed': seed, 'images': len(labels), **errors}


def environment() -> dict[str, Any]:
    """Return what the figures depend on."""
    versions = {'python': platform.python_version(), **{name: version(name) for name in ('torch', 'timm')}}
    return {'versions': versions, 'threads': torch.get_num_threads()}


def print_table(columns: dict[str, str], rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a Markdown table; `columns` names the entries and their formats."""
    print('| ' + ' | '.join(name.replace('_', ' ') for name in columns) + ' |')
    print('|---' * len(columns) + '|')
    for row in rows:
        print('| ' + ' | '.join(form.format(row[name]) for name, form in columns.items()) + ' |')
    print()


def parse_arguments() -> argparse.Namespace:
    """Return the options."""
    summary, _, details = (__doc__ or '').partition('\n')
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    results = Path(__file__).parent / 'results' / 'warm_start.json'
    parser.add_argument('--json', type=Path, default=results, metavar='FILE', help='a part that is not run is kept')
    parser.add_argument('--only', choices=('outputs', 'training'), help='run one part')
    parser.add_argument('--networks', nargs='+', choices=STEMS, default=list(STEMS), metavar='NAME', help='of outputs')
    parser.add_argument('--seeds', type=int, nargs='+', default=[42], metavar='N', help='of training (default: 42)')
    parser.add_argument('--lr', type=float, nargs='+', default=[0.01], metavar='LR', help='of training (default: 0.01)')
    parser.add_argument('--limit', type=int, metavar='N', help='train and test on the first N images')
    parser.add_argument('--threads', type=int, metavar='N', default=torch.get_num_threads(), help="default: torch's")
    args = parser.parse_args()
    if args.threads < 1 or (args.limit is not None and args.limit < 1):
        parser.error('--threads and --limit must be at least 1')
    data = os.environ.get('P2BE_DATA')
    if args.only != 'outputs' and not data:
        parser.error('training needs CIFAR-10: set P2BE_DATA to a folder with cifar10/, or choose --only outputs')
    args.data = Path(data).resolve() if data else None
    return args


def main() -> None:
    """Measure, print the tables and write them as JSON."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    parts = {}
    if args.only != 'training':
        parts['outputs'] = OUTPUT_COLUMNS, measure_outputs(args.networks)
    if args.only != 'outputs':
        parts['training'] = TRAINING_COLUMNS, measure_training(args.data, args.lr, args.seeds, args.limit)
    outcome = json.loads(args.json.read_text(encoding='utf-8')) if args.json.exists() else {}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    for part, (columns, measured) in parts.items():
        rows: list[dict[str, Any]] = []
        outcome |= {'schema': SCHEMA, part: {**environment(), 'rows': rows}}
        for row in measured:  # written after each, so that a run that is broken off is not lost
            rows.append(row)
            args.json.write_text(json.dumps(outcome, indent=2) + '\n', encoding='utf-8')
        print_table(columns, rows)


if __name__ == '__main__':
    main()
