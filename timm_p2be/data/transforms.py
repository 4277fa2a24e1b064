"""Transforms for timm's datasets: the crop of the 32x32 recipes, and several views of each image."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import Compose, RandomCrop, RandomHorizontalFlip

ImageTransform = Callable[[Image.Image], Image.Image]


def zero_padded_crop(size: int | tuple[int, int], padding: int = 4, hflip: float = 0.5) -> Compose:
    """Return the transform of the 32x32 recipes: a random flip, then a random crop of the image padded with black.

    The order is that of google-research/augmix, cifar.py. timm's own `train_crop_mode='rkrc'` pads with the mean.
    `size` (of a square, or height and width) and `padding` (on each side) are in pixels, `hflip` is a probability.

    Example:
        >>> zero_padded_crop(32)(Image.new('RGB', (32, 32))).size
        (32, 32)
    """
    if padding < 0:
        raise ValueError(f'Got padding={padding!r}; it must be 0 or more pixels, 4 for CIFAR.')
    if not 0 <= hflip <= 1:
        raise ValueError(f'Got hflip={hflip!r}; it is a probability, from 0 to 1.')
    return Compose([RandomHorizontalFlip(hflip), RandomCrop(size, padding=padding)])


class MultiView:
    """Return a clean view and `num_views - 1` independently augmented views of each image.

    A transform like any other, so it works for streamed timm datasets too. Assign it to `dataset.transform` after
    `create_loader` has set its own. The collate function of timm's loaders (prefetcher on, the default) turns the
    tuples into one batch (num_views * B, C, H, W), all first views first, and repeats the targets alike.

    Args:
        primary: PIL image to PIL image; its result (one crop and flip, say) is shared by all views.
        augment: PIL image to PIL image; called once for each view but the first.
        num_views: views of each image, at least 1; the paper's losses take 3.

    Example:
        >>> views = MultiView(zero_padded_crop(32), lambda image: image)(Image.new('RGB', (32, 32)))
        >>> [view.shape for view in views]
        [(3, 32, 32), (3, 32, 32), (3, 32, 32)]
    """

    def __init__(self, primary: ImageTransform, augment: ImageTransform, num_views: int = 3) -> None:
        if num_views < 1:
            raise ValueError(f'Got num_views={num_views!r}; it must be at least 1 (3: a clean and two AugMix views).')
        self.primary = primary
        self.augment = augment
        self.num_views = num_views

    def __repr__(self) -> str:
        return f'MultiView(primary={self.primary}, augment={self.augment}, num_views={self.num_views})'

    def __call__(self, image: Image.Image) -> tuple[NDArray[np.uint8], ...]:
        """Return the views of a PIL image of mode RGB or L as `num_views` uint8 arrays (C, H, W), C being 3 or 1."""
        clean = self.primary(image)
        views = [clean, *(self.augment(clean) for _ in range(self.num_views - 1))]
        return tuple(to_planes(view) for view in views)


def to_planes(image: Image.Image) -> NDArray[np.uint8]:
    """Return a PIL image of mode RGB or L as an array (C, H, W) of its own."""
    if not isinstance(image, Image.Image) or image.mode not in ('RGB', 'L'):
        got = f'a PIL image of mode {image.mode!r}' if isinstance(image, Image.Image) else type(image).__name__
        raise ValueError(
            f'Got {got} as a view; primary and augment must return PIL images of mode RGB or L. Leave out ToTensor and '
            "normalization (the loader's part), and read the data with input_img_mode='RGB'."
        )
    pixels = np.asarray(image)
    # a copy: PIL's own buffer is read-only, of which torch warns
    return np.array(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), order='C')
