import os
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from test_operations import on_devices, to_batch

from timm_p2be.data.augmix import AugMix, Mixture, Step, mix
from timm_p2be.data.operations import OPERATIONS, Pixels

ORDER = ['autocontrast', 'equalize', 'posterize', 'rotate', 'solarize', 'shear_x', 'shear_y']
ORDER += ['translate_x', 'translate_y']


@pytest.fixture
def pixels() -> Pixels:
    ramp = np.add.outer(np.arange(32) * 3, np.arange(32) * 4)
    noise = np.random.default_rng(0).integers(0, 40, (32, 32, 3))
    return (np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=-1) % 216 + noise).astype(np.uint8)


@pytest.fixture(autouse=True)
def _restore_torch_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.manual_seed(1)


def _draws(count: int, **kwargs: float) -> list[Mixture]:
    generator = np.random.default_rng(0)
    augment = AugMix(**kwargs)  # type: ignore[arg-type]
    return [augment.draw(generator) for _ in range(count)]


def _by_hand(pixels: Pixels, seed: int, severity: float, width: int, depth: int) -> NDArray[np.float64]:
    """The unrounded mixture, replaying the documented order of draws in float64."""
    generator = np.random.default_rng(seed)
    w, m = generator.dirichlet([1.0] * width), generator.beta(1.0, 1.0)
    total = (1 - m) * pixels.astype(np.float64)
    uniforms = generator.random((width, 1 + 3 * (3 if depth == -1 else depth)))
    for i in range(width):
        chain = pixels
        for j in range(1 + int(3 * uniforms[i, 0]) if depth == -1 else depth):
            which, level, sign = uniforms[i, 1 + 3 * j : 4 + 3 * j]
            chain = OPERATIONS[ORDER[int(9 * which)]](chain, float(0.1 + level * (severity - 0.1)), bool(sign < 0.5))
        total += m * w[i] * chain
    return total


@pytest.mark.parametrize(('severity', 'width', 'depth'), [(3, 3, -1), (1, 3, -1), (10, 1, 2), (5, 4, 5)])
def test_equals_the_mixture_computed_by_hand(pixels: Pixels, severity: int, width: int, depth: int) -> None:
    errors = []
    for seed in range(30):
        torch.manual_seed(seed)
        out = AugMix(severity, width, depth)(pixels)
        exact = _by_hand(pixels, seed, severity, width, depth)
        errors.append(out - exact)
        assert np.abs(out - exact).max() <= 0.5 + 1e-4
    assert abs(np.mean(errors)) < 0.02  # truncation would give -0.5


@on_devices
@pytest.mark.parametrize('augment', [AugMix(), AugMix(10), AugMix(5, 4, 5), AugMix(1, 1, 1)], ids=repr)
def test_a_batch_equals_its_images_one_by_one(augment: AugMix, device: str) -> None:
    for seed, shape in enumerate([(32, 32, 3), (20, 47, 3), (17, 23), (1, 1, 3)]):
        generator = np.random.default_rng(seed)
        low, high = generator.integers(0, 100, 24), generator.integers(101, 257, 24)
        images = [generator.integers(*ends, shape, np.uint8) for ends in zip(low, high, strict=True)]
        torch.manual_seed(seed)
        got = augment(to_batch(images).to(device)).cpu()
        drawn = zip(*augment.draw_batch(np.random.default_rng(seed), 24), strict=True)
        expected = [mix(image, augment.mixture(*draws)) for image, draws in zip(images, drawn, strict=True)]
        assert torch.equal(got, to_batch(expected))


@on_devices
def test_a_batch_never_waits_for_its_device(device: str) -> None:
    images = torch.zeros(16, 3, 8, 8, dtype=torch.uint8, device=device)
    if device == 'cuda':
        torch.cuda.set_sync_debug_mode('error')
    try:
        with torch.autograd.profiler.profile() as profile:
            AugMix()(images)
    finally:
        if device == 'cuda':
            torch.cuda.set_sync_debug_mode('default')
    seen = {event.name.removeprefix('aten::') for event in profile.function_events}
    assert {'gather', 'index_select', 'index_copy_', 'scatter_add_'} <= seen
    assert not seen & {'_local_scalar_dense', 'nonzero', 'masked_select', 'index', 'index_put_', 'repeat_interleave'}


def test_rounds_half_up() -> None:
    """Solarizing 201 gives 54, halfway between them is 127.5."""
    halves = Mixture(np.array([0.5, 0.5], np.float32), [[Step('solarize', 3.0, False)]])
    assert mix(np.full((4, 4, 3), 201, np.uint8), halves)[0, 0].tolist() == [128, 128, 128]


def test_untouched_pixels_keep_their_level() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for mixture in _draws(500):
        np.testing.assert_array_equal(mix(levels, mixture._replace(chains=[[], [], []])), levels)


