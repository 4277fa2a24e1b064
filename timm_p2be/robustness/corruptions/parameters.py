"""Severities 1 to 5 of every corruption, for 32x32 images (CIFAR-C) and for 224x224 ones (ImageNet-C).

The numbers are those of hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py and make_imagenet_c.py; a name here
is a keyword of the corruption's function. Lengths are in pixels; `deviation` and `alias` are standard deviations.
"""

from typing import Any


def _zooms(*ranges: tuple[int, float]) -> tuple[tuple[float, ...], ...]:
    """Return, for each (count, second), `count` zoom factors 1, `second`, ... as the scripts' np.arange does.

    The last bits count: 26 pixels times 1.25 are 32.5, rounded to 32, but np.arange has 1.2500000000000002 and makes
    33. How many factors there are is np.arange's doing too.
    """
    return tuple(tuple(1 + index * (second - 1) for index in range(count)) for count, second in ranges)


def _of(side: int, *parts: float) -> tuple[float, ...]:
    return tuple(side * part for part in parts)


# corruption -> keyword -> values of severities 1 to 5 of CIFAR-C, and of ImageNet-C
PARAMETERS: dict[str, dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]]] = {
    'gaussian_noise': {'deviation': ((0.04, 0.06, 0.08, 0.09, 0.1), (0.08, 0.12, 0.18, 0.26, 0.38))},
    'shot_noise': {'photons': ((500, 250, 100, 75, 50), (60, 25, 12, 5, 3))},
    'impulse_noise': {'amount': ((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27))},
    'defocus_blur': {
        'radius': ((0.3, 0.4, 0.5, 1, 1.5), (3, 4, 6, 8, 10)),
        'alias': ((0.4, 0.5, 0.6, 0.2, 0.1), (0.1, 0.5, 0.5, 0.5, 0.5)),
    },
    'glass_blur': {
        'deviation': ((0.05, 0.25, 0.4, 0.25, 0.4), (0.7, 0.9, 1, 1.1, 1.5)),
        'reach': ((1, 1, 1, 1, 1), (1, 2, 2, 3, 4)),
        'rounds': ((1, 1, 1, 2, 2), (2, 1, 3, 2, 2)),
    },
    'motion_blur': {
        'radius': ((6, 6, 6, 8, 9), (10, 15, 15, 15, 20)),
        'deviation': ((1, 1.5, 2, 2, 2.5), (3, 5, 8, 12, 15)),
    },
    'zoom_blur': {
        'factors': (
            _zooms((7, 1.01), (12, 1.01), (16, 1.01), (21, 1.01), (26, 1.01)),
            _zooms((12, 1.01), (16, 1.01), (11, 1.02), (13, 1.02), (11, 1.03)),
        )
    },
    'snow': {
        'mean': ((0.1, 0.1, 0.15, 0.25, 0.3), (0.1, 0.2, 0.55, 0.55, 0.55)),
        'deviation': ((0.2, 0.2, 0.3, 0.3, 0.3), (0.3, 0.3, 0.3, 0.3, 0.3)),
        'zoom': ((1, 1, 1.75, 2.25, 1.25), (3, 2, 4, 4.5, 2.5)),
        'threshold': ((0.6, 0.5, 0.55, 0.6, 0.65), (0.5, 0.5, 0.9, 0.85, 0.85)),
        'radius': ((8, 10, 10, 12, 14), (10, 12, 12, 12, 12)),
        'streak': ((3, 4, 4, 6, 12), (4, 4, 8, 8, 12)),
        'clarity': ((0.95, 0.9, 0.9, 0.85, 0.8), (0.8, 0.7, 0.7, 0.65, 0.55)),
    },
    'frost': {
        'image_weight': ((1, 1, 0.9, 0.85, 0.75), (1, 0.8, 0.7, 0.65, 0.6)),
        'frost_weight': ((0.2, 0.3, 0.4, 0.4, 0.45), (0.4, 0.6, 0.7, 0.7, 0.75)),
        'scale': ((0.2, 0.2, 0.2, 0.2, 0.2), (1, 1, 1, 1, 1)),
    },
    'fog': {
        'density': ((0.2, 0.5, 0.75, 1, 1.5), (1.5, 2, 2.5, 2.5, 3)),
        'decay': ((3, 3, 2.5, 2, 1.75), (2, 2, 1.7, 1.5, 1.4)),
    },
    'brightness': {'shift': ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5))},
    'contrast': {'factor': ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))},
    # multiples of the image side; those of ImageNet-C come from 244, a slip of its script
    'elastic_transform': {
        'amplitude': (_of(32, 0, 0.05, 0.08, 0.1, 0.1), _of(244, 2, 2, 0.05, 0.07, 0.12)),
        'deviation': (_of(32, 0, 0.2, 0.06, 0.04, 0.03), _of(244, 0.7, 0.08, 0.01, 0.01, 0.01)),
        'affine': (_of(32, 0.08, 0.07, 0.06, 0.05, 0.03), _of(244, 0.1, 0.2, 0.02, 0.02, 0.02)),
    },
    'pixelate': {'factor': ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25))},
    'jpeg_compression': {'quality': ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7))},
    'speckle_noise': {'deviation': ((0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6))},
    'gaussian_blur': {'deviation': ((0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6))},
    'spatter': {
        'mean': ((0.62, 0.65, 0.65, 0.65, 0.65), (0.65, 0.65, 0.65, 0.65, 0.67)),
        'deviation': ((0.1, 0.1, 0.3, 0.1, 0.1), (0.3, 0.3, 0.3, 0.3, 0.4)),
        'drop': ((0.7, 0.8, 1, 0.7, 0.5), (4, 3, 2, 1, 1)),
        'threshold': ((0.7, 0.7, 0.69, 0.69, 0.68), (0.69, 0.68, 0.68, 0.65, 0.65)),
        'strength': ((0.5, 0.5, 0.5, 0.6, 0.6), (0.6, 0.6, 0.5, 1.5, 1.5)),
        'mud': ((False, False, False, True, True), (False, False, False, True, True)),
    },
    'saturate': {
        'factor': ((0.3, 0.1, 1.5, 2, 2.5), (0.3, 0.1, 2, 5, 20)),
        'shift': ((0, 0, 0, 0.1, 0.2), (0, 0, 0, 0.1, 0.2)),
    },
}
