"""The attack benchmark on a synthetic defense that only looks robust: its gradient is masked, its weakness is not."""

import numpy as np
from PIL import Image
from planted import Corner

from timm_p2be.robustness.attacks import Square
from timm_p2be.robustness.evaluation.attack_benchmark import benchmark_attacks
from timm_p2be.robustness.evaluation.attack_checks import conclude
from timm_p2be.robustness.evaluation.attack_probes import probe_gradients
from timm_p2be.robustness.evaluation.attack_results import AttackResults
from timm_p2be.robustness.evaluation.attack_suite import build_suite
from timm_p2be.robustness.images import ImageSet
from timm_p2be.robustness.pixel_model import PixelModel


def _benchmark(masked: bool) -> AttackResults:
    """Attack gray images of level 100 + i: those from 113 on can be pushed over the threshold by 8 levels."""
    model = PixelModel(Corner(masked))
    data = ImageSet([(Image.fromarray(np.full((8, 8, 3), 100 + i, np.uint8)), 0) for i in range(20)], 'grays', 8)
    suite = [*build_suite(model, 8, ['fgsm', 'pgd', 'apgd-ce', 'apgd-margin']), Square(model, 8, queries=2000)]
    results = benchmark_attacks(model, data, suite, alone=20, worst_case=20, probed=20)
    probe_gradients(model, data, results)
    conclude(results)
    return results


def test_masked_gradients_are_seen_through() -> None:
    results = _benchmark(masked=True)
    for name in ('pgd-straight-through', 'fgsm-straight-through'):
        assert results.content['alone'][name]['accuracy'] == 1  # the gradient finds nothing, ...
    # ... the search does: the images from 113 on fall, and no other can
    assert results.standing().tolist() == [True] * 13 + [False] * 7
    assert results.content['gradient_masking_suspected']
    assert results.content['verdict'].startswith('Gradient masking is suspected')


def test_the_same_weakness_without_a_mask_is_found_by_the_gradient() -> None:
    results = _benchmark(masked=False)
    for name in ('fgsm-straight-through', 'pgd-straight-through', 'apgd-ce-straight-through'):
        assert results.content['alone'][name]['accuracy'] == 13 / 20
    assert results.standing().tolist() == [True] * 13 + [False] * 7
    assert not [
        check for check in results.content['checks'] if check['result'] == 'failed' and 'zero' not in check['name']
    ]
