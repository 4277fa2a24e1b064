"""Digital: contrast, elastic deformation, pixelation and JPEG, and the saturation of the extra corruptions."""

import io
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from timm_p2be.extras import require
from timm_p2be.robustness.images import Pixels

cv2 = require('cv2', extra='robustness')
ndimage = require('scipy.ndimage', extra='robustness')
hsv2rgb = require('skimage.color', extra='robustness').hsv2rgb
rgb2hsv = require('skimage.color', extra='robustness').rgb2hsv


def contrast(image: Pixels, generator: Generator, *, factor: float) -> NDArray[Any]:
    """Shrink the distance from each channel's mean over the image."""
    x = image / 255.0
    means = x.mean(axis=(0, 1), keepdims=True)
    return np.clip((x - means) * factor + means, 0, 1) * 255


def elastic_transform(
    image: Pixels, generator: Generator, *, amplitude: float, deviation: float, affine: float
) -> NDArray[Any]:
    """Warp by three points moved by up to `affine`, then shift every pixel by smoothed noise; edges are mirrored."""
    x = np.asarray(image, dtype=np.float32) / np.float32(255)
    side = len(x)
    near, far = side // 2 - side // 3, side // 2 + side // 3
    before = np.array([[far, far], [far, near], [near, near]], dtype=np.float32)
    after = before + generator.uniform(-affine, affine, before.shape).astype(np.float32)
    warp = cv2.getAffineTransform(before, after)
    x = np.asarray(cv2.warpAffine(x, warp, (side, side), borderMode=cv2.BORDER_REFLECT_101))
    noise = [generator.uniform(-1, 1, x.shape[:2]) for _ in range(2)]
    if amplitude == 0:
        return np.clip(x, 0, 1) * 255
    right, down = (
        (ndimage.gaussian_filter(part, deviation, mode='reflect', truncate=3) * amplitude).astype(np.float32)
        for part in noise
    )
    places = np.arange(side)[:, None] + down, np.arange(side) + right
    channels = [ndimage.map_coordinates(x[..., c], places, order=1, mode='reflect') for c in range(3)]
    return np.clip(np.stack(channels, axis=-1), 0, 1) * 255


def pixelate(image: Pixels, generator: Generator, *, factor: float) -> NDArray[Any]:
    """Shrink by averaging over boxes and enlarge again the same way."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((int(width * factor), int(height * factor)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(image: Pixels, generator: Generator, *, quality: int) -> NDArray[Any]:
    """Compress as JPEG and decode."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format='JPEG', quality=quality)
    with Image.open(buffer) as reloaded:
        return np.asarray(reloaded)


def saturate(image: Pixels, generator: Generator, *, factor: float, shift: float) -> NDArray[Any]:
    """Scale the saturation of HSV by `factor` and raise it by `shift`."""
    hsv = rgb2hsv(image / 255.0)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + shift, 0, 1)
    return np.clip(hsv2rgb(hsv), 0, 1) * 255