def test_steps_follow_the_distributions_of_the_paper() -> None:
    mixtures = _draws(6000)
    steps = [step for mixture in mixtures for chain in mixture.chains for step in chain]
    levels = np.array([step.level for step in steps])
    assert 0.1 <= levels.min() < 0.101
    assert 2.999 < levels.max() <= 3
    assert levels.mean() == pytest.approx(1.55, abs=0.02)
    counts = Counter(step.name for step in steps)
    assert set(counts) == set(ORDER)
    assert all(count / len(steps) == pytest.approx(1 / 9, abs=0.006) for count in counts.values())
    assert np.mean([step.negative for step in steps]) == pytest.approx(0.5, abs=0.01)
    depths = Counter(len(chain) for mixture in mixtures for chain in mixture.chains)
    assert set(depths) == {1, 2, 3}
    assert all(count / 18000 == pytest.approx(1 / 3, abs=0.015) for count in depths.values())
    levels_of_posterize = np.array([step.level for step in steps if step.name == 'posterize'])
    assert np.mean(levels_of_posterize < 2.5) == pytest.approx(0.827, abs=0.02)  # keeps 4 bits, else 3


@pytest.mark.parametrize('alpha', [1, 8])
def test_weights_follow_dirichlet_and_beta(alpha: int) -> None:
    weights, uniforms = AugMix(alpha=alpha).draw_batch(np.random.default_rng(0), 6000)
    assert (weights.dtype, weights.shape, uniforms.shape) == (np.float32, (6000, 4), (6000, 3, 10))
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    m = 1 - weights[:, 0]
    assert m.mean() == pytest.approx(1 / 2, abs=0.02)
    assert m.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)
    shares = weights[:, 1:] / m[:, None]
    np.testing.assert_allclose(shares.mean(axis=0), 1 / 3, atol=0.02)
    np.testing.assert_allclose(shares.var(axis=0), 2 / 9 / (3 * alpha + 1), rtol=0.08)


@pytest.mark.parametrize('shape', [(32, 32, 3), (32, 32), (32, 32, 1), (20, 45, 3), (1, 1, 3)])
def test_arrays_keep_shape_and_are_not_written_to(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    before = image.copy()
    augment = AugMix(severity=10)
    for _ in range(30):
        out = augment(image)
        assert out.shape == shape
        assert out.dtype == np.uint8
        assert not np.shares_memory(out, image)
    np.testing.assert_array_equal(image, before)
    if shape[2:] == (1,):
        np.testing.assert_array_equal(AugMix()(image)[..., 0], AugMix()(image[..., 0]))


@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_pil_images_and_arrays_give_the_same_pixels(pixels: Pixels, mode: str) -> None:
    image = Image.fromarray(pixels).convert(mode)
    from_image, from_array = AugMix(), AugMix()
    for _ in range(20):
        out = from_image(image)
        assert (type(out), out.mode, out.size) == (Image.Image, mode, (32, 32))
        np.testing.assert_array_equal(np.asarray(out), from_array(np.asarray(image)))


def test_the_torch_seed_decides(pixels: Pixels) -> None:
    augment = AugMix()
    torch.manual_seed(5)
    first = [augment(pixels) for _ in range(4)]
    torch.manual_seed(6)
    other = [augment(pixels) for _ in range(4)]
    torch.manual_seed(5)
    again = [augment(pixels) for _ in range(4)]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])
    np.testing.assert_array_equal([AugMix()(pixels)], first[:1])


def test_global_generators_are_left_alone(pixels: Pixels) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    AugMix()(pixels)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def test_a_forked_process_starts_its_own_stream(pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    augment = AugMix()
    first = augment(pixels)
    augment(pixels)
    child = os.getpid() + 1
    monkeypatch.setattr('timm_p2be.data.augmix.os.getpid', lambda: child)
    np.testing.assert_array_equal(augment(pixels), first)


@pytest.mark.parametrize(
    ('name', 'values'),
    [('severity', (0, -1, 10.5, np.nan)), ('width', (0,)), ('depth', (0, -2)), ('alpha', (0, np.inf))],
)
def test_bad_arguments(name: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f'{name}={value}; it must be'):
            AugMix(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ('image', 'words'),
    [
        (np.zeros((32, 32, 3), np.float32), 'float32 rounding'),
        (np.zeros((3, 32, 32), np.uint8), '3,.32,.32 AugMix.takes'),
        (np.zeros((32, 32, 4), np.uint8), '32,.32,.4'),
        (np.zeros((0, 32, 3), np.uint8), '0,.32,.3'),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), 'Tensor N,.C,.H,.W .None'),
        (torch.zeros(2, 3, 32, 32), 'float32 Tensor rounding'),
        (Image.new('RGBA', (8, 8)), 'RGBA convert'),
        (Image.new('P', (8, 8)), 'mode P'),
    ],
)
def test_bad_images(image: object, words: str) -> None:
    with pytest.raises(ValueError, match='.*'.join(words.split())):
        AugMix()(image)  # type: ignore[type-var]
