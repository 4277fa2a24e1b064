"""Train the same network by timm's own train.py and by `timm-p2be train`, and compare losses and tables.

    python benchmarks/compare_scripts.py CHECKOUT IMAGES [--updates 200] [--shuffled] [--json FILE]

CHECKOUT is one of huggingface/pytorch-image-models, of which train.py alone is used; IMAGES a folder of parquet files
with columns img and label, such as CIFAR-10's. Recipes are recipes/timm/cifar10.yaml and recipes/cifar10.yaml with the
same seed, for wrn10_2_p2be and batches of 32, without augmentation: timm cannot take back the recipe's JSD, so that a
copy without it is used. Both start from the same weights (--initial-checkpoint: the scripts draw others from one seed)
and read the images in the order of timm's streaming reader, which depends on the seed alone; with --shuffled in that of
its map-style reader, which each script shuffles by random numbers of its own. A third run, by timm's script without
smoothness, shows what there is to agree about.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from timm.utils import random_seed
from timm.utils.checkpoint_saver import load_checkpoint_metadata

import timm_p2be  # noqa: F401  registers the models
from timm_p2be.losses import smoothness_loss
from timm_p2be.training.arguments import RECIPES

BATCH, EPOCHS = 32, 10


def train(command: list[str], folder: Path, flags: list[str]) -> list[dict[str, Any]]:
    """Run a training script and return, for each epoch, its row of summary.csv and the weights after it."""
    words = [*command, *flags, '--output', str(folder.parent), '--experiment', folder.name]
    subprocess.run(words, check=True, cwd=folder.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with (folder / 'summary.csv').open(newline='') as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row['weights'] = load_checkpoint_metadata(str(folder / f'checkpoint-{row["epoch"]}.pth.tar'))['state_dict']
    return rows


def train_by_timm(recipe: dict[str, Any], folder: Path, flags: list[str]) -> list[dict[str, Any]]:
    """Run timm's script, which lies beside `folder`."""
    file = folder.with_suffix('.yaml')
    file.write_text(yaml.safe_dump(recipe))
    return train([sys.executable, 'train.py', '-c', str(file)], folder, flags)


def table(row: dict[str, Any]) -> torch.Tensor:
    """Return the latents after an epoch."""
    weights: torch.Tensor = row['weights']['conv1.embedding.weight']
    return weights


def compare(theirs: dict[str, Any], ours: dict[str, Any], control: dict[str, Any], updates: int) -> dict[str, float]:
    """Return the figures of one line: mean losses of the epoch, tables and weights after it."""
    network = [torch.cat([w.flatten().double() for w in row['weights'].values()]) for row in (theirs, ours)]
    return {
        'updates': updates,
        'loss, timm': float(theirs['train_loss']),
        'cross-entropy, ours': float(ours['train_ce']),
        'loss, ours': float(ours['train_loss']),
        'L_s, timm': smoothness_loss(table(theirs)).item(),
        'L_s, ours': smoothness_loss(table(ours)).item(),
        'tables, largest difference': (table(theirs) - table(ours)).abs().max().item(),
        'bits that differ': int(((table(theirs) >= 0) != (table(ours) >= 0)).sum()),
        'all weights, relative difference': ((network[0] - network[1]).norm() / network[1].norm()).item(),
        'tables, timm without smoothness': (table(control) - table(ours)).abs().max().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkout', type=Path)
    parser.add_argument('images', type=Path)
    parser.add_argument('--updates', type=int, default=200)
    parser.add_argument('--shuffled', action='store_true')
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    each = args.updates // EPOCHS
    reader = 'hfds' if args.shuffled else 'hfids'
    flags = ['--dataset', f'{reader}/{args.images.resolve()}', '--input-key', 'img', '--target-key', 'label']
    flags += ['--train-split', f'train[:{each * BATCH}]' if args.shuffled else 'train', '--val-split', '']
    flags += [] if args.shuffled else ['--train-num-samples', str(each * BATCH)]
    flags += f'--model wrn10_2_p2be --batch-size {BATCH} --epochs {EPOCHS} --checkpoint-hist {EPOCHS}'.split()
    flags += '--no-aug --device cpu --workers 0'.split()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_seed(42)
        torch.save(timm.create_model('wrn10_2_p2be', num_classes=10).state_dict(), folder / 'start.pth')
        flags += ['--initial-checkpoint', str(folder / 'start.pth')]
        shutil.copy(args.checkout / 'train.py', folder)
        recipe = yaml.safe_load((RECIPES / 'timm' / 'cifar10.yaml').read_text())
        plain = {key: value for key, value in recipe.items() if key not in ('aug_splits', 'jsd_loss')}
        theirs = train_by_timm(plain, folder / 'timm', flags)
        plain['opt_kwargs']['smoothness'] = 0.0
        control = train_by_timm(plain, folder / 'control', flags)
        ours = train([sys.executable, '-m', 'timm_p2be.training', '-c', 'cifar10'], folder / 'ours', flags)
    rows = [compare(*pair, each * (i + 1)) for i, pair in enumerate(zip(theirs, ours, control, strict=True))]
    print(f'| {" | ".join(rows[0])} |\n|{"---|" * len(rows[0])}')
    for row in rows:
        print(f'| {" | ".join(f"{value:.6g}" for value in row.values())} |')
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
    main()
