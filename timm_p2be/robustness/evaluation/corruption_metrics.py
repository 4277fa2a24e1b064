"""Figures of the corruption benchmarks: mean corruption error, mCE relative to AlexNet, calibration error.

CE_c = sum over s of E(s, c) / sum over s of E_AlexNet(s, c), and mCE is its mean over the 15 corruptions (Hendrycks &
Dietterich, arXiv 1903.12261). CIFAR-C is reported unnormalized (hendrycks/robustness, issue 28), so that figure is
always given, and mCE for ImageNet-C only. All figures are fractions: an mCE of 1 is AlexNet's, which papers print as
100.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES

# AlexNet on ImageNet-C, mean over severities: google-research/augmix, imagenet.py; hendrycks/robustness, issue 10
ALEXNET_ERRORS = {
    'gaussian_noise': 0.886428,
    'shot_noise': 0.894468,
    'impulse_noise': 0.922640,
    'defocus_blur': 0.819880,
    'glass_blur': 0.826268,
    'motion_blur': 0.785948,
    'zoom_blur': 0.798360,
    'snow': 0.866816,
    'frost': 0.826572,
    'fog': 0.819324,
    'brightness': 0.564592,
    'contrast': 0.853204,
    'elastic_transform': 0.646056,
    'pixelate': 0.717840,
    'jpeg_compression': 0.606500,
}
BINS = 15

Errors = Mapping[str, Mapping[int, float]]  # corruption -> severity -> error, a fraction


def summarize(errors: Errors, suite: str = 'imagenet') -> dict[str, Any]:
    """Return the figures of one model, JSON values only.

    The extra corruptions enter none of the means. mCE exists only for 'imagenet', whose images AlexNet's errors are
    of, over all 15 corruptions at all 5 severities.

    Returns:
        `corruptions` (name -> mean over severities), `mean_corruption_error` (None if no corruption counts) and
        `mean_over` (the names in it), `mce_alexnet`, `ce` (name -> CE of those with all severities).
    """
    means = {name: sum(levels.values()) / len(levels) for name, levels in errors.items()}
    counted = [name for name in means if name not in EXTRA_CORRUPTIONS]
    complete = {name for name in means if set(SEVERITIES) <= set(errors[name])}
    relative = [name for name in CORRUPTIONS if name in complete and suite == 'imagenet']
    ce = {name: means[name] / ALEXNET_ERRORS[name] for name in relative}
    return {
        'corruptions': means,
        'mean_corruption_error': sum(means[name] for name in counted) / len(counted) if counted else None,
        'mean_over': counted,
        'mce_alexnet': sum(ce.values()) / len(ce) if len(ce) == len(CORRUPTIONS) else None,
        'ce': ce,
    }


def calibration_gaps(confidences: NDArray[np.floating[Any]], correct: NDArray[np.bool_]) -> list[float]:
    """Return, per confidence bin, the sum of (correct - confidence) over its examples.

    The bins of the largest probabilities are (0, 1/15], (1/15, 2/15], ... (Guo et al., arXiv 1706.04599); the expected
    calibration error is the sum of the gaps' absolute values over the number of examples.
    """
    bins = np.clip(np.ceil(confidences.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidences.astype(np.float64), minlength=BINS)
    return [round(float(gap), 6) for gap in gaps]
