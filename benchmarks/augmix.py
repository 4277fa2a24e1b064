"""Measure AugMix on one core: ours, torchvision's v2.AugMix and timm's augmix, on real images of 32x32 and 224x224.

    OMP_NUM_THREADS=1 python benchmarks/augmix.py [--device DEVICE] [--json FILE]

Set P2BE_DATA to a folder with cifar10/ and imagenet_sample/ to use photographs from there; otherwise crops of
scikit-image's astronaut are used. The three do not compute the same thing: torchvision quantizes its levels and
truncates, timm has four more operations, other ranges and truncates too. All three run with severity 3, width 3 and
random depth. "batch" is ours on all images at once, as a tensor on DEVICE (default: cpu); its values are compared with
those of ours one by one, by the same draws.
"""

import argparse
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
import timm
import torch
import torchvision
from PIL import Image
from timm.data.auto_augment import augment_and_mix_transform
from torchvision.transforms import v2

from timm_p2be.data import AugMix
from timm_p2be.data.augmix import mix

ROUNDS = 15
IMAGES = {32: 200, 224: 20}  # side -> images in each timed run
Augment = Callable[[Image.Image], Image.Image]


def photographs(side: int, count: int) -> tuple[list[Image.Image], str]:
    """Return `count` RGB images of side x side pixels, and where they come from."""
    if folder := os.environ.get('P2BE_DATA'):
        import pyarrow.parquet as parquet  # a dependency of datasets

        pattern, column = ('cifar10/test-*.parquet', 'img') if side == 32 else ('imagenet_sample/*.parquet', 'image')
        rows = parquet.read_table(min(Path(folder).glob(pattern)), columns=[column])[column][:count].to_pylist()
        images = [Image.open(io.BytesIO(row['bytes'])).convert('RGB') for row in rows]
        return [v2.functional.center_crop(image, [side, side]) for image in images], pattern.split('/')[0]
    from skimage.data import astronaut

    generator = np.random.default_rng(0)
    picture = Image.fromarray(astronaut()).resize((8 * side, 8 * side))
    corners = generator.integers(0, 7 * side, (count, 2)).tolist()
    return [picture.crop((x, y, x + side, y + side)) for x, y in corners], 'crops of skimage.data.astronaut'


def images_per_second(augment: Augment, images: Sequence[Image.Image]) -> float:
    """Return the speed of one pass over `images`."""
    start = time.perf_counter()
    for image in images:
        augment(image)
    return len(images) / (time.perf_counter() - start)


def count_different(batch: torch.Tensor, seed: int) -> int:
    """Return how many values of a batch (N, 3, H, W) differ from those of its images mixed one by one."""
    torch.manual_seed(seed)  # from which AugMix takes its draws
    together = AugMix()(batch).permute(0, 2, 3, 1).cpu().numpy()
    draws = zip(*AugMix().draw_batch(np.random.default_rng(seed), len(batch)), strict=True)
    images = np.ascontiguousarray(batch.permute(0, 2, 3, 1).cpu().numpy())
    alone = [mix(image, AugMix().mixture(*drawn)) for image, drawn in zip(images, draws, strict=True)]
    return int((together != np.stack(alone)).sum())


def batch_per_second(batch: torch.Tensor) -> float:
    """Return the speed of AugMix on a whole batch."""
    start = time.perf_counter()
    AugMix()(batch)[0, 0, 0, 0].item()  # waits for the device
    return len(batch) / (time.perf_counter() - start)


def measure(side: int, device: str) -> dict[str, object]:
    """Return the medians over interleaved runs for images of side x side pixels."""
    images, source = photographs(side, IMAGES[side])
    batch = torch.from_numpy(np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])).to(device)
    augments: dict[str, Augment] = {
        'ours': AugMix(),
        'torchvision': v2.AugMix(severity=3, all_ops=False),
        'timm': augment_and_mix_transform('augmix-m3-w3'),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ('batch', *augments)}
    for round_number in range(ROUNDS + 1):
        for name in speeds:
            speed = batch_per_second(batch) if name == 'batch' else images_per_second(augments[name], images)
            if round_number > 0:  # the first round warms up
                speeds[name].append(speed)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ranges = {name: [min(values), max(values)] for name, values in speeds.items()}
    return {
        'side': side,
        'images': source,
        'images_per_second': medians,
        'range': ranges,
        'ours / torchvision': medians['ours'] / medians['torchvision'],
        'ours / timm': medians['ours'] / medians['timm'],
        'batch / ours': medians['batch'] / medians['ours'],
        'values compared': ROUNDS * batch.numel(),
        'values different': sum(count_different(batch, seed) for seed in range(ROUNDS)),
    }


def print_table(rows: list[dict[str, object]]) -> None:
    """Print the measurements as a Markdown table."""
    head = 'image | ours, images/s | torchvision | timm | batch | ours / torchvision | ours / timm | batch / ours'
    print(f'| {head} | values compared | different | images |')
    print('|---' * 11 + '|')
    for row in rows:
        speed = row['images_per_second']
        assert isinstance(speed, dict)
        print(
            f'| {row["side"]}x{row["side"]} | {speed["ours"]:.0f} | {speed["torchvision"]:.0f} | {speed["timm"]:.0f} '
            f'| {speed["batch"]:.0f} | {row["ours / torchvision"]:.2f} | {row["ours / timm"]:.2f} '
            f'| {row["batch / ours"]:.2f} | {row["values compared"]} | {row["values different"]} | {row["images"]} |'
        )


def main() -> None:
    """Measure, print the table and, if asked, write it as JSON."""
    summary, _, details = (__doc__ or '').partition('\n')
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--device', default='cpu', help='where the batch lies (default: cpu)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the measurements to FILE as well')
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # timm's augmix draws from numpy's global generator
    modules = (torch, torchvision, timm, PIL, np)
    versions = {'python': platform.python_version(), **{module.__name__: str(module.__version__) for module in modules}}
    rows = [measure(side, args.device) for side in IMAGES]
    print(f'One core, {ROUNDS} interleaved runs, medians. ' + ', '.join(f'{k} {v}' for k, v in versions.items()))
    print_table(rows)
    if args.json:
        args.json.write_text(json.dumps({'versions': versions, 'rounds': ROUNDS, 'rows': rows}, indent=2) + '\n')


if __name__ == '__main__':
    main()
