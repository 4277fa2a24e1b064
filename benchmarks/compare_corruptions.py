"""Compare our corruptions with the scripts that made CIFAR-10-C and ImageNet-C.

    python benchmarks/compare_corruptions.py --original-cifar make_cifar_c.py --original-imagenet make_imagenet_c.py

The two files are from ImageNet-C/create_c/ of github.com/hendrycks/robustness; the data sets they name are not needed,
since only their imports and definitions are run. Set P2BE_DATA to a folder with cifar10/ and imagenet_sample/ to use
photographs from there. Motion blur and snow need ImageMagick and the package Wand, and are left out without them.

Two comparisons per corruption and severity. `replay`: the script draws its random numbers from our generator, so both
must return the same pixels. `draws`: both draw on their own; compared are the mean level, the spread over draws and, by
a Kolmogorov-Smirnov test, the distance of the corrupted from the clean image.
"""

import argparse
import ast
import ctypes
import functools
import importlib.util
import json
import platform
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import scipy
import skimage
from corruptions import photographs
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import ks_2samp
from skimage.color import hsv2rgb, rgb2hsv
from skimage.filters import gaussian
from skimage.util import random_noise

from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, SUITES, _generator, corrupt

REPLAYS = {'cifar': (20, 5), 'imagenet': (3, 2)}  # images, draws of each
DRAWS = {'cifar': (20, 50), 'imagenet': (2, 100)}
FROST_DRAWS = {'cifar': (20, 1000), 'imagenet': (2, 300)}  # five photographs of very different brightness
DETERMINISTIC = (
    'defocus_blur', 'zoom_blur', 'brightness', 'contrast', 'pixelate', 'jpeg_compression', 'gaussian_blur', 'saturate'
)  # fmt: skip
MEAN, SPREAD, P_VALUE = 0.5, 0.03, 0.01  # targets: levels, relative difference, probability
Original = Callable[[Image.Image, int], Any]


class Script:
    """The corruptions of one of the original scripts, on today's numpy, scipy and scikit-image.

    `generator` is where its random numbers come from; set it before each call.
    """

    def __init__(self, file: Path) -> None:
        self.generator = np.random.default_rng()
        self._pairs: Iterator[NDArray[np.int64]] = iter(())
        self._pairs_of: np.random.Generator | None = None
        self._names: dict[str, Any] = {'__name__': file.stem}
        tree = ast.parse(file.read_text(encoding='utf-8'))
        without_data = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef)]
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == 'MotionImage']
        self.has_wand = importlib.util.find_spec('wand') is not None
        body: list[ast.stmt] = [node for node in without_data if self._is_wanted(node)]
        body += classes if self.has_wand else []
        exec(compile(ast.Module(body, []), str(file), 'exec'), self._names)
        if self.has_wand:
            blur = self._names['wandlibrary'].MagickMotionBlurImage
            blur.argtypes = (ctypes.c_void_p, ctypes.c_double, ctypes.c_double, ctypes.c_double)
        self._names |= self._replacements()

    def __getitem__(self, name: str) -> Original:
        return self._names[name]

    def can_run(self, name: str) -> bool:
        """Whether the libraries that `name` needs are there."""
        return self.has_wand or name not in ('motion_blur', 'snow')

    def _is_wanted(self, node: ast.stmt) -> bool:
        """Leave out the reader of data sets, and repair the import that scipy moved."""
        if isinstance(node, ast.ImportFrom) and node.module == 'scipy.ndimage.interpolation':
            node.module = 'scipy.ndimage'
        modules = [node.module] if isinstance(node, ast.ImportFrom) else []
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else modules
        roots = {(module or '').split('.')[0] for module in modules}
        return not roots & ({'torch', 'torchvision'} if self.has_wand else {'torch', 'torchvision', 'wand'})

    def _randint(self, low: int, high: int | None = None, size: tuple[int, ...] | None = None) -> Any:
        """Draw integers; the pairs of glass blur, one for each pixel, in blocks that hold the same numbers."""
        if size is None:
            return self.generator.integers(low, high)
        if self._pairs_of is not self.generator:
            self._pairs_of, self._pairs = self.generator, iter(())
        pair = next(self._pairs, None)
        if pair is None:
            self._pairs = iter(self.generator.integers(low, high, (10_000, *size)))
            pair = next(self._pairs)
        return pair

    def _replacements(self) -> dict[str, Any]:
        """Return names to put in place of libraries whose interfaces have changed, or that draw random numbers."""
        draw = types.SimpleNamespace(
            normal=lambda **arguments: self.generator.normal(**arguments),
            uniform=lambda *arguments, **named: self.generator.uniform(*arguments, **named),
            poisson=lambda rate: self.generator.poisson(rate),
            randint=self._randint,
        )
        numpy = types.SimpleNamespace(**{**vars(np), 'random': draw, 'float_': np.float64, 'fromstring': np.frombuffer})
        opencv = types.SimpleNamespace(**{**vars(cv2), 'imread': _frost, 'filter2D': _filter2d})
        scikit = types.SimpleNamespace(
            util=types.SimpleNamespace(random_noise=lambda *a, **k: random_noise(*a, rng=self.generator, **k)),
            color=types.SimpleNamespace(rgb2hsv=rgb2hsv, hsv2rgb=hsv2rgb),
        )
        return {'np': numpy, 'cv2': opencv, 'sk': scikit, 'gaussian': _gaussian}


