import colorsys
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from timm_p2be.robustness.corruptions import CORRUPTIONS, SUITES, corrupt

Pixels = NDArray[np.uint8]

# docs/protocol.md, severities 1 to 5; pixelate as the side of the small image
DEVIATIONS = {'cifar': [0.04, 0.06, 0.08, 0.09, 0.10], 'imagenet': [0.08, 0.12, 0.18, 0.26, 0.38]}
SHIFTS = {'cifar': [0.05, 0.1, 0.15, 0.2, 0.3], 'imagenet': [0.1, 0.2, 0.3, 0.4, 0.5]}
FACTORS = {'cifar': [0.75, 0.5, 0.4, 0.3, 0.15], 'imagenet': [0.4, 0.3, 0.2, 0.1, 0.05]}
SIDES = {'cifar': [30, 28, 27, 24, 20], 'imagenet': [134, 112, 89, 67, 56]}
QUALITIES = {'cifar': [80, 65, 58, 50, 40], 'imagenet': [25, 18, 15, 10, 7]}

each_suite = pytest.mark.parametrize('suite', list(SUITES))
each_severity = pytest.mark.parametrize('severity', [1, 2, 3, 4, 5])


def _image(suite: str, seed: int = 0) -> Pixels:
    side = SUITES[suite]
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + generator.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


def _assert_truncated(got: Pixels, exact: NDArray[np.float64]) -> None:
    """`got` is the integer part of `exact`, up to float error at whole numbers, and not its nearest integer."""
    lost = exact - got
    assert lost.min() > -1e-6
    assert lost.max() < 1 + 1e-6
    assert (lost > 0.51).mean() > 0.2


def test_names_are_in_the_order_of_the_benchmark() -> None:
    assert CORRUPTIONS == ('gaussian_noise', 'brightness', 'contrast', 'pixelate', 'jpeg_compression')


@each_suite
@each_severity
def test_gaussian_noise(suite: str, severity: int) -> None:
    """The documented generator, replayed; and noise of the right size, whatever the generator."""
    image = _image(suite)
    deviation = DEVIATIONS[suite][severity - 1]
    entropy = [zlib.crc32(b'gaussian_noise'), severity, 2, 7, 3]
    noise = np.random.default_rng(entropy).standard_normal(image.shape) * deviation
    got = corrupt(image, 'gaussian_noise', severity, suite, seed=(7, 3))
    _assert_truncated(got, np.clip(image / 255 + noise, 0, 1) * 255)
    grey = np.full_like(image, 128)
    spread = (corrupt(grey, 'gaussian_noise', severity, suite) / 255.0 - 128 / 255).clip(-0.5, 0.5)
    if deviation <= 0.12:  # beyond, clipping at black and white narrows it
        assert spread.std() == pytest.approx(deviation, rel=0.05)
        assert spread.mean() == pytest.approx(-0.5 / 255, abs=0.08 * deviation)


@each_suite
@each_severity
def test_brightness(suite: str, severity: int) -> None:
    image = _image(suite)
    got = corrupt(image, 'brightness', severity, suite)
    rows = slice(None, None, SUITES[suite] // 32)
    exact = []
    for red, green, blue in (image[rows, rows].reshape(-1, 3) / 255).tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        exact.append(colorsys.hsv_to_rgb(hue, saturation, min(value + SHIFTS[suite][severity - 1], 1)))
    _assert_truncated(got[rows, rows].reshape(-1, 3), np.array(exact) * 255)


@each_suite
@each_severity
def test_contrast(suite: str, severity: int) -> None:
    image = _image(suite)
    factor = FACTORS[suite][severity - 1]
    means = np.array([image[..., channel].sum() / SUITES[suite] ** 2 for channel in range(3)])
    _assert_truncated(corrupt(image, 'contrast', severity, suite), image * factor + means * (1 - factor))


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
    Image.fromarray(image).save(buffer, 'JPEG', quality=QUALITIES[suite][severity - 1])
    expected = np.asarray(Image.open(buffer))
    np.testing.assert_array_equal(corrupt(image, 'jpeg_compression', severity, suite), expected)
    assert not np.array_equal(expected, image)


@each_suite
@pytest.mark.parametrize('name', CORRUPTIONS)
def test_output_is_a_new_image_and_worse_with_severity(name: str, suite: str) -> None:
    image = _image(suite)
    before = image.copy()
    outputs = [corrupt(image, name, severity, suite) for severity in range(1, 6)]
    for out in outputs:
        assert (out.dtype, out.shape) == (np.uint8, image.shape)
        assert not np.shares_memory(out, image)
    np.testing.assert_array_equal(image, before)
    errors = [np.square(out.astype(float) - image).mean() for out in outputs]
    assert 0 < errors[0] < errors[4]


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_order_and_subset_do_not_matter(name: str) -> None:
    images = [_image('cifar', seed) for seed in range(6)]
    forward = [corrupt(image, name, 2, seed=(0, index)) for index, image in enumerate(images)]
    for index in (4, 1):
        np.testing.assert_array_equal(corrupt(images[index], name, 2, seed=(0, index)), forward[index])


def test_seeds_images_and_severities_have_noise_of_their_own() -> None:
    grey = np.full((32, 32, 3), 128, np.uint8)
    seeds: list[int | tuple[int, ...]] = [0, 1, (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    noises = [corrupt(grey, 'gaussian_noise', 3, seed=seed) for seed in seeds]
    assert len({noise.tobytes() for noise in noises}) == len(seeds)
    standardised = [
        (corrupt(grey, 'gaussian_noise', severity) / 255.0 - 0.5) / deviation
        for severity, deviation in enumerate(DEVIATIONS['cifar'], start=1)
    ]
    assert abs(np.corrcoef(standardised[3].ravel(), standardised[4].ravel())[0, 1]) < 0.1


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
    rows = parquet.read_table(min(p2be_data.glob('cifar10/test-*.parquet')))['img'][:40].to_pylist()
    images = [np.asarray(Image.open(io.BytesIO(row['bytes'])).convert('RGB')) for row in rows]
    for name in CORRUPTIONS:
        errors = [
            np.mean([np.abs(corrupt(image, name, severity, seed=(0, i)) - image.astype(float)).mean()
                     for i, image in enumerate(images)])
            for severity in range(1, 6)
        ]  # fmt: skip
        assert errors == sorted(errors), name
        assert 0.5 < errors[0] < 20, name
        assert errors[0] * 1.3 < errors[4] < 90, name
