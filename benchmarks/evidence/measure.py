#!/usr/bin/env python3
"""Measure a trained run of run_grid.py: errors, and its table epoch by epoch.

Writes result.json into its folder: run.json, the figures, and the commit that measured them; runs/ has such files.

    python benchmarks/evidence/measure.py RUN --data FOLDER --split 'train[:5000]' [--limit N] [--keep-checkpoints]

Clean error, and corrupted error under the 15 corruptions of CIFAR-C at 5 severities (mean over the 75 sets), are of the
first `--limit` images of the split (default: all), in bfloat16 autocast, in which the networks train (those of
starts.yaml were measured in float32). Per epoch: validation error as train.py measured it on its own split, share of
bits unlike the table's start, distinct codes, mean distance of neighboring levels in bits, share of latents at
magnitudes of 1 or more, where the straight-through gradient is zero.

With --attacks within 8 levels, too: LS-PGA as published, alone on all images, and what stands of the first 1,000 after
every attack but Square in turn.
"""

import argparse
import csv
import fcntl
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from timm_p2be import PixelEmbedding
from timm_p2be.checkpoints import read_checkpoint, weights_sha256
from timm_p2be.encodings import thermometer_codes
from timm_p2be.encodings.statistics import code_statistics, latent_statistics


def table_figures(latents: torch.Tensor, start: torch.Tensor | None) -> dict[str, Any]:
    """Return what one epoch did to a table, rounded for a file that people read."""
    bits = latents >= 0
    statistics = code_statistics(bits)
    moved = None if start is None else round((bits != (start >= 0)).float().mean().item(), 5)
    unlike = bits != thermometer_codes(bits.shape[1]).bool()
    return {
        'moved': moved,
        'unlike_thermometer': round(unlike.float().mean().item(), 5),
        'distinct': statistics.distinct,
        'neighbor_distance': round(statistics.neighbors[1], 3),
        'saturated': round(latent_statistics(latents).saturated, 4),
        'mean_magnitude': round(latent_statistics(latents).mean_magnitude, 4),
    }


def _latents(state: dict[str, torch.Tensor]) -> torch.Tensor | None:
    return next((tensor for name, tensor in state.items() if name.endswith('.embedding.weight')), None)


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    """Return the figures of every epoch of a run."""
    start = PixelEmbedding.from_pretrained(folder / 'start').weight if (folder / 'start').is_dir() else None
    figures = []
    for row in csv.DictReader((folder / 'summary.csv').read_text().splitlines()):
        epoch = int(row['epoch'])
        entry = {'epoch': epoch, 'loss': float(row['train_loss']), 'error': round(100 - float(row['eval_top1']), 3)}
        file = folder / f'checkpoint-{epoch}.pth.tar'
        if file.is_file():
            latents = _latents(read_checkpoint(file).state_dict)
            if latents is not None:
                entry |= table_figures(latents, start)
        figures.append(entry)
    return figures


ATTACKS = ('noise', 'dga', 'lspga-official', 'pgd', 'apgd-ce', 'apgd-margin', 'apgd-target')


def _command(*words: str) -> None:
    command = [sys.executable, str(Path(__file__).with_name('controls.py')), *words]
    if (code := subprocess.run(command).returncode) not in (0, 3):  # 3: done, and masking is suspected
        raise SystemExit(code)


def _corrupted(runs: Path, clean: list[str]) -> Path:
    """Return the folder of the corrupted images beside the runs, which the first of them writes."""
    folder = runs / ('corrupted-' + re.sub(r'\W+', '-', ' '.join(clean[-4:])).strip('-'))
    with (runs / 'corrupted.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _command('corrupt', *clean, '--output', str(folder))
    return folder


def _benchmark(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    model = yaml.safe_load((folder / 'args.yaml').read_text())['model']
    clean = ['--dataset', f'hfds/{args.data.resolve()}', '--input-key', 'img', '--target-key', 'label']
    clean += ['--split', args.split, *(('--limit', str(args.limit)) if args.limit else ())]
    network = ['--model', f'run:{model}={folder / "last.pth.tar"}']
    corrupted = str(_corrupted(folder.parent, clean))
    where = ['--corrupted', corrupted, '--output', str(folder)]
    _command('benchmark', 'corruptions', *network, *clean, *where, '--amp-dtype', 'bfloat16')
    if args.attacks:
        plain = ['benchmark', 'attacks', *network, *clean, '--no-curves', '--no-binarization']
        alone = ['--attacks', 'lspga-official', '--alone', '1000000', '--worst-case', '0']
        _command(*plain, *alone, '--output', str(folder / 'lspga'))
        in_turn = ['--attacks', *ATTACKS, '--alone', '1', '--worst-case', '1000']
        _command(*plain, *in_turn, '--output', str(folder / 'worst_case'))
    return json.loads((folder / 'results.json').read_text())


def _attacks(folder: Path) -> dict[str, Any]:
    if not (folder / 'lspga').is_dir():
        return {}
    alone, in_turn = (json.loads((folder / name / 'run.attacks.json').read_text()) for name in ('lspga', 'worst_case'))
    return {'attacks': {'lspga': alone['alone']['lspga-official'], 'worst_case': in_turn['worst_case']}}


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return everything that is known of a run."""
    results = _benchmark(folder, args)
    return {
        'split': args.split,
        'images': results['clean']['run']['examples'],
        'clean_error': round(100 * results['clean']['run']['error'], 3),
        'corrupted_error': round(100 * results['summary']['run']['mean_corruption_error'], 3),
        'by_corruption': {
            name: [round(100 * severities[str(severity)]['error'], 2) for severity in range(1, 6)]
            for name, severities in results['results']['run'].items()
        },
        'weights_sha256': weights_sha256(read_checkpoint(folder / 'last.pth.tar').state_dict),
        'versions': results['environment']['versions'],
        **_attacks(folder),
        'epochs': epochs_of(folder),
    }


def _check_trained(folder: Path) -> None:
    epochs = yaml.safe_load((folder / 'args.yaml').read_text())['epochs']
    done = len((folder / 'summary.csv').read_text().splitlines()) - 1
    if done != epochs:
        raise SystemExit(f'measure.py: error: {folder} has trained {done} of {epochs} epochs. Train it to its end.')


def main() -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--split', required=True)
    parser.add_argument('--limit', type=int)
    parser.add_argument('--attacks', action='store_true')
    parser.add_argument('--keep-checkpoints', action='store_true', help='else only last.pth.tar stays')
    args = parser.parse_args()
    _check_trained(args.run)
    figures = measure(args.run.resolve(), args)
    run = json.loads((args.run / 'run.json').read_text()) | {'state': 'finished'}
    commit = subprocess.check_output(['git', '-C', str(Path(__file__).parent), 'rev-parse', 'HEAD'], text=True).strip()
    result = {**run, 'measured_commit': commit, **figures}
    (args.run / 'result.json').write_text(json.dumps(result, indent=1) + '\n')
    if not args.keep_checkpoints:
        for file in [*args.run.glob('checkpoint-*.pth.tar*'), *args.run.glob('recovery-*.pth.tar*')]:
            file.unlink()


if __name__ == '__main__':
    main()
