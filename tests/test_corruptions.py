import colorsys
import importlib.util
import io
import itertools
import math
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SUITES, corrupt, weather
from timm_p2be.robustness.corruptions.blur import directed_blur, disk_kernel
from timm_p2be.robustness.corruptions.parameters import PARAMETERS

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating]
Random = np.random.Generator

ALL = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
# the others move pixels, draw photographs or change hue, and differ little or at random between two severities
MONOTONE = tuple(
    name for name in ALL if name not in ('glass_blur', 'elastic_transform', 'snow', 'frost', 'spatter', 'saturate')
)

each_suite = pytest.mark.parametrize('suite', list(SUITES))
each_severity = pytest.mark.parametrize(
    'severity', [1, pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow), 5]
)


def _documented() -> dict[str, dict[str, list[Any]]]:
    """The table of docs/protocol.md: corruption -> suite -> numbers of severities 1 to 5 in the order of keywords."""
    text = (Path(__file__).parents[1] / 'docs' / 'protocol.md').read_text(encoding='utf-8')
    table: dict[str, dict[str, list[Any]]] = {}
    for line in text.partition('\n## 9. Corruptions\n')[2].splitlines():
        name, *cells = [cell.strip(' *') for cell in line.split('|')[1:-1]] or ['']
        if name in ALL and len(cells) == 3:
            for suite, cell in zip(SUITES, cells[1:], strict=True):
                rows = (re.findall(r'[\d.]+', row) for row in re.findall(r'\([^)]*\)|[\d.]+', cell))
                table.setdefault(name, {})[suite] = [[float(x) if '.' in x else int(x) for x in row] for row in rows]
    for suite, scale, side in (('cifar', 0.2, 32), ('imagenet', 1, 244)):
        table['frost'][suite] = [[*row, scale] for row in table['frost'][suite]]
        table['elastic_transform'][suite] = [[side * x for x in row] for row in table['elastic_transform'][suite]]
    return table


DOCUMENTED = _documented()


def _values(name: str, suite: str) -> dict[str, Any]:
    return {keyword: values[list(SUITES).index(suite)] for keyword, values in PARAMETERS[name].items()}


def _expected(name: str, suite: str, severity: int) -> list[Any]:
    return DOCUMENTED[name][suite][severity - 1]


def _generator(name: str, severity: int, *seed: int) -> np.random.Generator:
    """The documented generator of one image."""
    return np.random.default_rng([zlib.crc32(name.encode()), severity, len(seed), *seed])


def _image(suite: str, seed: int = 0) -> Pixels:
    side = SUITES[suite]
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + generator.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


def _assert_cut(got: Pixels, exact: Floats, allowed: float = 1e-3, lost: float = 0.1) -> None:
    """`got` is the integer part of `exact`, up to float error at whole numbers, and not its nearest integer: more than
    a share `lost` of its values has lost over a half. A share `allowed` of the values may be off by one more."""
    fraction = exact.clip(0, 255) - got
    assert (np.abs(fraction - 0.5) > 0.5 + 1e-3).mean() <= allowed
    assert np.abs(fraction - 0.5).max() < 1.5 + 1e-3
    assert (fraction > 0.51).mean() > lost


@each_suite
def test_parameters_are_the_documented_ones(suite: str) -> None:
    assert tuple(DOCUMENTED) == tuple(PARAMETERS) == ALL
    for name in {*ALL} - {'zoom_blur'}:
        columns = list(_values(name, suite).values())
        np.testing.assert_allclose(np.array(columns, dtype=float).T, DOCUMENTED[name][suite], rtol=1e-12)
    # to the last bit, since sizes are rounded: 26 pixels times 1.25 are 32, times arange's 1.2500000000000002 33
    for (last, step), factors in zip(
        DOCUMENTED['zoom_blur'][suite], _values('zoom_blur', suite)['factors'], strict=True
    ):
        assert list(factors) == np.arange(1, last + step / 2, step).tolist()


# Pixel by pixel: each corruption once more, from its description in docs/protocol.md, by other means


