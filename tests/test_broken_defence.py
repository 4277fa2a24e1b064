"""The attack benchmark on a synthetic defence that only looks robust: its gradient is masked, its weakness is not."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from timm_p2be.robustness.attacks.surrogates import attack_view
from timm_p2be.robustness.evaluation.attack_benchmark import benchmark_attacks
from timm_p2be.robustness.evaluation.attack_checks import conclude
from timm_p2be.robustness.evaluation.attack_probes import probe_gradients
from timm_p2be.robustness.evaluation.attack_results import AttackResults
from timm_p2be.robustness.evaluation.attack_suite import build_suite
from timm_p2be.robustness.images import ImageSet
from timm_p2be.robustness.pixel_model import PixelModel

SIDE = 8


class Corner(nn.Module):
    """Class 1 iff the upper left corner is brighter than 120.2 levels on average.

    Masked, the score is rounded to steps of a level before it is used: its gradient is 0 almost everywhere, which is
    what quantized inputs do to a network.
    """

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.scale = nn.Parameter(torch.tensor(30.0))
        self.num_classes = 2
        self.pretrained_cfg = {
            'architecture': 'corner',
            'mean': (0, 0, 0),
            'std': (1, 1, 1),
            'input_size': (3, SIDE, SIDE),
        }

    def forward(self, images: Tensor) -> Tensor:
        score = 255 * images[:, :, :2, :2].mean(dim=(1, 2, 3)) - 120.2
        if self.masked:
            score = (score * 4).floor() / 4
        score = self.scale * score / 255
        return torch.stack([-score, score], dim=1)


def _images() -> ImageSet:
    """Gray images of level 100 + i: those from 113 on can be pushed over the threshold by 8 levels."""
    grays = range(100, 120)
    pairs = [(Image.fromarray(np.full((SIDE, SIDE, 3), gray, np.uint8)), 0) for gray in grays]
    return ImageSet(pairs, 'grays', SIDE)


def _benchmark(masked: bool) -> AttackResults:
    model = PixelModel(Corner(masked))
    names = ['fgsm', 'pgd', 'apgd-ce', 'apgd-margin', 'square']
    data = _images()
    results = benchmark_attacks(model, data, build_suite(model, 8, names), alone=20, worst_case=20, probed=20)
    probe_gradients(model, data, results, {'straight-through': lambda: attack_view(model, 'straight-through')})
    conclude(results)
    return results


def test_masked_gradients_are_seen_through() -> None:
    results = _benchmark(masked=True)
    by_gradient = [
        results.content['alone'][name]['accuracy'] for name in ('pgd-straight-through', 'fgsm-straight-through')
    ]
    assert by_gradient == [1.0, 1.0]  # the gradient finds nothing, ...
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
