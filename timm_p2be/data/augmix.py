"""AugMix: mixtures of short chains of image operations, exactly as in the paper's data pipeline.

Hendrycks et al. (arXiv 1912.02781), with the nine operations and ranges of google-research/augmix, augmentations.py;
the four that overlap with the corruption benchmarks are left out. Details are in docs/protocol.md.
"""

import math
import os
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from timm_p2be.data.batch_augmix import Groups, mix_batch, plan, to_device
from timm_p2be.data.operations import MAX_LEVEL, MIN_LEVEL, OPERATIONS, RANDOM_DEPTH, Pixels

ImageT = TypeVar('ImageT', Image.Image, NDArray[np.uint8], torch.Tensor)
_NAMES = tuple(OPERATIONS)


class Step(NamedTuple):
    """One operation of a chain: its name, its level (0.1 to the severity) and whether its sign is negative."""

    name: str
    level: float
    negative: bool


class Mixture(NamedTuple):
    """Everything random about one augmented image: float32 weights (clean image, then chains) and the chains."""

    weights: NDArray[np.float32]
    chains: list[list[Step]]


class AugMix:
    """Mix an image, or each of a batch, with `width` randomly altered copies of itself.

    out = (1 - m) image + m sum_i w_i chain_i(image), w ~ Dirichlet(alpha), m ~ Beta(alpha, alpha), summed in float32
    on the 0..255 scale and rounded half up. Each operation draws its own level from U(0.1, severity). Areas moved in
    from outside are black. Randomness comes from `numpy.random.default_rng(torch.initial_seed())`, built anew in each
    process and whenever that seed has changed: workers differ, and runs with equal seeds and worker counts are equal.
    A uint8 tensor (N, C, H, W) is a batch: it is mixed on its device, which is never waited for, in the pixels that the
    images one by one would have by the same draws.

    Args:
        severity: upper end of the level, in (0, 10]; the paper has 3 for 32x32 images and 1 for ImageNet.
        width: number of chains, at least 1.
        depth: operations in each chain, at least 1, or -1 to draw 1, 2 or 3 for each chain.
        alpha: parameter of the Dirichlet and Beta distributions, above 0.

    Example:
        >>> AugMix(severity=1)(Image.new('RGB', (32, 32))).size
        (32, 32)
        >>> AugMix()(torch.zeros(128, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([128, 3, 32, 32])
    """

    def __init__(self, severity: float = 3, width: int = 3, depth: int = -1, alpha: float = 1.0) -> None:
        if not 0 < severity <= MAX_LEVEL:
            raise ValueError(f'Got severity={severity!r}; it must be above 0 and at most 10 (3 for 32x32 images).')
        if width < 1:
            raise ValueError(f'Got width={width!r}; it must be at least 1 (the paper uses 3).')
        if depth < 1 and depth != -1:
            raise ValueError(f'Got depth={depth!r}; it must be at least 1, or -1 to draw 1 to 3 for each chain.')
        if not (alpha > 0 and math.isfinite(alpha)):
            raise ValueError(f'Got alpha={alpha!r}; it must be a finite number above 0 (the paper uses 1).')
        self.severity = severity
        self.width = width
        self.depth = depth
        self.alpha = alpha
        self._deepest = RANDOM_DEPTH if depth == -1 else depth
        self._generator: np.random.Generator | None = None
        self._source: tuple[int, int] | None = None  # process and torch seed the generator belongs to

    def __repr__(self) -> str:
        return f'AugMix(severity={self.severity}, width={self.width}, depth={self.depth}, alpha={self.alpha})'

    def __call__(self, image: ImageT) -> ImageT:
        """Return an augmented copy of a PIL image (RGB or L), uint8 array (H, W[, 1 or 3]) or tensor (N, C, H, W)."""
        if isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 4 and image.numel():
            groups, drawn = self.prepare_batch(self._current_generator(), len(image), image.shape[2:])
            return mix_batch(image, groups, *to_device(drawn, image.device))
        if isinstance(image, Image.Image):
            if image.mode not in ('RGB', 'L'):
                raise ValueError(f"Got a PIL image of mode {image.mode!r}; AugMix takes RGB and L: convert('RGB').")
            return Image.fromarray(mix(np.asarray(image), self.draw(self._current_generator())))
        shape: tuple[int, ...] = getattr(image, 'shape', ())
        is_image = 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)))
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or not is_image:
            got = f'{getattr(image, "dtype", "")} {type(image).__name__} of shape {shape}'
            raise ValueError(
                f'Got a {got}; AugMix takes a PIL image, a uint8 array of shape (H, W, 3), (H, W, 1) or (H, W), or a '
                'uint8 tensor of shape (N, C, H, W). Convert float images by rounding 255 x, a single tensor by [None].'
            )
        pixels = np.ascontiguousarray(image)
        flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
        return mix(flat, self.draw(self._current_generator())).reshape(image.shape)

    def draw(self, generator: np.random.Generator) -> Mixture:
        """Return the random choices for one image, in this order: w, m, then for each chain its depth and operations.

        Each operation takes three uniforms (which, level, sign); depth=-1 draws three and drops the surplus.
        """
        weights, uniforms = self.draw_batch(generator, 1)
        return self.mixture(weights[0], uniforms[0])

    def mixture(self, weights: NDArray[np.float32], uniforms: NDArray[np.float64]) -> Mixture:
        """Return the mixture that uniforms (width, 1 + 3 depth) stand for."""
        firsts, steps = uniforms[:, 0].tolist(), uniforms[:, 1:].reshape(self.width, -1, 3).tolist()
        depths = [1 + int(first * RANDOM_DEPTH) if self.depth == -1 else self.depth for first in firsts]
        chains = [[self._step(*drawn) for drawn in chain[:depth]] for chain, depth in zip(steps, depths, strict=True)]
        return Mixture(weights, chains)

    def draw_batch(self, generator: np.random.Generator, count: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return weights (N, 1 + width) and uniforms (N, width, 1 + 3 depth), from which `mixture` takes an image's."""
        weights = generator.dirichlet([self.alpha] * self.width, count)
        mixing = generator.beta(self.alpha, self.alpha, (count, 1))
        combined = np.concatenate([1 - mixing, mixing * weights], axis=1).astype(np.float32)
        return combined, generator.random((count, self.width, 1 + 3 * self._deepest))

    def prepare_batch(
        self, generator: np.random.Generator, count: int, size: Sequence[int]
    ) -> tuple[Groups, tuple[NDArray[np.float32], NDArray[np.float64]]]:
        """Draw for N images of `size` (height, width): groups, weights and rows, as `mix_batch` takes them."""
        weights, uniforms = self.draw_batch(generator, count)
        groups, rows = plan(uniforms, self.severity, self.depth == -1, size)
        return groups, (weights, rows)

    def _step(self, which: float, level: float, sign: float) -> Step:
        name = _NAMES[int(which * len(_NAMES))]
        return Step(name, MIN_LEVEL + level * (self.severity - MIN_LEVEL), sign < 0.5)

    def _current_generator(self) -> np.random.Generator:
        source = (os.getpid(), torch.initial_seed())
        if self._generator is None or source != self._source:
            self._generator = np.random.default_rng(source[1])
            self._source = source
        return self._generator


def mix(pixels: Pixels, mixture: Mixture) -> Pixels:
    """Return the mixture of a contiguous uint8 image (H, W, 3) or (H, W) and its chains, rounded half up."""
    weights = mixture.weights
    total = np.multiply(pixels, weights[0], dtype=np.float32)
    for weight, chain in zip(weights[1:], mixture.chains, strict=True):
        altered = pixels
        for name, level, negative in chain:
            altered = OPERATIONS[name](altered, level, negative)
        total += np.multiply(altered, weight, dtype=np.float32)
    total += np.float32(0.5)
    return total.astype(np.uint8)  # values are positive, so truncation is the floor