def _smoothed(x: Floats, deviation: float, truncate: float = 4, mode: str = 'edge') -> Floats:
    """Convolve rows and columns with a sampled Gaussian."""
    reach = int(truncate * deviation + 0.5)
    if reach == 0:
        return x
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        padding = [(reach, reach) if axis == other else (0, 0) for other in range(x.ndim)]
        padded = np.pad(x, padding, mode=mode)  # type: ignore[call-overload]
        length = x.shape[axis]
        x = sum(w * np.take(padded, range(i, i + length), axis) for i, w in enumerate(weights))
    return x


def _plasma(side: int, decay: float, generator: Random) -> Floats:
    """Diamond-square on a torus, point by point."""
    cloud = np.zeros((side, side))
    step, wibble = side, 100.0
    while step >= 2:
        half = step // 2
        grid = range(0, side, step)
        shape = (len(grid), len(grid))

        def fill(rows: range, columns: range, neighbors: list[tuple[int, int]], noise: Floats) -> None:
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    around = [cloud[(row + y) % side, (column + x) % side] for y, x in neighbors]
                    cloud[row, column] = sum(around) / 4 + wibble * noise[i, j]  # noqa: B023

        between = range(half, side, step)
        corners = [(-half, -half), (-half, half), (half, -half), (half, half)]
        edges = [(-half, 0), (half, 0), (0, -half), (0, half)]
        fill(between, between, corners, generator.uniform(-wibble, wibble, shape))
        fill(grid, between, edges, generator.uniform(-wibble, wibble, shape))
        fill(between, grid, edges, generator.uniform(-wibble, wibble, shape))
        step, wibble = half, wibble / decay
    return (cloud - cloud.min()) / (cloud.max() - cloud.min())


def _glass_blur(image: Pixels, generator: Random, deviation: float, reach: int, rounds: int) -> Floats:
    """From the bottom right corner on, each pixel becomes a copy of a neighbor, which itself stays."""
    pixels = np.floor(_smoothed(image.astype(float), deviation) + 1e-9)
    before = len(np.unique(pixels.reshape(-1, 3), axis=0))
    for _ in range(rounds):
        targets = list(itertools.product(range(len(image) - reach, reach, -1), repeat=2))
        shifts = generator.integers(-reach, reach, (len(targets), 2)).tolist()
        for (row, column), (right, down) in zip(targets, shifts, strict=True):
            pixels[row, column] = pixels[row + down, column + right]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) < 0.95 * before
    return _smoothed(pixels, deviation)


def _motion_blur(image: Pixels, generator: Random, radius: int, deviation: float) -> Floats:
    """Every pixel averages its line, read at the nearest pixels and held at the edge."""
    angle, side = math.radians(generator.uniform(-45, 45)), len(image)
    total, weight_sum = np.zeros(image.shape), 0.0
    for tap in range(2 * radius + 1):
        weight = math.exp(-((tap / deviation) ** 2) / 2)
        rows = np.clip(np.arange(side) + math.ceil(tap * math.sin(angle) - 0.5), 0, side - 1)
        columns = np.clip(np.arange(side) + math.ceil(tap * math.cos(angle) - 0.5), 0, side - 1)
        total += weight * image[np.ix_(rows, columns)]
        weight_sum += weight
    return total / weight_sum + 0.5 / 257


def _center_zoom(x: NDArray[Any], factor: float) -> NDArray[Any]:
    """scipy's magnification of the center, trimmed."""
    side, crop = len(x), math.ceil(len(x) / factor)
    offset = (side - crop) // 2
    zoomed = ndimage.zoom(x[offset : offset + crop, offset : offset + crop], (factor, factor, 1), order=1)
    trim = (len(zoomed) - side) // 2
    return zoomed[trim : trim + side, trim : trim + side]


def _zoom_blur(image: Pixels, generator: Random, last: float, step: float) -> Pixels:
    """Bit for bit the mean over the magnifications, and the image itself once more."""
    x = (image / 255.0).astype(np.float32)
    zoomed = [_center_zoom(x, factor) for factor in np.arange(1, last + step / 2, step)]
    return (np.clip((x + sum(zoomed)) / (len(zoomed) + 1), 0, 1) * 255).astype(np.uint8)


