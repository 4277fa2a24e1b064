"""Weather: snow, frost, fog and brightness, and the spatter of the extra corruptions."""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from timm_p2be.extras import MissingExtra, require
from timm_p2be.robustness.corruptions.blur import directed_blur, gaussian_filter, magnified
from timm_p2be.robustness.images import Pixels

cv2 = require('cv2', extra='robustness')
hsv2rgb = require('skimage.color', extra='robustness').hsv2rgb
rgb2hsv = require('skimage.color', extra='robustness').rgb2hsv

WATER = np.array([175, 238, 238]) / 255  # RGB
MUD = np.array([63, 42, 20]) / 255
# A sixth picture exists; the scripts never draw it.
FROST_PICTURES = ('frost1.png', 'frost2.png', 'frost3.png', 'frost4.jpg', 'frost5.jpg')


def snow(
    image: Pixels,
    generator: Generator,
    *,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: int,
    streak: float,
    clarity: float,
) -> NDArray[Any]:
    """Whiten the image (the more, the less `clarity`) and add flakes twice, once turned by 180 degrees.

    Flakes are noise above a threshold, magnified by `zoom` and smeared downwards (`radius`, `streak`).
    """
    x = np.asarray(image, dtype=np.float32) / np.float32(255)
    flakes = magnified(generator.normal(size=(*x.shape[:2], 1), loc=mean, scale=deviation), zoom)[..., 0]
    flakes[flakes < threshold] = 0
    levels = (np.clip(flakes, 0, 1) * 255).astype(np.uint8)
    fallen = directed_blur(levels, radius, streak, angle=generator.uniform(-135, -45))[..., None] / 255.0
    gray = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None]
    whitened = clarity * x + (1 - clarity) * np.maximum(x, gray * 1.5 + 0.5)
    return np.clip(whitened + fallen + np.rot90(fallen, k=2), 0, 1) * 255


def frost(
    image: Pixels, generator: Generator, *, image_weight: float, frost_weight: float, scale: float
) -> NDArray[Any]:
    """Add a random crop of one of five photographs of frost."""
    picture = frost_picture(FROST_PICTURES[generator.integers(len(FROST_PICTURES))], scale)
    height, width = image.shape[:2]
    top = generator.integers(0, picture.shape[0] - height)
    left = generator.integers(0, picture.shape[1] - width)
    crop = picture[top : top + height, left : left + width]
    return np.clip(image_weight * image + frost_weight * crop, 0, 255)


@functools.cache
def frost_picture(name: str, scale: float) -> Pixels:
    """Return a photograph of the benchmark, RGB (H, W, 3), read-only, resized linearly by `scale`."""
    package = importlib.util.find_spec('imagecorruptions')  # found, not imported: that would load numba
    if package is None or package.origin is None:
        raise MissingExtra(
            "The corruption 'frost' adds photographs of the package imagecorruptions-imaug, which is not installed; it "
            "comes with the extra [robustness]: pip install 'timm-p2be[robustness]'"
        )
    picture = cv2.imread(str(Path(package.origin).with_name('frost') / name))
    assert picture is not None, f'the package at {package.origin} has it'
    if scale != 1:
        picture = cv2.resize(picture, (0, 0), fx=scale, fy=scale)
    rgb = np.ascontiguousarray(picture[..., ::-1], dtype=np.uint8)
    rgb.flags.writeable = False
    return rgb


def fog(image: Pixels, generator: Generator, *, density: float, decay: float) -> NDArray[Any]:
    """Add a fractal cloud to x in [0, 1] and scale the sum back to the brightest level."""
    x = image / 255.0
    height, width = x.shape[:2]
    brightest = x.max()
    cloud = plasma(1 << (max(height, width) - 1).bit_length(), decay, generator)[:height, :width, None]
    return np.clip((x + density * cloud) * brightest / (brightest + density), 0, 1) * 255


def plasma(side: int, decay: float, generator: Generator) -> NDArray[np.float64]:
    """Return a cloud that spans [0, 1], made by the diamond-square algorithm on a torus; `side` is a power of two.

    The noise is w * U(-w, w); w is 100 at first and is divided by `decay` from one scale to the next.
    """
    cloud = np.zeros((side, side))
    wibble = 100.0
    step = side

    def mean_of(four: NDArray[np.float64]) -> NDArray[np.float64]:
        return four / 4 + wibble * generator.uniform(-wibble, wibble, four.shape)

    while step >= 2:
        half = step // 2
        corners = cloud[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        cloud[half::step, half::step] = mean_of(pairs + np.roll(pairs, -1, axis=1))
        centers = cloud[half::step, half::step]
        below, beside = centers + np.roll(centers, 1, axis=0), corners + np.roll(corners, -1, axis=1)
        cloud[::step, half::step] = mean_of(below + beside)
        below, beside = corners + np.roll(corners, -1, axis=0), centers + np.roll(centers, 1, axis=1)
        cloud[half::step, ::step] = mean_of(beside + below)
        step = half
        wibble /= decay
    cloud -= cloud.min()
    return cloud / cloud.max()


def brightness(image: Pixels, generator: Generator, *, shift: float) -> NDArray[Any]:
    """Raise the value of HSV by `shift`."""
    hsv = rgb2hsv(image / 255.0)
    hsv[..., 2] = np.clip(hsv[..., 2] + shift, 0, 1)
    return np.clip(hsv2rgb(hsv), 0, 1) * 255


def spatter(
    image: Pixels,
    generator: Generator,
    *,
    mean: float,
    deviation: float,
    drop: float,
    threshold: float,
    strength: float,
    mud: bool,
) -> NDArray[Any]:
    """Put drops on the lens: noise, smoothed by a Gaussian of deviation `drop`, above a threshold.

    Water is added to the image, `strength` is the opacity of its thickest drop. Mud hides it, `strength` is the
    deviation of the Gaussian that rounds it off.
    """
    x = np.asarray(image, dtype=np.float32) / np.float32(255)
    liquid = gaussian_filter(generator.normal(size=x.shape[:2], loc=mean, scale=deviation), drop)
    liquid[liquid < threshold] = 0
    if mud:
        cover = gaussian_filter((liquid > threshold).astype(np.float32), strength)[..., None]
        cover[cover < 0.8] = 0
        return np.clip(x * (1 - cover) + MUD.astype(np.float32) * cover, 0, 1) * 255
    thickness = _thickness((liquid * 255).astype(np.uint8))
    most = thickness.max()
    if most == 0:  # no drop at all; the scripts would divide by zero and return black
        return image
    opacity = (thickness / most * np.float32(strength))[..., None]
    return np.clip(x + opacity * WATER.astype(np.float32), 0, 1) * 255


def _thickness(liquid: Pixels) -> NDArray[np.float32]:
    """Return how thick drops of water look: their distance from edges, in relief, times the liquid; float32 (H, W)."""
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    near = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    relief = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float32)
    lit = cv2.filter2D(cv2.equalizeHist(near), cv2.CV_8U, relief)
    return np.multiply(liquid, cv2.blur(lit, (3, 3)), dtype=np.float32)
