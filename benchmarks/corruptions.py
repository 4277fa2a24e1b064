"""Measure the corruptions of CIFAR-C and ImageNet-C in images per second, in one process and on one core.

    OMP_NUM_THREADS=1 python benchmarks/corruptions.py [--json FILE]

Set P2BE_DATA to a folder with cifar10/ and imagenet_sample/ to use photographs from there; otherwise crops of
scikit-image's astronaut are used.
"""

import argparse
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import scipy
import skimage
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, SUITES, corrupt

ROUNDS = 3
IMAGES = {'cifar': 40, 'imagenet': 3}  # in each timed run
TEST_SET = 10_000  # images of CIFAR's test sets


def photographs(side: int, count: int) -> tuple[list[NDArray[np.uint8]], str]:
    """Return `count` images of side x side pixels, uint8 (side, side, 3), and where they come from."""
    if folder := os.environ.get('P2BE_DATA'):
        import pyarrow.parquet as parquet  # a dependency of datasets

        pattern, column = ('cifar10/test-*.parquet', 'img') if side == 32 else ('imagenet_sample/*.parquet', 'image')
        rows = parquet.read_table(min(Path(folder).glob(pattern)), columns=[column])[column][:count].to_pylist()
        images = [Image.open(io.BytesIO(row['bytes'])).convert('RGB') for row in rows]
        if side != 32:
            images = [v2.functional.center_crop(v2.functional.resize(image, [256]), [side, side]) for image in images]
        return [np.asarray(image) for image in images], pattern.split('/')[0]
    from skimage.data import astronaut

    generator = np.random.default_rng(0)
    picture = np.asarray(Image.fromarray(astronaut()).resize((8 * side, 8 * side)))
    corners = generator.integers(0, 7 * side, (count, 2)).tolist()
    return [picture[y : y + side, x : x + side].copy() for x, y in corners], 'crops of skimage.data.astronaut'


def seconds_per_image(images: Sequence[NDArray[np.uint8]], name: str, suite: str) -> float:
    """Return the mean over the five severities."""
    start = time.perf_counter()
    for severity in SEVERITIES:
        for index, image in enumerate(images):
            corrupt(image, name, severity, suite, seed=(0, index))
    return (time.perf_counter() - start) / len(images) / len(SEVERITIES)


def measure(suite: str) -> dict[str, Any]:
    """Return medians over interleaved runs."""
    images, source = photographs(SUITES[suite], IMAGES[suite])
    names = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(ROUNDS + 1):
        for name in names:
            spent = seconds_per_image(images, name, suite)
            if round_number > 0:  # the first round warms up: kernels and photographs of frost are kept
                seconds[name].append(spent)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        'suite': suite,
        'images': source,
        'images_per_second': {name: 1 / median for name, median in medians.items()},
        'range': {name: [1 / max(values), 1 / min(values)] for name, values in seconds.items()},
        'milliseconds per image, mean of the 15': 1000 * statistics.mean(medians[name] for name in CORRUPTIONS),
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print the measurements as a Markdown table."""
    print('| corruption | ' + ' | '.join(f'{row["suite"]}, images/s' for row in rows) + ' |')
    print('|---' * (len(rows) + 1) + '|')
    for name in (*CORRUPTIONS, *EXTRA_CORRUPTIONS):
        print(f'| {name} | ' + ' | '.join(f'{row["images_per_second"][name]:.0f}' for row in rows) + ' |')
    for row in rows:
        mean = row['milliseconds per image, mean of the 15']
        print(f'\n{row["suite"]} ({row["images"]}): {mean:.2f} ms per image and severity, mean of the 15 corruptions.')
        if row['suite'] == 'cifar':
            minutes = mean / 1000 * TEST_SET * len(CORRUPTIONS) * len(SEVERITIES) / 60
            print(f'All 15 x 5 copies of {TEST_SET} images: {minutes:.1f} min on one core.')


def main() -> None:
    """Measure, print the table and, if asked, write it as JSON."""
    summary, _, details = (__doc__ or '').partition('\n')
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the measurements to FILE as well')
    args = parser.parse_args()
    cv2.setNumThreads(1)
    modules = (np, scipy, skimage, cv2, PIL)
    versions = {'python': platform.python_version(), **{module.__name__: module.__version__ for module in modules}}
    rows = [measure(suite) for suite in SUITES]
    print(f'One core, {ROUNDS} interleaved runs, medians. ' + ', '.join(f'{k} {v}' for k, v in versions.items()))
    print_table(rows)
    if args.json:
        outcome = {'versions': versions, 'rounds': ROUNDS, 'rows': rows}
        args.json.write_text(json.dumps(outcome, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