@functools.cache
def _frost(name: str) -> NDArray[Any]:
    package = importlib.util.find_spec('imagecorruptions')
    assert package is not None
    assert package.origin is not None
    return np.asarray(cv2.imread(str(Path(package.origin).with_name('frost') / Path(name).name)))


def _filter2d(image: NDArray[Any], depth: int, kernel: NDArray[Any]) -> NDArray[Any]:
    return cv2.filter2D(image, depth, kernel.astype(np.float32))  # OpenCV 5 refuses integer kernels


def _gaussian(image: NDArray[Any], sigma: float, multichannel: bool = False, **arguments: Any) -> NDArray[Any]:
    return gaussian(image, sigma, channel_axis=-1 if multichannel else None, **arguments)


def replay(script: Script, images: Sequence[NDArray[np.uint8]], name: str, severity: int, suite: str) -> dict[str, Any]:
    """Compare pixels when both draw the same random numbers."""
    differing, largest, total = 0, 0, 0
    draws = 1 if name in DETERMINISTIC else REPLAYS[suite][1]
    for index, image in enumerate(images[: REPLAYS[suite][0]]):
        for draw in range(draws):
            script.generator = _generator(name, severity, (draw, index))
            theirs = np.uint8(script[name](Image.fromarray(image), severity))
            ours = corrupt(image, name, severity, suite, seed=(draw, index))
            gap = np.abs(ours.astype(int) - theirs)
            differing, largest, total = (
                differing + np.count_nonzero(gap),
                max(largest, int(gap.max())),
                total + gap.size,
            )
    return {'levels': total, 'differing': int(differing), 'largest_difference': largest}


def _moments(outputs: NDArray[np.uint8], clean: NDArray[np.uint8]) -> tuple[Any, ...]:
    """Return mean of each draw, mean over pixels of the variance over draws, and RMS distances from the clean image."""
    values = outputs.astype(np.float32)
    distances = np.sqrt(np.square(values - clean).mean(axis=(1, 2, 3)))
    return values.mean(axis=(1, 2, 3)), float(values.var(axis=0, ddof=1).mean()), distances


def draws(
    script: Script, images: Sequence[NDArray[np.uint8]], name: str, severity: int, suite: str, seed: int
) -> dict[str, Any]:
    """Compare distributions when each draws on its own."""
    script.generator = np.random.default_rng([seed, severity])
    count, each = (FROST_DRAWS if name == 'frost' else DRAWS)[suite]
    moments: dict[str, list[tuple[Any, ...]]] = {'ours': [], 'theirs': []}
    for index, image in enumerate(images[:count]):
        pillow = Image.fromarray(image)
        theirs = np.stack([np.uint8(script[name](pillow, severity)) for _ in range(each)])
        ours = np.stack([corrupt(image, name, severity, suite, (seed, index, draw)) for draw in range(each)])
        moments['ours'].append(_moments(ours, image))
        moments['theirs'].append(_moments(theirs, image))
    means = {side: np.stack([row[0] for row in rows]) for side, rows in moments.items()}
    spreads = {side: float(np.sqrt(np.mean([row[1] for row in rows]))) for side, rows in moments.items()}
    distances = {side: np.concatenate([row[2] for row in rows]) for side, rows in moments.items()}
    error = np.sqrt(sum(values.var(axis=1, ddof=1).mean() / values.size for values in means.values()))
    difference = float(means['ours'].mean() - means['theirs'].mean())
    p_value = float(ks_2samp(distances['ours'], distances['theirs']).pvalue)
    ratio = spreads['ours'] / spreads['theirs']
    missed = [
        *(['mean'] if abs(difference) > MEAN else []),
        *(['spread'] if abs(ratio - 1) > SPREAD else []),
        *(['KS'] if p_value <= P_VALUE else []),
    ]
    return {
        'draws': count * each, 'mean_difference': difference, 'its_standard_error': float(error),
        'spread_ratio': ratio, 'ks_p': p_value, 'missed': missed,
    }  # fmt: skip


