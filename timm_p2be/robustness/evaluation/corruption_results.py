"""The result file of a corruption benchmark, results.json."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timm_p2be.checkpoints import weights_sha256
from timm_p2be.robustness.evaluation.corruption_metrics import calibration_gaps, expected_calibration_error, summarize
from timm_p2be.robustness.evaluation.results import Bits, ResultFile, pack_bits
from timm_p2be.robustness.pixel_model import PixelModel

CLEAN = 'clean'  # where a corruption is named: none


class CorruptionResults(ResultFile):
    """What several models made of the same images; all methods that add to it bring the summary up to date."""

    kind = 'corruptions'

    def is_done(self, name: str, severity: int) -> bool:
        """Return whether all models have figures of one set."""
        results = self.content['results']
        if name == CLEAN:
            return bool(self.content['clean'])
        return bool(results) and all(str(severity) in model.get(name, {}) for model in results.values())

    def add(self, name: str, severity: int, figures: Mapping[str, Any]) -> None:
        """Add the figures of one set, model by model."""
        content, config = self.content, self.content['config']
        for model, found in figures.items():
            if name == CLEAN:
                content['clean'][model] = found
            else:
                content['results'].setdefault(model, {}).setdefault(name, {})[str(severity)] = found
        for model, corruptions in content['results'].items():
            errors = {
                name: {int(severity): found['error'] for severity, found in severities.items()}
                for name, severities in corruptions.items()
            }
            eces = [found['ece'] for severities in corruptions.values() for found in severities.values()]
            content['summary'][model] = summarize(errors) | {'mean_ece': sum(eces) / len(eces)}
            content['complete'] = len(eces) == len(config['corruptions']) * len(config['severities'])
        self.write()


def figures_of(correct: Bits, confidence: NDArray[np.float32]) -> dict[str, Any]:
    """Return the figures of one model on one set, JSON values only.

    Args:
        correct: (N,) whether the model is right.
        confidence: (N,) its largest probability.
    """
    gaps = calibration_gaps(confidence, correct)
    return {
        'examples': len(correct),
        'error': int((~correct).sum()) / len(correct),
        'ece': round(expected_calibration_error(gaps, len(correct)), 8),
        'ece_gaps': gaps,
        'correct': pack_bits(correct),
    }


def describe_models(models: Sequence[PixelModel]) -> list[dict[str, Any]]:
    """Return what the configuration says of the models."""
    return [
        model.describe()
        | {'weights_sha256': weights_sha256(model.model.state_dict()), 'input_size': list(model.input_size)}
        for model in models
    ]