def _snow(image: Pixels, generator: Random, *numbers: Any) -> Floats:
    """b x + (1 - b) max(x, 1.5 gray + .5), and flakes, added once more upside down."""
    mean, deviation, zoom, threshold, radius, streak, clarity = numbers
    layer = _center_zoom(generator.normal(mean, deviation, (*image.shape[:2], 1)), zoom)[..., 0]
    flakes = np.where(layer < threshold, 0, np.floor(255 * layer.clip(0, 1))).astype(np.uint8)
    fallen = directed_blur(flakes, radius, streak, generator.uniform(-135, -45)).astype(float)[..., None]
    gray = image @ np.array([0.299, 0.587, 0.114])
    assert fallen.any()
    whitened = clarity * image + (1 - clarity) * np.maximum(image, 1.5 * gray[..., None] + 127.5)
    return whitened + fallen + fallen[::-1, ::-1]


def _frost(image: Pixels, generator: Random, image_weight: float, frost_weight: float, scale: float) -> Floats:
    number, side = generator.integers(5) + 1, len(image)
    picture = weather.frost_picture(f'frost{number}.{"png" if number < 4 else "jpg"}', scale)
    top = generator.integers(0, picture.shape[0] - side)
    left = generator.integers(0, picture.shape[1] - side)
    return image_weight * image + frost_weight * picture[top : top + side, left : left + side]


def _fog(image: Pixels, generator: Random, density: float, decay: float) -> Floats:
    side, brightest = len(image), image.max() / 255
    cloud = _plasma(32 if side == 32 else 256, decay, generator)[:side, :side, None]
    return (image / 255 + density * cloud) * brightest / (brightest + density) * 255


def _hsv(image: Pixels, change: Callable[[float, float, float], tuple[float, float, float]]) -> Floats:
    colors = (image.reshape(-1, 3) / 255).tolist()
    changed = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*color))) for color in colors]
    return np.array(changed).reshape(image.shape) * 255


def _pixelate(image: Pixels, generator: Random, factor: float) -> Pixels:
    side = math.floor(len(image) * factor)
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.resize(image.shape[:2], Image.Resampling.BOX))


def _jpeg_compression(image: Pixels, generator: Random, quality: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'JPEG', quality=quality)
    return np.asarray(Image.open(buffer))


# of image, generator and the documented numbers; the others have tests of their own
REFERENCES: dict[str, Callable[..., Any]] = {
    'gaussian_noise': lambda image, random, deviation: image + random.standard_normal(image.shape) * deviation * 255,
    'shot_noise': lambda image, random, photons: random.poisson(image / 255.0 * photons) * 255 / photons,
    'speckle_noise': lambda image, random, deviation: image * (1 + random.standard_normal(image.shape) * deviation),
    'gaussian_blur': lambda image, _, deviation: _smoothed(image.astype(float), deviation),
    'defocus_blur': lambda image, _, radius, alias: ndimage.correlate(  # the kernel has a test of its own
        image.astype(float), disk_kernel(radius, alias).astype(float)[..., None], mode='mirror'
    ),
    'glass_blur': _glass_blur,
    'motion_blur': _motion_blur,
    'zoom_blur': _zoom_blur,
    'snow': _snow,
    'frost': _frost,
    'fog': _fog,
    'brightness': lambda image, _, shift: _hsv(image, lambda h, s, v: (h, s, min(v + shift, 1))),
    'saturate': lambda image, _, factor, shift: _hsv(image, lambda h, s, v: (h, min(s * factor + shift, 1), v)),
    'contrast': lambda image, _, factor: image * factor + image.mean(axis=(0, 1)) * (1 - factor),
    'pixelate': _pixelate,
    'jpeg_compression': _jpeg_compression,
}


@each_suite
@each_severity
@pytest.mark.parametrize('name', REFERENCES)
def test_pixels(name: str, suite: str, severity: int) -> None:
    image = _image(suite)
    exact = REFERENCES[name](image, _generator(name, severity, 7, 3), *_expected(name, suite, severity))
    got = corrupt(image, name, severity, suite, seed=(7, 3))
    assert not np.array_equal(got, image)
    if exact.dtype == np.uint8:
        np.testing.assert_array_equal(got, exact)
    else:
        whole = (exact == np.rint(exact)).all()  # glass at the lowest severity smooths nothing
        _assert_cut(got, exact, {'snow': 0.01, 'glass_blur': 0.002}.get(name, 1e-3), lost=-1 if whole else 0.1)


