#!/usr/bin/env python3
"""Trains a P2BE network and its RGB twin on handwritten digits and compares them, in a few minutes and offline.

The images are scikit-learn's 1,797 digits, written once as an ordinary image folder; training is `timm-p2be train -c
quickstart`. Prints clean and corrupted error side by side and draws the learned codes.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

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
from timm_p2be.training.run import main as train

MODELS = ('wrn10_2_p2be', 'wrn10_2')
SEVERITIES = (1, 3, 5)

Images = NDArray[np.uint8]  # (N, H, W, 3)


def read_images(folder: Path) -> tuple[Images, Tensor]:
    """Return the images (N, H, W, 3) and labels (N,) of an image folder whose class names are digits."""
    files = sorted(folder.glob('*/*.png'))
    images = np.stack([np.asarray(Image.open(file).convert('RGB')) for file in files])
    return images, torch.tensor([int(file.parent.name) for file in files])


@torch.inference_mode()
def error(model: nn.Module, images: Images, labels: Tensor) -> float:
    """Return the classification error of a model of [0, 1] images, in percent."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    predicted = torch.cat([model(batch).argmax(1) for batch in pixels.split(128)])
    return 100 * (predicted != labels).float().mean().item()


def measure(models: dict[str, nn.Module], images: Images, labels: Tensor) -> dict[str, dict[str, float]]:
    """Return clean error, error of every corruption (mean over severities) and their mean, in percent."""
    results = {name: {'clean': error(model, images, labels)} for name, model in models.items()}
    for corruption in CORRUPTIONS:
        copies = [
            np.stack([corrupt(image, corruption, severity, seed=(0, i)) for i, image in enumerate(images)])
            for severity in SEVERITIES
        ]
        for name, model in models.items():
            results[name][corruption] = sum(error(model, copy, labels) for copy in copies) / len(copies)
    for result in results.values():
        result['corrupted (mean)'] = sum(result[corruption] for corruption in CORRUPTIONS) / len(CORRUPTIONS)
    return results


def table(results: dict[str, dict[str, float]]) -> str:
    """Return the errors of all models as a Markdown table."""
    lines = [f'| {"error in %":17} | ' + ' | '.join(f'{name:>12}' for name in results) + ' |']
    lines.append('|' + '-' * 19 + '|' + '|'.join('-' * 14 for _ in results) + '|')
    for row in ('clean', *CORRUPTIONS, 'corrupted (mean)'):
        lines.append(f'| {row:17} | ' + ' | '.join(f'{result[row]:12.1f}' for result in results.values()) + ' |')
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quickstart and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--output', type=Path, default=Path('output/quickstart'), help='default: %(default)s')
    parser.add_argument('--epochs', type=int, help="default: the recipe's")
    args = parser.parse_args(argv)
    start = time.time()
    data = write_digits(args.output / 'digits')
    models: dict[str, nn.Module] = {}
    for name in MODELS:
        print(f'\nTraining {name} on {data}')
        flags = ['-c', 'quickstart', '--data-dir', str(data), '--model', name]
        flags += ['--output', str(args.output), '--experiment', name]
        flags += ['--epochs', str(args.epochs)] if args.epochs else []
        if code := train(flags):
            return code
        checkpoint = args.output / name / 'last.pth.tar'
        models[name] = timm.create_model(name, num_classes=10, checkpoint_path=str(checkpoint)).eval()
    images, labels = read_images(data / 'validation')
    results = measure(models, images, labels)
    picture = args.output / 'codes.png'
    codes_picture(find_embedding(models[MODELS[0]]).codes(), f'{MODELS[0]}: codes learned on digits').save(picture)
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
