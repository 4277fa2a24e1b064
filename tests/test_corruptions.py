import colorsys
import importlib.util
import io
import math
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from timm_p2be.robustness.corruptions import CATEGORIES, CORRUPTIONS, EXTRA_CORRUPTIONS, SUITES, corrupt, weather
from timm_p2be.robustness.corruptions.blur import directed_blur, disk_kernel
from timm_p2be.robustness.corruptions.contact_sheet import contact_sheet
from timm_p2be.robustness.corruptions.parameters import PARAMETERS

Pixels = NDArray[np.uint8]

# docs/protocol.md, severities 1 to 5: a number each, or a row in the order of the function's keywords
EXPECTED = {
    'gaussian_noise': ([0.04, 0.06, 0.08, 0.09, 0.10], [0.08, 0.12, 0.18, 0.26, 0.38]),
    'shot_noise': ([500, 250, 100, 75, 50], [60, 25, 12, 5, 3]),
    'impulse_noise': ([0.01, 0.02, 0.03, 0.05, 0.07], [0.03, 0.06, 0.09, 0.17, 0.27]),
    'speckle_noise': ([0.06, 0.1, 0.12, 0.16, 0.2], [0.15, 0.2, 0.35, 0.45, 0.6]),
    'gaussian_blur': ([0.4, 0.6, 0.7, 0.8, 1], [1, 2, 3, 4, 6]),
    'defocus_blur': (
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    ),
    'glass_blur': (
        [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    ),
    'motion_blur': (
        [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    ),
    'snow': (
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
        [
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ],
    ),
    'frost': (
        [(1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)],
        [(1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)],
    ),
    'fog': (
        [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    ),
    'brightness': ([0.05, 0.1, 0.15, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5]),
    'spatter': (
        [
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ],
        [
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ],
    ),
    'contrast': ([0.75, 0.5, 0.4, 0.3, 0.15], [0.4, 0.3, 0.2, 0.1, 0.05]),
    'elastic_transform': (
        [(0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)],
        [(488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88)],
    ),
    'pixelate': ([0.95, 0.9, 0.85, 0.75, 0.65], [0.6, 0.5, 0.4, 0.3, 0.25]),
    'jpeg_compression': ([80, 65, 58, 50, 40], [25, 18, 15, 10, 7]),
    'saturate': (
        [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
        [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)],
    ),
}
SIDES = {'cifar': [30, 28, 27, 24, 20], 'imagenet': [134, 112, 89, 67, 56]}  # of pixelate's small image
ALL = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
# the others move pixels, draw photographs or change hue, and differ little or at random between two severities
MONOTONE = tuple(
    name for name in ALL if name not in ('glass_blur', 'elastic_transform', 'snow', 'frost', 'spatter', 'saturate')
)

each_suite = pytest.mark.parametrize('suite', list(SUITES))
each_severity = pytest.mark.parametrize('severity', [1, 2, 3, 4, 5])


def _expected(name: str, suite: str, severity: int) -> tuple[float, ...]:
    row = EXPECTED[name][list(SUITES).index(suite)][severity - 1]
    return row if isinstance(row, tuple) else (row,)


def _generator(name: str, severity: int, *seed: int) -> np.random.Generator:
    """The documented generator of one image."""
    return np.random.default_rng([zlib.crc32(name.encode()), severity, len(seed), *seed])


def _image(suite: str, seed: int = 0) -> Pixels:
    side = SUITES[suite]
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + generator.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


def _assert_truncated(got: Pixels, exact: NDArray[np.float64], lost: float = 0.2) -> None:
    """`got` is the integer part of `exact`, up to float error at whole numbers, and not its nearest integer: more than
    a share `lost` of its values has lost over a half."""
    fraction = exact - got
    assert fraction.min() > -1e-6
    assert fraction.max() < 1 + 1e-6
    assert (fraction > 0.51).mean() > lost


def _assert_equal_but_for_rounding(got: Pixels, exact: NDArray[np.floating], allowed: float = 1e-3) -> None:
    """`got` is the integer part of `exact`; where `exact` is a whole number up to float error, one less will do."""
    gap = got - np.floor(exact)
    assert np.abs(gap).max() <= 1
    assert (gap != 0).mean() <= allowed


def test_names_are_in_the_order_of_the_benchmark() -> None:
    noise = ('gaussian_noise', 'shot_noise', 'impulse_noise')
    blur = ('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur')
    weather = ('snow', 'frost', 'fog', 'brightness')
    digital = ('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression')
    assert CORRUPTIONS == noise + blur + weather + digital
    assert CATEGORIES == {'noise': noise, 'blur': blur, 'weather': weather, 'digital': digital}
    assert EXTRA_CORRUPTIONS == ('speckle_noise', 'gaussian_blur', 'spatter', 'saturate')


def test_every_corruption_has_parameters_for_five_severities() -> None:
    assert set(PARAMETERS) == set(ALL) == {*EXPECTED, 'zoom_blur'}
    for name, suites in EXPECTED.items():
        for suite, rows in zip(SUITES, suites, strict=True):
            columns = list(PARAMETERS[name][suite].values())
            expected = np.array(rows, dtype=float).reshape(5, -1)
            np.testing.assert_allclose(
                np.array(columns, dtype=float).T, expected, rtol=1e-12, err_msg=f'{name} {suite}'
            )


# Noise


@each_suite
@each_severity
def test_gaussian_noise(suite: str, severity: int) -> None:
    """The documented generator, replayed; and noise of the right size, whatever the generator."""
    image = _image(suite)
    (deviation,) = _expected('gaussian_noise', suite, severity)
    noise = _generator('gaussian_noise', severity, 7, 3).standard_normal(image.shape) * deviation
    got = corrupt(image, 'gaussian_noise', severity, suite, seed=(7, 3))
    _assert_truncated(got, np.clip(image / 255 + noise, 0, 1) * 255)
    gray = np.full_like(image, 128)
    spread = (corrupt(gray, 'gaussian_noise', severity, suite) / 255.0 - 128 / 255).clip(-0.5, 0.5)
    if deviation <= 0.12:  # beyond, clipping at black and white narrows it
        assert spread.std() == pytest.approx(deviation, rel=0.05)
        assert spread.mean() == pytest.approx(-0.5 / 255, abs=0.08 * deviation)


@each_suite
@each_severity
def test_shot_noise(suite: str, severity: int) -> None:
    """A Poisson count has its mean as variance; only whole counts occur, and black stays black."""
    (photons,) = _expected('shot_noise', suite, severity)
    side = SUITES[suite]
    image = np.full((side, side, 3), 64, np.uint8)
    image[:, : side // 2] = 0
    got = corrupt(image, 'shot_noise', severity, suite)
    assert not got[:, : side // 2].any()
    lit = got[:, side // 2 :]
    counts = np.unique(np.ceil(lit / 255 * photons - 1e-9))
    levels = np.minimum(counts / photons, 1) * 255
    assert np.isin(np.unique(lit), [*np.floor(levels + 1e-9), *np.floor(levels - 1e-9)]).all()
    mean = 64 / 255
    if photons >= 12:  # below, white is too near and clips
        x = (lit + 0.5) / 255  # what truncation takes, on average
        assert x.mean() == pytest.approx(mean, rel=0.04)
        assert x.var() == pytest.approx(mean / photons + 1 / 12 / 255**2, rel=0.12)


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


@each_suite
@each_severity
def test_speckle_noise(suite: str, severity: int) -> None:
    image = _image(suite)
    (deviation,) = _expected('speckle_noise', suite, severity)
    noise = _generator('speckle_noise', severity, 0).standard_normal(image.shape) * deviation
    got = corrupt(image, 'speckle_noise', severity, suite)
    _assert_truncated(got, np.clip(image / 255 * (1 + noise), 0, 1) * 255)
    assert not corrupt(np.zeros_like(image), 'speckle_noise', severity, suite).any()


# Blur


def _smoothed(
    x: NDArray[np.floating], deviation: float, truncate: float = 4, mode: str = 'edge'
) -> NDArray[np.floating]:
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


@each_suite
@each_severity
def test_gaussian_blur(suite: str, severity: int) -> None:
    image = _image(suite)
    (deviation,) = _expected('gaussian_blur', suite, severity)
    _assert_equal_but_for_rounding(
        corrupt(image, 'gaussian_blur', severity, suite), _smoothed(image.astype(float), deviation)
    )


@pytest.mark.parametrize(('severity', 'center'), [(1, 0.845), (2, 0.619), (3, 0.445)])
def test_mild_defocus_at_32_pixels_is_a_gaussian_of_3x3(severity: int, center: float) -> None:
    radius, alias = _expected('defocus_blur', 'cifar', severity)
    kernel = disk_kernel(radius, alias)
    line = np.exp(-0.5 * (np.arange(-1, 2) / alias) ** 2)
    line /= line.sum()
    np.testing.assert_allclose(kernel[7:10, 7:10], np.outer(line, line), atol=1e-6)
    assert kernel[8, 8] == pytest.approx(center, abs=5e-4)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert kernel.shape == (17, 17)


def test_strong_defocus_at_32_pixels_is_a_plus_and_a_box() -> None:
    plus = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5
    np.testing.assert_allclose(disk_kernel(1, 0.2)[7:10, 7:10], plus, atol=1e-5)
    np.testing.assert_allclose(disk_kernel(1.5, 0.1)[7:10, 7:10], 1 / 9, atol=1e-6)


def test_defocus_kernels_at_224_pixels() -> None:
    """29 pixels have a distance of up to 3; the disks that touch the edge of their array sum to more than 1."""
    kernel = disk_kernel(3, 0.1)
    assert np.count_nonzero(kernel > 1e-6) == 29
    assert kernel.max() == pytest.approx(1 / 29)
    sums = [float(disk_kernel(radius, 0.5).sum()) for radius in (4, 6, 8, 10)]
    assert sums == pytest.approx([1, 1, 1.013, 1.011], abs=6e-4)
    assert disk_kernel(10, 0.5).shape == (21, 21)


@each_suite
@each_severity
def test_defocus_blur_mirrors_at_the_edges(suite: str, severity: int) -> None:
    image = _image(suite)
    kernel = disk_kernel(*_expected('defocus_blur', suite, severity)).astype(float)
    got = corrupt(image, 'defocus_blur', severity, suite)
    exact = ndimage.correlate(image[..., 1].astype(float), kernel, mode='mirror')
    _assert_equal_but_for_rounding(got[..., 1], exact.clip(0, 255))


@pytest.mark.parametrize(('suite', 'severity'), [('cifar', s) for s in (1, 2, 3, 4, 5)] + [('imagenet', 2)])
def test_glass_blur_copies_one_way(suite: str, severity: int) -> None:
    """From the bottom right corner on, each pixel becomes a copy of a neighbor, which itself stays."""
    image = _image(suite)
    side = SUITES[suite]
    deviation, reach, rounds = _expected('glass_blur', suite, severity)
    reach, rounds = int(reach), int(rounds)
    pixels = np.floor(_smoothed(image.astype(float), deviation) + 1e-9)
    before = pixels.copy()
    generator = _generator('glass_blur', severity, 0)
    for _ in range(rounds):
        for row in range(side - reach, reach, -1):
            for column in range(side - reach, reach, -1):
                right, down = generator.integers(-reach, reach, 2)
                pixels[row, column] = pixels[row + down, column + right]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) < 0.95 * len(np.unique(before.reshape(-1, 3), axis=0))
    got = corrupt(image, 'glass_blur', severity, suite)
    _assert_equal_but_for_rounding(got, _smoothed(pixels, deviation), allowed=0.002)


def test_glass_blur_leaves_the_first_rows_and_columns() -> None:
    """Targets are rows and columns reach + 1 to side - reach; at .05 pixels the Gaussian does nothing."""
    image = _image('cifar')
    got = corrupt(image, 'glass_blur', 1)
    assert np.abs(got[:2].astype(int) - image[:2]).max() <= 1  # 255 x is cut off twice
    assert np.abs(got[:, :2].astype(int) - image[:, :2]).max() <= 1
    assert np.abs(got[31].astype(int) - image[31]).max() > 9


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


def test_directed_blur_is_one_sided() -> None:
    """A dot leaves a trace with half a Gaussian as profile, to the left at 0 degrees and diagonally at 45."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[16, 16] = 255
    weights = np.exp(-0.5 * (np.arange(13) / 2) ** 2)
    profile = np.floor(255 * weights / weights.sum() + 0.5 / 257)
    trace = directed_blur(image, 6, 2, 0)
    np.testing.assert_array_equal(trace[16, 16:3:-1, 1], profile)
    assert int(trace.sum()) == 3 * profile.sum()
    diagonal = directed_blur(image, 6, 2, 45)
    assert np.argwhere(diagonal[..., 1]).tolist() == [[i, i] for i in range(12, 17)]
    assert profile.sum() - 5 < int(diagonal[..., 1].sum()) <= 255


@each_suite
@each_severity
def test_motion_blur(suite: str, severity: int) -> None:
    """Every pixel averages its line, read at the nearest pixels and held at the edge."""
    image = _image(suite)
    side = SUITES[suite]
    radius, deviation = _expected('motion_blur', suite, severity)
    angle = math.radians(_generator('motion_blur', severity, 5).uniform(-45, 45))
    total, weight_sum = np.zeros((side, side, 3)), 0.0
    for tap in range(2 * int(radius) + 1):
        weight = math.exp(-((tap / deviation) ** 2) / 2)
        rows = np.clip(np.arange(side) + math.ceil(tap * math.sin(angle) - 0.5), 0, side - 1)
        columns = np.clip(np.arange(side) + math.ceil(tap * math.cos(angle) - 0.5), 0, side - 1)
        total += weight * image[np.ix_(rows, columns)]
        weight_sum += weight
    got = corrupt(image, 'motion_blur', severity, suite, seed=5)
    _assert_equal_but_for_rounding(got, total / weight_sum + 0.5 / 257)


# factors as np.arange makes them, whose end effects are part of the recipe: (stop, step), count, last
ZOOMS = {
    'cifar': [
        ((1.06, 0.01), 7, 1.06),
        ((1.11, 0.01), 12, 1.11),
        ((1.16, 0.01), 16, 1.15),
        ((1.21, 0.01), 21, 1.2),
        ((1.26, 0.01), 26, 1.25),
    ],
    'imagenet': [
        ((1.11, 0.01), 12, 1.11),
        ((1.16, 0.01), 16, 1.15),
        ((1.21, 0.02), 11, 1.2),
        ((1.26, 0.02), 13, 1.24),
        ((1.31, 0.03), 11, 1.3),
    ],
}


@each_suite
@each_severity
def test_zoom_factors(suite: str, severity: int) -> None:
    (stop, step), count, last = ZOOMS[suite][severity - 1]
    factors = PARAMETERS['zoom_blur'][suite]['factors'][severity - 1]
    assert len(factors) == count
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(last)
    arange = np.arange(1, stop, step)[:count]
    side = SUITES[suite]
    for factor, theirs in zip(factors, arange, strict=False):  # newer numpy could end elsewhere
        crop = math.ceil(side / theirs)
        assert (math.ceil(side / factor), round(crop * factor)) == (crop, round(crop * float(theirs)))


@pytest.mark.parametrize(
    ('suite', 'severity'), [('cifar', s) for s in (1, 2, 3, 4, 5)] + [('imagenet', 3), ('imagenet', 4)]
)
def test_zoom_blur(suite: str, severity: int) -> None:
    """Bit for bit the mean over scipy's magnifications, trimmed at the center, and the image itself once more."""
    image = _image(suite)
    side = SUITES[suite]
    x = (image / 255.0).astype(np.float32)
    factors = PARAMETERS['zoom_blur'][suite]['factors'][severity - 1]
    total = np.zeros_like(x)
    for factor in factors:
        crop = math.ceil(side / factor)
        offset = (side - crop) // 2
        zoomed = ndimage.zoom(x[offset : offset + crop, offset : offset + crop], (factor, factor, 1), order=1)
        trim = (len(zoomed) - side) // 2
        total += zoomed[trim : trim + side, trim : trim + side]
    expected = (np.clip((x + total) / (len(factors) + 1), 0, 1) * 255).astype(np.uint8)
    np.testing.assert_array_equal(corrupt(image, 'zoom_blur', severity, suite), expected)


# Weather


@each_suite
@each_severity
def test_snow_falls_on_black(suite: str, severity: int) -> None:
    """Black is lifted to half the whitening; flakes are added on top and once more upside down."""
    mean, deviation, zoom, threshold, radius, streak, clarity = _expected('snow', suite, severity)
    side = SUITES[suite]
    black = np.zeros((side, side, 3), np.uint8)
    got = corrupt(black, 'snow', severity, suite)
    assert (got == got[..., :1]).all()
    np.testing.assert_array_equal(got, got[::-1, ::-1])
    floor = (1 - clarity) * 0.5 * 255
    assert got.min() >= math.floor(floor - 1e-3)
    generator = _generator('snow', severity, 0)
    layer = generator.normal(mean, deviation, (side, side))
    crop = math.ceil(side / zoom)
    offset = (side - crop) // 2
    layer = ndimage.zoom(layer[offset : offset + crop, offset : offset + crop], zoom, order=1)
    trim = (len(layer) - side) // 2
    layer = layer[trim : trim + side, trim : trim + side]
    flakes = np.where(layer < threshold, 0, np.floor(255 * layer.clip(0, 1)))
    fallen = directed_blur(flakes.astype(np.uint8), int(radius), streak, generator.uniform(-135, -45)).astype(float)
    exact = np.minimum(floor + fallen + fallen[::-1, ::-1], 255)
    _assert_equal_but_for_rounding(got[..., 0], exact, allowed=0.01)
    assert fallen.max() > 0


def test_snow_whitens_photographs_by_their_gray() -> None:
    """Without flakes: b x + (1 - b) max(x, 1.5 gray + .5), gray being .299 R + .587 G + .114 B."""
    image = _image('cifar')
    numbers = {key: values[4] for key, values in PARAMETERS['snow']['cifar'].items()}
    got = weather.snow(image, np.random.default_rng(0), **{**numbers, 'mean': -9.0})
    gray = image @ np.array([0.299, 0.587, 0.114])
    exact = 0.8 * image + 0.2 * np.maximum(image, 1.5 * gray[..., None] + 127.5)
    np.testing.assert_allclose(got, exact.clip(0, 255), atol=1e-3)


def test_frost_has_five_pictures_of_these_sizes() -> None:
    names = [f'frost{number}.{ending}' for number, ending in zip(range(1, 6), ['png'] * 3 + ['jpg'] * 2, strict=True)]
    full = [weather.frost_picture(name, 1).shape for name in names]
    small = [weather.frost_picture(name, 0.2).shape for name in names]
    assert full == [(600, 900, 3), (315, 560, 3), (315, 560, 3), (350, 527, 3), (495, 660, 3)]
    assert small == [(120, 180, 3), (63, 112, 3), (63, 112, 3), (70, 105, 3), (99, 132, 3)]
    np.testing.assert_array_equal(weather.frost_picture(names[1], 1), weather.frost_picture(names[2], 1))


def test_frost_draws_each_of_the_five_and_never_the_sixth(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    load = weather.frost_picture
    monkeypatch.setattr(weather, 'frost_picture', lambda name, scale: asked.append(name) or load(name, scale))
    black = np.zeros((32, 32, 3), np.uint8)
    for seed in range(300):
        corrupt(black, 'frost', 1, seed=seed)
    counts = [asked.count(name) for name in ('frost1.png', 'frost2.png', 'frost3.png', 'frost4.jpg', 'frost5.jpg')]
    assert sum(counts) == 300
    assert min(counts) > 30


@each_suite
@each_severity
def test_frost(suite: str, severity: int) -> None:
    image = _image(suite)
    side = SUITES[suite]
    image_weight, frost_weight, scale = _expected('frost', suite, severity)
    for seed in range(3):
        generator = _generator('frost', severity, seed)
        number = generator.integers(5) + 1
        picture = weather.frost_picture(f'frost{number}.{"png" if number < 4 else "jpg"}', scale)
        top = generator.integers(0, picture.shape[0] - side)
        left = generator.integers(0, picture.shape[1] - side)
        exact = image_weight * image + frost_weight * picture[top : top + side, left : left + side]
        _assert_truncated(corrupt(image, 'frost', severity, suite, seed), exact.clip(0, 255))


def test_frost_pictures_are_rgb_and_resized_linearly() -> None:
    file = importlib.util.find_spec('imagecorruptions')
    assert file is not None
    assert file.origin is not None
    exact = np.asarray(Image.open(Path(file.origin).with_name('frost') / 'frost1.png').convert('RGB')).astype(float)
    np.testing.assert_array_equal(weather.frost_picture('frost1.png', 1), exact)
    center = exact[2::5, 2::5]  # a fifth of the size: pixel i lies on pixel 5 i + 2
    assert np.abs(weather.frost_picture('frost1.png', 0.2) - center).max() <= 1


def test_frost_without_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    weather.frost_picture.cache_clear()
    with pytest.raises(ModuleNotFoundError, match='pip install imagecorruptions-imaug'):
        corrupt(_image('cifar'), 'frost', 1)


def test_frost_finds_its_pictures_without_importing_their_package() -> None:
    """That would load numba and compile."""
    weather.frost_picture.cache_clear()
    corrupt(_image('cifar'), 'frost', 1)
    assert 'imagecorruptions' not in sys.modules


def _plasma(side: int, decay: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Diamond-square on a torus, point by point."""
    cloud = np.zeros((side, side))
    step, wibble = side, 100.0
    while step >= 2:
        half = step // 2
        grid = range(0, side, step)
        shape = (len(grid), len(grid))

        def fill(rows: range, columns: range, neighbors: list[tuple[int, int]], noise: NDArray[np.float64]) -> None:
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


@pytest.mark.parametrize(
    ('suite', 'severity'), [('cifar', s) for s in (1, 2, 3, 4, 5)] + [('imagenet', 1), ('imagenet', 5)]
)
def test_fog(suite: str, severity: int) -> None:
    image = _image(suite)
    density, decay = _expected('fog', suite, severity)
    cloud = _plasma(32 if suite == 'cifar' else 256, decay, _generator('fog', severity, 0))
    side = SUITES[suite]
    brightest = image.max() / 255
    exact = (image / 255 + density * cloud[:side, :side, None]) * brightest / (brightest + density) * 255
    _assert_truncated(corrupt(image, 'fog', severity, suite), exact.clip(0, 255))


@each_suite
@each_severity
def test_brightness(suite: str, severity: int) -> None:
    image = _image(suite)
    got = corrupt(image, 'brightness', severity, suite)
    rows = slice(None, None, SUITES[suite] // 32)
    (shift,) = _expected('brightness', suite, severity)
    exact = []
    for red, green, blue in (image[rows, rows].reshape(-1, 3) / 255).tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        exact.append(colorsys.hsv_to_rgb(hue, saturation, min(value + shift, 1)))
    _assert_truncated(got[rows, rows].reshape(-1, 3), np.array(exact) * 255)


@each_suite
@pytest.mark.parametrize('severity', [1, 2, 3])
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
    _assert_equal_but_for_rounding(corrupt(image, 'spatter', severity, suite), exact, allowed=0.03)


def test_water_without_a_drop_changes_nothing() -> None:
    """The original divides by zero there."""
    image = _image('cifar')
    numbers = {key: values[0] for key, values in PARAMETERS['spatter']['cifar'].items()}
    got = weather.spatter(image, np.random.default_rng(0), **{**numbers, 'mean': 0.0})
    np.testing.assert_array_equal(got, image)


# Digital


@each_suite
@each_severity
def test_contrast(suite: str, severity: int) -> None:
    image = _image(suite)
    (factor,) = _expected('contrast', suite, severity)
    means = np.array([image[..., channel].sum() / SUITES[suite] ** 2 for channel in range(3)])
    _assert_truncated(corrupt(image, 'contrast', severity, suite), image * factor + means * (1 - factor))


def _bilinear(
    image: NDArray[np.float64], rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.float64]:
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
    coarse = np.random.default_rng(1).integers(
        0, 256, (5, 5, 3), dtype=np.uint8
    )  # smooth: OpenCV interpolates coarsely
    image = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    amplitude, deviation, affine = _expected('elastic_transform', suite, severity)
    generator = _generator('elastic_transform', severity, 0)
    points = np.array(
        [[26, 26], [26, 6], [6, 6]] if suite == 'cifar' else [[186, 186], [186, 38], [38, 38]], dtype=float
    )
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


@each_suite
@each_severity
def test_pixelate(suite: str, severity: int) -> None:
    image = _image(suite)
    side, small = SUITES[suite], SIDES[suite][severity - 1]
    down = Image.fromarray(image).resize((small, small), Image.Resampling.BOX)
    expected = np.asarray(down.resize((side, side), Image.Resampling.BOX))
    np.testing.assert_array_equal(corrupt(image, 'pixelate', severity, suite), expected)


def test_pixelate_by_a_quarter_leaves_the_means_of_4x4_blocks() -> None:
    image = _image('imagenet')
    blocks = corrupt(image, 'pixelate', 5, 'imagenet').reshape(56, 4, 56, 4, 3).swapaxes(1, 2)
    assert (blocks == blocks[:, :, :1, :1]).all()
    means = image.reshape(56, 4, 56, 4, 3).mean(axis=(1, 3))
    assert np.abs(blocks[:, :, 0, 0] - means).max() <= 1


@each_suite
@each_severity
def test_jpeg_compression(suite: str, severity: int) -> None:
    image = _image(suite)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'JPEG', quality=int(*_expected('jpeg_compression', suite, severity)))
    expected = np.asarray(Image.open(buffer))
    np.testing.assert_array_equal(corrupt(image, 'jpeg_compression', severity, suite), expected)
    assert not np.array_equal(expected, image)


@each_suite
@each_severity
def test_saturate(suite: str, severity: int) -> None:
    image = _image(suite)
    rows = slice(None, None, SUITES[suite] // 32)
    got = corrupt(image, 'saturate', severity, suite)[rows, rows]
    factor, shift = _expected('saturate', suite, severity)
    exact = []
    for red, green, blue in (image[rows, rows].reshape(-1, 3) / 255).tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        exact.append(colorsys.hsv_to_rgb(hue, min(saturation * factor + shift, 1), value))
    _assert_truncated(got.reshape(-1, 3), np.array(exact) * 255, lost=0.1)  # a third of the levels stays whole


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
    errors = [np.square(out.astype(float) - image).mean() for out in outputs]
    assert min(errors) > 0
    if name in MONOTONE:
        assert errors[0] < errors[4]


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('level', [0, 255])
def test_black_and_white_images_are_no_exception(name: str, level: int) -> None:
    for severity in range(1, 6):
        out = corrupt(np.full((32, 32, 3), level, np.uint8), name, severity)
        assert (out.dtype, out.shape) == (np.uint8, (32, 32, 3))


@pytest.mark.parametrize('name', ALL)
def test_order_and_subset_do_not_matter(name: str) -> None:
    images = [_image('cifar', seed) for seed in range(6)]
    forward = [corrupt(image, name, 2, seed=(0, index)) for index, image in enumerate(images)]
    for index in (4, 1):
        np.testing.assert_array_equal(corrupt(images[index], name, 2, seed=(0, index)), forward[index])


def test_seeds_images_and_severities_have_noise_of_their_own() -> None:
    gray = np.full((32, 32, 3), 128, np.uint8)
    seeds: list[int | tuple[int, ...]] = [0, 1, (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    noises = [corrupt(gray, 'gaussian_noise', 3, seed=seed) for seed in seeds]
    assert len({noise.tobytes() for noise in noises}) == len(seeds)
    standardized = [
        (corrupt(gray, 'gaussian_noise', severity) / 255.0 - 0.5) / deviation
        for severity, deviation in enumerate(EXPECTED['gaussian_noise'][0], start=1)
    ]
    assert abs(np.corrcoef(standardized[3].ravel(), standardized[4].ravel())[0, 1]) < 0.1


def test_seed_types_are_interchangeable() -> None:
    image = _image('cifar')
    expected = corrupt(image, 'gaussian_noise', 1, seed=(3, 4))
    for seed in ([3, 4], np.array([3, 4]), (np.int64(3), 4)):
        np.testing.assert_array_equal(corrupt(image, 'gaussian_noise', 1, seed=seed), expected)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'name': 'rain'}, r"Unknown corruption 'rain'; choose one of \['gaussian_noise'"),
        ({'suite': 'mnist'}, r"Unknown suite 'mnist'; choose one of \['cifar', 'imagenet'\]"),
        ({'severity': 0}, r'severity=0; it must be one of \[1, 2, 3, 4, 5\]'),
        ({'severity': 6}, 'severity=6'),
        ({'severity': 2.0}, r'severity=2\.0'),
        ({'seed': -1}, r'seed=-1; it must be a non-negative integer'),
        ({'seed': ()}, r'seed=\(\)'),
        ({'seed': (0, 1.5)}, r'seed=\(0, 1\.5\)'),
        ({'image': np.zeros((32, 32, 3))}, r'float64 array of shape \(32, 32, 3\)'),
        ({'image': np.zeros((3, 32, 32), np.uint8)}, r'shape \(3, 32, 32\); corrupt takes uint8 levels'),
        ({'image': np.zeros((32, 32), np.uint8)}, r"shape \(32, 32\).*convert\('RGB'\)"),
        ({'image': Image.new('RGB', (32, 32))}, 'is a Image; corrupt takes'),
        ({'image': np.zeros((224, 224, 3), np.uint8)}, r"224x224; the suite 'cifar'.*Use suite='imagenet'"),
        ({'image': np.zeros((64, 32, 3), np.uint8)}, r'64x32; .* Resize or crop the image to 32x32 first'),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {'image': _image('cifar'), 'name': 'contrast', 'severity': 1, **change}
    with pytest.raises(ValueError, match=message):
        corrupt(**arguments)  # type: ignore[arg-type]


def test_photographs_suffer_gradually(p2be_data: Path) -> None:
    """Real images: severity 1 costs little, severity 5 more, under each corruption of the CIFAR suite."""
    parquet = pytest.importorskip('pyarrow.parquet')
    rows = parquet.read_table(min(p2be_data.glob('cifar10/test-*.parquet')))['img'][:20].to_pylist()
    images = [np.asarray(Image.open(io.BytesIO(row['bytes'])).convert('RGB')) for row in rows]
    for name in ALL:
        errors = [
            np.mean([np.abs(corrupt(image, name, severity, seed=(0, i)) - image.astype(float)).mean()
                     for i, image in enumerate(images)])
            for severity in range(1, 6)
        ]  # fmt: skip
        assert 0.3 < min(errors), name
        assert max(errors) < 100, name
        if name in MONOTONE:
            assert errors == sorted(errors), name
            assert errors[0] * 1.3 < errors[4], name


def test_contact_sheet_shows_every_severity() -> None:
    image = _image('cifar')
    sheet = np.asarray(contact_sheet(image, names=('contrast', 'pixelate'), scale=1, seed=4))
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (32, 32), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    for name in ('contrast', 'pixelate'):
        places = []
        for picture in (image, *(corrupt(image, name, severity, seed=4) for severity in range(1, 6))):
            found = np.argwhere((windows == picture).all(axis=(2, 3, 4)))
            assert len(found) == (2 if picture is image else 1)  # the clean image begins each row
            places.append(found[-1 if name == 'pixelate' else 0].tolist())
        assert len({row for row, _ in places}) == 1
        assert places == sorted(places)
    assert contact_sheet(image).height > 19 * 64
    assert contact_sheet(_image('imagenet'), 'imagenet', names=('fog',)).width > 6 * 112


def test_contact_sheet_bad_input() -> None:
    with pytest.raises(ValueError, match='no names of corruptions; choose from'):
        contact_sheet(_image('cifar'), names=())
    with pytest.raises(ValueError, match='scale=0; it must be positive'):
        contact_sheet(_image('cifar'), scale=0)
    with pytest.raises(ValueError, match='Unknown corruption'):
        contact_sheet(_image('cifar'), names=('rain',))