def compare(
    script: Script, images: Sequence[NDArray[np.uint8]], name: str, severity: int, suite: str
) -> dict[str, Any]:
    """Return one row; rows that miss a target are drawn afresh, and both outcomes are kept."""
    row: dict[str, Any] = {'suite': suite, 'corruption': name, 'severity': severity}
    if not script.can_run(name):
        return {**row, 'left_out': 'needs ImageMagick and Wand'}
    row['replay'] = replay(script, images, name, severity, suite)
    if name not in DETERMINISTIC:
        row['draws'] = draws(script, images, name, severity, suite, seed=1)
        if row['draws']['missed']:
            row['fresh_draws'] = draws(script, images, name, severity, suite, seed=2)
    return row


def line(row: dict[str, Any]) -> str:
    """Return a row of the Markdown table."""
    cells = [row['suite'], row['corruption'], str(row['severity'])]
    if 'left_out' in row:
        return f'| {" | ".join(cells)} | {row["left_out"]} | | | | |'
    same = row['replay']
    cells.append(f'{same["differing"]} of {same["levels"]} (max {same["largest_difference"]})')
    for drawn in filter(None, (row.get('draws'), row.get('fresh_draws'))):
        cells += [
            f'{drawn["mean_difference"]:+.2f} ± {drawn["its_standard_error"]:.2f}',
            f'{drawn["spread_ratio"]:.3f}',
            f'{drawn["ks_p"]:.3f}',
            ', '.join(drawn['missed']) or '-',
        ]
    return f'| {" | ".join(cells)} |'


def main() -> None:
    """Compare, print the table and write it as JSON."""
    summary, _, details = (__doc__ or '').partition('\n')
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--original-cifar', type=Path, metavar='FILE', help='make_cifar_c.py')
    parser.add_argument('--original-imagenet', type=Path, metavar='FILE', help='make_imagenet_c.py')
    parser.add_argument('--only', nargs='+', metavar='NAME', default=[*CORRUPTIONS, *EXTRA_CORRUPTIONS])
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the outcome to FILE as well')
    args = parser.parse_args()
    if not args.original_cifar and not args.original_imagenet:
        parser.error('give --original-cifar, --original-imagenet or both')
    warnings.simplefilter('ignore')  # the scripts use deprecated interfaces
    cv2.setNumThreads(1)
    rows, sources = [], {}
    print('| suite | corruption | severity | levels that differ, same draws | mean | spread | KS p | missed |')
    print('|---|---|---|---|---|---|---|---|')
    for suite, file in (('cifar', args.original_cifar), ('imagenet', args.original_imagenet)):
        if not file:
            continue
        script = Script(file)
        images, sources[suite] = photographs(SUITES[suite], max(REPLAYS[suite][0], DRAWS[suite][0]))
        for name in args.only:
            for severity in SEVERITIES:
                rows.append(compare(script, images, name, severity, suite))
                print(line(rows[-1]), flush=True)
    modules = (np, scipy, skimage, cv2, PIL)
    versions = {'python': platform.python_version(), **{module.__name__: module.__version__ for module in modules}}
    targets = {'mean': MEAN, 'spread': SPREAD, 'ks_p': P_VALUE}
    if args.json:
        outcome = {'versions': versions, 'images': sources, 'targets': targets, 'rows': rows}
        args.json.write_text(json.dumps(outcome, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
