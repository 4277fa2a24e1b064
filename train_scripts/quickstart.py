#!/usr/bin/env python3
"""Trains a P2BE network and its RGB twin on handwritten digits and compares them, in a few minutes and offline.

The images are scikit-learn's 1,797 digits, written once as an ordinary image folder; training is `timm-p2be train -c
quickstart`, and the comparison `timm-p2be benchmark corruptions`. Draws the learned codes, too.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import timm

from timm_p2be import find_embedding
from timm_p2be.cli import main as timm_p2be
from timm_p2be.data.digits import write_digits
from timm_p2be.hub.pictures import codes_picture

MODELS = ('wrn10_2_p2be', 'wrn10_2')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quickstart and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--output', type=Path, default=Path('output/quickstart'), help='default: %(default)s')
    parser.add_argument('--epochs', type=int, help="default: the recipe's")
    args = parser.parse_args(argv)
    start = time.time()
    output = str(args.output)
    data = str(write_digits(args.output / 'digits'))
    epochs = ['--epochs', str(args.epochs)] if args.epochs else []
    for name in MODELS:
        print(f'\nTraining {name} on {data}')
        flags = ['-c', 'quickstart', '--data-dir', data, '--model', name]
        flags += ['--output', output, '--experiment', name, '--overwrite']
        if code := timm_p2be(['train', *flags, *epochs]):
            return code
    files = {name: args.output / name / 'last.pth.tar' for name in MODELS}
    networks = ['--model', *(f'{name}={file}' for name, file in files.items())]
    where = ['--data-dir', data, '--severities', '1', '3', '5', '--output', output, '--overwrite']
    print('\nMeasuring both on corrupted digits')
    if code := timm_p2be(['benchmark', 'corruptions', *networks, *where]):
        return code
    model = timm.create_model(MODELS[0], num_classes=10, checkpoint_path=str(files[MODELS[0]]))
    picture = args.output / 'codes.png'
    codes_picture(find_embedding(model).codes(), f'{MODELS[0]}: codes learned on digits').save(picture)
    print(
        '\nA few hundred test images and one seed: this shows that training, codes and evaluation work; it says '
        'nothing about which encoding is more robust.'
    )
    print(f'Learned codes and their cosine similarities: {picture}')
    print(f'Checkpoints, logs, results.json and report.html: {output}  ({time.time() - start:.0f} s)')
    return 0


if __name__ == '__main__':
    sys.exit(main())
