"""The result file of a corruption benchmark, results.json."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timm_p2be.robustness.evaluation.corruption_metrics import calibration_gaps, summarize
from timm_p2be.robustness.evaluation.results import Bits, ResultFile, pack_bits

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
    """Return the JSON figures of a model on a set, from whether it is right and its largest probability, both (N,)."""
    gaps = calibration_gaps(confidence, correct)
    return {
        'examples': len(correct),
        'error': int((~correct).sum()) / len(correct),
        'ece': round(sum(map(abs, gaps)) / len(correct), 8),
        'ece_gaps': gaps,
        'correct': pack_bits(correct),
    }