# What has no exact reference, and details


@each_suite
@each_severity
def test_impulse_noise(suite: str, severity: int) -> None:
    (amount,) = _expected('impulse_noise', suite, severity)
    gray = np.full((SUITES[suite], SUITES[suite], 3), 128, np.uint8)
    got = np.stack(
        [corrupt(gray, 'impulse_noise', severity, suite, seed) for seed in range(40 if suite == 'cifar' else 2)]
    )
    assert set(np.unique(got)) == {0, 128, 255}
    error = 4 * math.sqrt(amount / 2 / got.size)
    assert (got == 255).mean() == pytest.approx(amount / 2, abs=error)
    assert (got == 0).mean() == pytest.approx(amount / 2, abs=error)
    hit = got != 128  # channels are hit independently: two at once with the square of the rate
    assert (hit[..., 0] & hit[..., 1]).mean() == pytest.approx(amount**2, abs=6 * amount / math.sqrt(hit[..., 0].size))


def test_defocus_kernels() -> None:
    """At 32 pixels the mild ones are Gaussians of 3x3, the strong ones a plus and a box; at 224 they are disks.

    29 pixels have a distance of up to 3; the disks that touch the edge of their array sum to more than 1.
    """
    for severity in (1, 2, 3):
        radius, alias = _expected('defocus_blur', 'cifar', severity)
        line = np.exp(-0.5 * (np.arange(-1, 2) / alias) ** 2)
        line /= line.sum()
        np.testing.assert_allclose(disk_kernel(radius, alias)[7:10, 7:10], np.outer(line, line), atol=1e-6)
    plus = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5
    np.testing.assert_allclose(disk_kernel(1, 0.2)[7:10, 7:10], plus, atol=1e-5)
    np.testing.assert_allclose(disk_kernel(1.5, 0.1)[7:10, 7:10], 1 / 9, atol=1e-6)
    assert np.count_nonzero(disk_kernel(3, 0.1) > 1e-6) == 29
    sums = [float(disk_kernel(radius, 0.5).sum()) for radius in (4, 6, 8, 10)]
    assert sums == pytest.approx([1, 1, 1.013, 1.011], abs=6e-4)


def test_directed_blur_equals_imagemagick() -> None:
    """convert -motion-blur 2x1.5+30 and 2x1.5-100 of ImageMagick 6.9.11-60 Q16."""
    rows, columns = np.mgrid[:5, :7]
    image = ((61 * rows + 37 * columns + 17 * rows * columns) % 256).astype(np.uint8)
    assert directed_blur(image, 2, 1.5, 30).tolist() == [
        [55, 82, 79, 117, 154, 182, 198],
        [72, 127, 186, 143, 44, 85, 108],
        [145, 120, 40, 115, 184, 152, 74],
        [119, 59, 134, 95, 72, 139, 176],
        [171, 124, 125, 78, 89, 61, 106],
    ]
    assert directed_blur(image, 2, 1.5, -100).tolist() == [
        [0, 34, 71, 108, 145, 182, 219],
        [25, 67, 111, 155, 91, 136, 180],
        [71, 126, 75, 132, 103, 160, 109],
        [128, 91, 77, 150, 71, 144, 130],
        [188, 81, 126, 108, 111, 79, 124],
    ]


def test_frost_pictures_are_rgb_resized_linearly_and_five() -> None:
    names = [*(f'frost{number}.png' for number in (1, 2, 3)), 'frost4.jpg', 'frost5.jpg']
    small = [weather.frost_picture(name, 0.2).shape for name in names]
    assert small == [(120, 180, 3), (63, 112, 3), (63, 112, 3), (70, 105, 3), (99, 132, 3)]
    package = importlib.util.find_spec('imagecorruptions')
    exact = np.asarray(Image.open(Path(package.origin).with_name('frost') / 'frost1.png').convert('RGB')).astype(float)
    np.testing.assert_array_equal(weather.frost_picture('frost1.png', 1), exact)
    center = exact[2::5, 2::5]  # a fifth of the size: pixel i lies on pixel 5 i + 2
    assert np.abs(weather.frost_picture('frost1.png', 0.2) - center).max() <= 1


