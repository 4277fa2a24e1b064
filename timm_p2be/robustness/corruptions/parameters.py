"""Severities 1 to 5 of every corruption, for 32x32 images (CIFAR-C) and for 224x224 ones (ImageNet-C).

The numbers are those of hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py and make_imagenet_c.py; a name here
is a keyword of the corruption's function. Lengths are in pixels; `deviation` and `alias` are standard deviations.
"""

from typing import Any

# corruption -> suite -> keyword -> values of severities 1 to 5
Table = dict[str, dict[str, dict[str, tuple[Any, ...]]]]


def _zooms(count: int, second: float) -> tuple[float, ...]:
    """Return `count` zoom factors 1, `second`, ... as the scripts' np.arange does, to the last bit.

    Those bits count: 26 pixels times 1.25 are 32.5, rounded to 32, but np.arange has 1.2500000000000002 and makes 33.
    How many factors there are is np.arange's doing too.
    """
    return tuple(1 + index * (second - 1) for index in range(count))


NOISE: Table = {
    'gaussian_noise': {
        'cifar': {'deviation': (0.04, 0.06, 0.08, 0.09, 0.1)},
        'imagenet': {'deviation': (0.08, 0.12, 0.18, 0.26, 0.38)},
    },
    'shot_noise': {
        'cifar': {'photons': (500, 250, 100, 75, 50)},
        'imagenet': {'photons': (60, 25, 12, 5, 3)},
    },
    'impulse_noise': {
        'cifar': {'amount': (0.01, 0.02, 0.03, 0.05, 0.07)},
        'imagenet': {'amount': (0.03, 0.06, 0.09, 0.17, 0.27)},
    },
    'speckle_noise': {
        'cifar': {'deviation': (0.06, 0.1, 0.12, 0.16, 0.2)},
        'imagenet': {'deviation': (0.15, 0.2, 0.35, 0.45, 0.6)},
    },
}

BLUR: Table = {
    'defocus_blur': {
        'cifar': {'radius': (0.3, 0.4, 0.5, 1, 1.5), 'alias': (0.4, 0.5, 0.6, 0.2, 0.1)},
        'imagenet': {'radius': (3, 4, 6, 8, 10), 'alias': (0.1, 0.5, 0.5, 0.5, 0.5)},
    },
    'glass_blur': {
        'cifar': {'deviation': (0.05, 0.25, 0.4, 0.25, 0.4), 'reach': (1, 1, 1, 1, 1), 'rounds': (1, 1, 1, 2, 2)},
        'imagenet': {'deviation': (0.7, 0.9, 1, 1.1, 1.5), 'reach': (1, 2, 2, 3, 4), 'rounds': (2, 1, 3, 2, 2)},
    },
    'motion_blur': {
        'cifar': {'radius': (6, 6, 6, 8, 9), 'deviation': (1, 1.5, 2, 2, 2.5)},
        'imagenet': {'radius': (10, 15, 15, 15, 20), 'deviation': (3, 5, 8, 12, 15)},
    },
    'zoom_blur': {
        'cifar': {'factors': (_zooms(7, 1.01), _zooms(12, 1.01), _zooms(16, 1.01), _zooms(21, 1.01), _zooms(26, 1.01))},
        'imagenet': {
            'factors': (_zooms(12, 1.01), _zooms(16, 1.01), _zooms(11, 1.02), _zooms(13, 1.02), _zooms(11, 1.03))
        },
    },
    'gaussian_blur': {
        'cifar': {'deviation': (0.4, 0.6, 0.7, 0.8, 1)},
        'imagenet': {'deviation': (1, 2, 3, 4, 6)},
    },
}

