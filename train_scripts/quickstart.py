#!/usr/bin/env python3
"""Trains a P2BE network and its RGB twin on handwritten digits and compares them, in a few minutes and offline.

The images are scikit-learn's 1,797 digits, written once as an ordinary image folder; training is train.py with
recipes/quickstart.yaml. Prints clean and corrupted error side by side and draws the learned codes.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from timm_p2be import find_embedding
from timm_p2be.data.digits import write_digits
from timm_p2be.hub.pictures import codes_picture
from timm_p2be.robustness.corruptions import CORRUPTIONS, corrupt
from timm_p2be.training import run as train

MODELS = ('wrn10_2_p2be', 'wrn10_2')
SEVERITIES = (1, 3, 5)
RECIPE = Path(__file__).parent / 'recipes' / 'quickstart.yaml'


def read_images(folder: Path) -> tuple[NDArray[np.uint8], Tensor]:
    """Return the images (N, H, W, 3) uint8 and labels (N,) of an image folder whose class names are digits."""
    files = sorted(folder.glob('*/*.png'))
    images = np.stack([np.asarray(Image.open(file).convert('RGB')) for file in files])
    return images, torch.tensor([int(file.parent.name) for file in files])


@torch.inference_mode()
def error(model: nn.Module, images: NDArray[np.uint8], labels: Tensor) -> float:
    """Return the classification error of a model of [0, 1] images, in percent."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    wrong = sum(
        (model(batch).argmax(1) != truth).sum().item()
        for batch, truth in zip(pixels.split(128), labels.split(128), strict=True)
    )
    return 100 * wrong / len(labels)


def corrupted_copies(images: NDArray[np.uint8]) -> dict[str, list[NDArray[np.uint8]]]:
    """Return the images under every corruption, one array for each severity."""
    return {
        name: [
            np.stack([corrupt(image, name, severity, seed=(0, i)) for i, image in enumerate(images)])
            for severity in SEVERITIES
        ]
        for name in CORRUPTIONS
    }


def measure(
    model: nn.Module, images: NDArray[np.uint8], corrupted: dict[str, list[NDArray[np.uint8]]], labels: Tensor
) -> dict[str, Any]:
    """Return clean error, error of every corruption (mean over severities) and their mean, in percent."""
    errors = {
        name: sum(error(model, copy, labels) for copy in copies) / len(copies) for name, copies in corrupted.items()
    }
    mean = sum(errors.values()) / len(errors)
    return {'clean': error(model, images, labels), 'corrupted': mean, 'corruptions': errors}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the errors of all models as a Markdown table."""
    rows = [('error in %', *results)]
    rows.append(('clean', *(f'{result["clean"]:.1f}' for result in results.values())))
    for name in CORRUPTIONS:
        rows.append((name, *(f'{result["corruptions"][name]:.1f}' for result in results.values())))
    rows.append(('corrupted (mean)', *(f'{result["corrupted"]:.1f}' for result in results.values())))
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ['| ' + ' | '.join(cell.ljust(w) for cell, w in zip(row, width, strict=True)) + ' |' for row in rows]
    lines.insert(1, '|' + '|'.join('-' * (w + 2) for w in width) + '|')
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quickstart and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--output', type=Path, default=Path('output/quickstart'), help='default: %(default)s')
    parser.add_argument('--epochs', type=int, help="default: the recipe's")
    args = parser.parse_args(argv)
    start = time.time()
    data = write_digits(args.output / 'digits')
    images, labels = read_images(data / 'validation')
    corrupted = corrupted_copies(images)
    results = {}
    for name in MODELS:
        print(f'\nTraining {name} on {data} ({RECIPE.name})')
        flags = ['-c', str(RECIPE), '--data-dir', str(data), '--model', name]
        flags += ['--output', str(args.output), '--experiment', name]
        flags += ['--epochs', str(args.epochs)] if args.epochs else []
        if code := train.main(flags):
            return code
        checkpoint = args.output / name / 'last.pth.tar'
        model = timm.create_model(name, num_classes=10, checkpoint_path=str(checkpoint)).eval()
        results[name] = measure(model, images, corrupted, labels)
        if name.endswith('p2be'):
            picture = args.output / 'codes.png'
            codes_picture(find_embedding(model).codes(), f'{name}: codes learned on digits').save(picture)
    (args.output / 'results.json').write_text(json.dumps(results, indent=2))
    print(f'\n{table(results)}\n')
    print(
        f'{len(images)} test images, severities {", ".join(map(str, SEVERITIES))}, one seed: this shows that training, '
        'codes and evaluation work; it says nothing about which encoding is more robust.'
    )
    print(f'Learned codes and their cosine similarities: {picture}')
    print(f'Checkpoints, logs and results.json: {args.output}  ({time.time() - start:.0f} s)')
    return 0


if __name__ == '__main__':
    sys.exit(main())