def test_frost_draws_each_of_the_five_and_never_the_sixth(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    load = weather.frost_picture
    monkeypatch.setattr(weather, 'frost_picture', lambda name, scale: asked.append(name) or load(name, scale))
    for seed in range(300):
        corrupt(np.zeros((32, 32, 3), np.uint8), 'frost', 1, seed=seed)
    counts = [asked.count(name) for name in ('frost1.png', 'frost2.png', 'frost3.png', 'frost4.jpg', 'frost5.jpg')]
    assert sum(counts) == 300
    assert min(counts) > 30
    assert 'imagecorruptions' not in sys.modules  # importing it would load numba and compile


@each_suite
@pytest.mark.parametrize('severity', [1, 3])
def test_water_is_turquoise_and_added(suite: str, severity: int) -> None:
    black = np.zeros((SUITES[suite], SUITES[suite], 3), np.uint8)
    got = corrupt(black, 'spatter', severity, suite).astype(int)
    strength = _expected('spatter', suite, severity)[4]
    np.testing.assert_array_equal(got[..., 1], got[..., 2])
    assert got[..., 1].max() == pytest.approx(238 * strength, abs=1)  # the thickest drop
    assert np.abs(got[..., 0] - got[..., 1] * 175 / 238).max() <= 1
    assert 0.005 < (got[..., 1] > 0).mean() < 0.6
    image = _image(suite)
    wet = corrupt(image, 'spatter', severity, suite).astype(int)
    dry = got[..., 1] == 0
    assert np.abs(wet[dry] - image[dry]).max() <= 1
    assert (wet - np.minimum(image + got, 255)).min() >= -1
    assert (wet - np.minimum(image + got, 255)).max() <= 1


@each_suite
@pytest.mark.parametrize('severity', [4, 5])
def test_mud_is_brown_and_hides(suite: str, severity: int) -> None:
    image = _image(suite)
    mean, deviation, drop, threshold, rounding, _ = _expected('spatter', suite, severity)
    noise = _generator('spatter', severity, 0).normal(mean, deviation, image.shape[:2])
    cover = _smoothed((_smoothed(noise, drop) > threshold).astype(float), rounding)[..., None]
    cover[cover < 0.8] = 0
    assert 0.003 < (cover > 0).mean() < 0.5
    exact = image * (1 - cover) + np.array([63, 42, 20]) * cover
    _assert_cut(corrupt(image, 'spatter', severity, suite), exact, allowed=0.03, lost=0)


def test_water_without_a_drop_changes_nothing() -> None:
    """The original divides by zero there."""
    image = _image('cifar')
    numbers = {key: values[0] for key, values in _values('spatter', 'cifar').items()}
    got = weather.spatter(image, np.random.default_rng(0), **{**numbers, 'mean': 0.0})
    np.testing.assert_array_equal(got, image)


def _bilinear(image: Floats, rows: Floats, columns: Floats) -> Floats:
    """Read an image between its pixels; beyond the edge they repeat as d c b | b c d or as c b a | a b c."""
    low_row, low_column = np.floor(rows).astype(int), np.floor(columns).astype(int)
    total = np.zeros((*rows.shape, 3))
    for down in (0, 1):
        for right in (0, 1):
            weight = np.abs(1 - down - (rows - low_row)) * np.abs(1 - right - (columns - low_column))
            total += weight[..., None] * image[low_row + down, low_column + right]
    return total


@each_suite
@each_severity
def test_elastic_transform(suite: str, severity: int) -> None:
    """Affine from three moved points, then smoothed shifts; alone affine where the amplitude is 0, CIFAR severity 1."""
    side = SUITES[suite]
    coarse = np.random.default_rng(1).integers(0, 256, (5, 5, 3), dtype=np.uint8)  # OpenCV interpolates coarsely
    image = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    amplitude, deviation, affine = _expected('elastic_transform', suite, severity)
    generator = _generator('elastic_transform', severity, 0)
    near, far = (6.0, 26.0) if suite == 'cifar' else (38.0, 186.0)
    points = np.array([[far, far], [far, near], [near, near]])
    moved = points + generator.uniform(-affine, affine, (3, 2))
    matrix = np.linalg.solve(np.c_[moved, np.ones(3)], points).T  # back from the result (x, y, 1) to the image
    rows, columns = np.mgrid[:side, :side].astype(float)
    margin = side  # d c b | a b c d | c b a
    padded = np.pad(image.astype(float), ((margin, margin), (margin, margin), (0, 0)), mode='reflect')
    source_x = matrix[0, 0] * columns + matrix[0, 1] * rows + matrix[0, 2]
    source_y = matrix[1, 0] * columns + matrix[1, 1] * rows + matrix[1, 2]
    warped = _bilinear(padded, source_y + margin, source_x + margin)
    if amplitude:
        noise = [generator.uniform(-1, 1, (side, side)) for _ in range(2)]
        right, down = (amplitude * _smoothed(part, deviation, truncate=3, mode='symmetric') for part in noise)
        padded = np.pad(warped, ((margin, margin), (margin, margin), (0, 0)), mode='symmetric')  # c b a | a b c
        warped = _bilinear(padded, rows + down + margin, columns + right + margin)
    gap = corrupt(image, 'elastic_transform', severity, suite) + 0.5 - warped
    assert np.abs(gap).max() < 4
    assert np.abs(gap).mean() < 0.5
    assert np.abs(warped - image).mean() > 2  # or the gap would prove nothing


# All


@each_suite
@pytest.mark.parametrize('name', ALL)
def test_output_is_a_new_image_and_worse_with_severity(name: str, suite: str) -> None:
    image = _image(suite)
    before = image.copy()
    outputs = [corrupt(image, name, severity, suite) for severity in range(1, 6)]
    for out in outputs:
        assert (out.dtype, out.shape) == (np.uint8, image.shape)
        assert not np.shares_memory(out, image)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(corrupt(image, name, 1, suite), outputs[0])  # whatever was made before
    for level in (0, 255):  # no numbers to scale by
        assert corrupt(np.full_like(image, level), name, 5, suite).dtype == np.uint8
    errors = [np.square(out.astype(float) - image).mean() for out in outputs]
    assert min(errors) > 0
    if name in MONOTONE:
        assert errors[0] < errors[4]


def test_seeds_images_and_severities_have_noise_of_their_own() -> None:
    gray = np.full((32, 32, 3), 128, np.uint8)
    seeds: list[int | tuple[int, ...]] = [0, 1, (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    noises = [corrupt(gray, 'gaussian_noise', 3, seed=seed) for seed in seeds]
    assert len({noise.tobytes() for noise in noises}) == len(seeds)
    for seed in ([0, 1], np.array([0, 1]), (np.int64(0), 1)):  # the type does not matter
        np.testing.assert_array_equal(corrupt(gray, 'gaussian_noise', 3, seed=seed), noises[3])
    standardized = [
        (corrupt(gray, 'gaussian_noise', severity) / 255.0 - 0.5) / deviation
        for severity, (deviation,) in enumerate(DOCUMENTED['gaussian_noise']['cifar'], start=1)
    ]
    assert abs(np.corrcoef(standardized[3].ravel(), standardized[4].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'name': 'rain'}, ("'rain'", "'gaussian_noise'")),
        ({'suite': 'mnist'}, ("'mnist'", "['cifar', 'imagenet']")),
        *(({'severity': severity}, (f'severity={severity}', '[1, 2, 3, 4, 5]')) for severity in (0, 6, 2.0)),
        *(({'seed': seed}, (f'seed={seed}', 'non-negative integer')) for seed in (-1, (), (0, 1.5))),
        ({'image': np.zeros((32, 32, 3))}, ('float64 array of shape (32, 32, 3)', 'uint8 levels')),
        ({'image': np.zeros((3, 32, 32), np.uint8)}, ('shape (3, 32, 32)', '(32, 32, 3)')),
        ({'image': Image.new('RGB', (32, 32))}, ('is a Image', 'np.asarray')),
        ({'image': np.zeros((224, 224, 3), np.uint8)}, ('(224, 224, 3)', 'another suite')),
    ],
)
def test_bad_input(change: dict[str, Any], words: tuple[str, str]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words are looked for below
        corrupt(**{'image': _image('cifar'), 'name': 'contrast', 'severity': 1, **change})
    assert all(word in str(caught.value) for word in words), caught.value