WEATHER: Table = {
    'snow': {
        'cifar': {
            'mean': (0.1, 0.1, 0.15, 0.25, 0.3),
            'deviation': (0.2, 0.2, 0.3, 0.3, 0.3),
            'zoom': (1, 1, 1.75, 2.25, 1.25),
            'threshold': (0.6, 0.5, 0.55, 0.6, 0.65),
            'radius': (8, 10, 10, 12, 14),
            'streak': (3, 4, 4, 6, 12),
            'clarity': (0.95, 0.9, 0.9, 0.85, 0.8),
        },
        'imagenet': {
            'mean': (0.1, 0.2, 0.55, 0.55, 0.55),
            'deviation': (0.3, 0.3, 0.3, 0.3, 0.3),
            'zoom': (3, 2, 4, 4.5, 2.5),
            'threshold': (0.5, 0.5, 0.9, 0.85, 0.85),
            'radius': (10, 12, 12, 12, 12),
            'streak': (4, 4, 8, 8, 12),
            'clarity': (0.8, 0.7, 0.7, 0.65, 0.55),
        },
    },
    'frost': {
        'cifar': {
            'image_weight': (1, 1, 0.9, 0.85, 0.75),
            'frost_weight': (0.2, 0.3, 0.4, 0.4, 0.45),
            'scale': (0.2, 0.2, 0.2, 0.2, 0.2),
        },
        'imagenet': {
            'image_weight': (1, 0.8, 0.7, 0.65, 0.6),
            'frost_weight': (0.4, 0.6, 0.7, 0.7, 0.75),
            'scale': (1, 1, 1, 1, 1),
        },
    },
    'fog': {
        'cifar': {'density': (0.2, 0.5, 0.75, 1, 1.5), 'decay': (3, 3, 2.5, 2, 1.75)},
        'imagenet': {'density': (1.5, 2, 2.5, 2.5, 3), 'decay': (2, 2, 1.7, 1.5, 1.4)},
    },
    'brightness': {
        'cifar': {'shift': (0.05, 0.1, 0.15, 0.2, 0.3)},
        'imagenet': {'shift': (0.1, 0.2, 0.3, 0.4, 0.5)},
    },
    'spatter': {
        'cifar': {
            'mean': (0.62, 0.65, 0.65, 0.65, 0.65),
            'deviation': (0.1, 0.1, 0.3, 0.1, 0.1),
            'drop': (0.7, 0.8, 1, 0.7, 0.5),
            'threshold': (0.7, 0.7, 0.69, 0.69, 0.68),
            'strength': (0.5, 0.5, 0.5, 0.6, 0.6),
            'mud': (False, False, False, True, True),
        },
        'imagenet': {
            'mean': (0.65, 0.65, 0.65, 0.65, 0.67),
            'deviation': (0.3, 0.3, 0.3, 0.3, 0.4),
            'drop': (4, 3, 2, 1, 1),
            'threshold': (0.69, 0.68, 0.68, 0.65, 0.65),
            'strength': (0.6, 0.6, 0.5, 1.5, 1.5),
            'mud': (False, False, False, True, True),
        },
    },
}

DIGITAL: Table = {
    'contrast': {
        'cifar': {'factor': (0.75, 0.5, 0.4, 0.3, 0.15)},
        'imagenet': {'factor': (0.4, 0.3, 0.2, 0.1, 0.05)},
    },
    'elastic_transform': {
        # multiples of the image side; those of ImageNet-C come from 244, a slip of its script
        'cifar': {
            'amplitude': tuple(32 * part for part in (0, 0.05, 0.08, 0.1, 0.1)),
            'deviation': tuple(32 * part for part in (0, 0.2, 0.06, 0.04, 0.03)),
            'affine': tuple(32 * part for part in (0.08, 0.07, 0.06, 0.05, 0.03)),
        },
        'imagenet': {
            'amplitude': tuple(244 * part for part in (2, 2, 0.05, 0.07, 0.12)),
            'deviation': tuple(244 * part for part in (0.7, 0.08, 0.01, 0.01, 0.01)),
            'affine': tuple(244 * part for part in (0.1, 0.2, 0.02, 0.02, 0.02)),
        },
    },
    'pixelate': {
        'cifar': {'factor': (0.95, 0.9, 0.85, 0.75, 0.65)},
        'imagenet': {'factor': (0.6, 0.5, 0.4, 0.3, 0.25)},
    },
    'jpeg_compression': {
        'cifar': {'quality': (80, 65, 58, 50, 40)},
        'imagenet': {'quality': (25, 18, 15, 10, 7)},
    },
    'saturate': {
        'cifar': {'factor': (0.3, 0.1, 1.5, 2, 2.5), 'shift': (0, 0, 0, 0.1, 0.2)},
        'imagenet': {'factor': (0.3, 0.1, 2, 5, 20), 'shift': (0, 0, 0, 0.1, 0.2)},
    },
}

PARAMETERS: Table = {**NOISE, **BLUR, **WEATHER, **DIGITAL}
