"""Measure what a loader core delivers for ImageNet-1k; compute how many cores feed a GPU, and what a run costs.

    python benchmarks/scaling.py [--gpu-images 823] [--cores 16] [--json FILE]

Set P2BE_DATA to a folder with imagenet_sample/. Measured, on one core and in its own time (other work on the machine
counts little): decoding, random resized crop with flip, AugMix of two views, and putting the views together, as the
loader of recipes/imagenet.yaml does. Everything else is an argument. The simulation lets every loader process of every
GPU draw the time of each image from the measured ones; a step starts when the slowest GPU has its batch.
"""

import argparse
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Image as ImageColumn
from datasets import load_dataset
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform

from timm_p2be.data import AugMix

SIDE, TRAINING_IMAGES, EPOCHS = 224, 1_281_167, 180
PREFETCH = 2  # batches that a process of torch's DataLoader prepares ahead, its default
PARTS = ('decode', 'crop', 'augmix', 'collate')


def measure(files: list[bytes]) -> tuple[dict[str, NDArray[Any]], float]:
    """Return the seconds of each part for each image, and the mean number of megapixels."""
    crop, _, to_array = create_transform(
        SIDE, is_training=True, separate=True, color_jitter=0.0, interpolation='bilinear', use_prefetcher=True
    )
    augment, seconds, pixels = AugMix(severity=1), {part: [] for part in PARTS}, 0
    for content in files:
        marks = [time.process_time()]
        image = Image.open(io.BytesIO(content)).convert('RGB')
        marks.append(time.process_time())
        clean = crop(image)
        marks.append(time.process_time())
        views = [clean, augment(clean), augment(clean)]
        marks.append(time.process_time())
        torch.stack([to_array(view) for view in views])
        marks.append(time.process_time())
        pixels += image.width * image.height
        for part, spent in zip(PARTS, np.diff(marks), strict=True):
            seconds[part].append(spent)
    return {part: np.array(spent) for part, spent in seconds.items()}, pixels / len(files) / 1e6


def simulate(seconds: NDArray[Any], gpus: int, cores: int, batch: int, step: float, steps: int) -> float:
    """Return images per second of all GPUs, each fed by `cores` loader processes, from the second half of the steps."""
    generator = np.random.default_rng(0)
    free = np.zeros((gpus, cores))  # when a process has finished its last batch
    started = np.zeros(steps)
    for number in range(steps):
        process = number % cores
        room = started[number - PREFETCH * cores] if number >= PREFETCH * cores else 0.0
        spent = generator.choice(seconds, (gpus, batch)).sum(1)
        free[:, process] = np.maximum(free[:, process], room) + spent
        started[number] = max(free[:, process].max(), started[number - 1] + step if number else 0.0)
    half = steps // 2
    return gpus * batch * (steps - 1 - half) / (started[-1] - started[half])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--gpu-images', type=float, default=823, help='images/s of one GPU, three views each; assumed')
    parser.add_argument('--cores', type=int, default=16, help='loader cores of a GPU; assumed (default: 16)')
    parser.add_argument('--batch', type=int, default=64, help='images of a GPU (default: 64)')
    parser.add_argument('--megapixels', type=float, default=0.18, help='of a mean ImageNet image; assumed')
    shared = 'speed of a GPU among several, as a share of its speed alone; assumed (default: 0.84)'
    parser.add_argument('--efficiency', type=float, default=0.84, help=shared)
    parser.add_argument('--price', type=float, default=2.0, help='of a GPU hour with its cores; assumed (default: 2)')
    parser.add_argument('--limit', type=int, default=1000, help='images of the sample (default: 1000)')
    parser.add_argument('--json', type=Path, help='write everything there')
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = str(Path(os.environ['P2BE_DATA']) / 'imagenet_sample')
    rows = load_dataset(folder, split='validation').cast_column('image', ImageColumn(decode=False))
    parts, megapixels = measure([row['image']['bytes'] for row in rows.select(range(args.limit))])
    print(f'Milliseconds an image of {megapixels:.3f} megapixels, median (mean), on one core:')
    for part, spent in parts.items():
        print(f'  {part:8} {1e3 * np.median(spent):6.2f} ({1e3 * spent.mean():.2f})')
    scaled = {**parts, 'decode': parts['decode'] * args.megapixels / megapixels}
    report: dict[str, Any] = {'flags': {**vars(args), 'json': None}, 'megapixels': megapixels, 'rows': []}
    report['milliseconds'] = {part: 1e3 * spent.mean() for part, spent in parts.items()}
    for where, used in {'workers': PARTS, 'batch': ('decode', 'crop', 'collate')}.items():
        seconds = sum(scaled[part] for part in used)
        core = 1 / float(np.mean(seconds))
        need = args.gpu_images / core
        print(f'AugMix in {where}: {core:.0f} images/s a core, {need:.1f} cores feed a GPU of {args.gpu_images:.0f}')
        for gpus in (1, 8, 64):
            step = args.batch / args.gpu_images / (1 if gpus == 1 else args.efficiency)
            speed = simulate(seconds, gpus, args.cores, args.batch, step, 40 * args.cores)
            hours = EPOCHS * TRAINING_IMAGES / speed / 3600
            row = {'augmix': where, 'gpus': gpus, 'images_per_second': speed, 'hours': hours, 'cores_needed': need}
            row |= {'core_images_per_second': core, 'gpu_hours': hours * gpus, 'cost': hours * gpus * args.price}
            report['rows'].append(row)
            print(
                f'  {gpus:2} GPUs: {speed:7.0f} images/s, {hours:6.1f} h, {hours * gpus:6.0f} GPU h, {row["cost"]:.0f}'
            )
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
