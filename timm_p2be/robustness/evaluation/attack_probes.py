"""Measurements that tell a robust model from one on which attacks merely fail: gradients, curves, binarization."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from timm_p2be.robustness.attacks.judge import Bits, attack_batch, is_correct, seeded
from timm_p2be.robustness.attacks.surrogates import attack_view, surrogates_for
from timm_p2be.robustness.evaluation.attack_results import AttackResults
from timm_p2be.robustness.evaluation.attack_suite import Variant
from timm_p2be.robustness.evaluation.binarization import RANDOM, BinarizationTrial, binarize
from timm_p2be.robustness.evaluation.results import proportion
from timm_p2be.robustness.evaluation.runner import runner
from timm_p2be.robustness.images import ImageSet, as_batch
from timm_p2be.robustness.pixel_model import PixelModel

EPS_VALUES = (1, 2, 4, 8, 16, 32, 64, 255)
STEPS_VALUES = (1, 2, 5, 10, 20, 50, 100)
OFFICIAL_STEPS = {'lspga-official': 7}  # attacks with other steps than those of the next two lines
CURVE_STEPS = 40  # of the curve over the bound
BINARIZATION_STEPS = 100


def probe_gradients(model: PixelModel, data: ImageSet, results: AttackResults) -> None:
    """Add `content['probes']['gradients']`: for each surrogate of the model, the `gradient_shares`."""
    gradients = _probes(results).setdefault('gradients', {})
    for surrogate in surrogates_for(model):
        if surrogate not in gradients:
            levels, labels = as_batch(data, range(results.probed))
            view = attack_view(model, surrogate, results.eps)
            gradients[surrogate] = gradient_shares(view, levels.to(model.device), labels.to(model.device))
            results.write()


def gradient_shares(view: nn.Module, levels: Tensor, labels: Tensor, batch_size: int = 50) -> dict[str, float]:
    """Return shares, 0 to 1, of the gradient of the cross-entropy for the pixels of uint8 images (B, 3, H, W).

    They are 'zero' and 'nonfinite' of all values, and 'no_gradient' of images whose values are all 0 or not finite.
    """
    zero = nonfinite = nothing = 0
    for images, truth in zip(levels.split(batch_size), labels.split(batch_size), strict=True):
        pixels = (images.float() / 255).requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(view(pixels), truth, reduction='sum'), pixels)
        finite = gradient.isfinite()
        zero += int((gradient == 0).sum())
        nonfinite += int((~finite).sum())
        nothing += int((~finite | (gradient == 0)).flatten(1).all(dim=1).sum())
    count = levels.numel()
    return {'zero': zero / count, 'nonfinite': nonfinite / count, 'no_gradient': nothing / len(levels)}


def probe_curves(
    model: PixelModel, data: ImageSet, results: AttackResults, variants: Mapping[str, Variant], show: bool = False
) -> None:
    """Add accuracy over the bound and over the number of steps, each point in a run of its own.

    `content['probes']['curves'][name]['eps' or 'steps']` gets points with `x` and a proportion, for attacks that
    `variants` build with another bound and number of steps.
    """
    curves = _probes(results).setdefault('curves', {})
    jobs: list[tuple[str, str, int, int, int]] = []  # attack, axis, x, eps, steps
    for name in variants:
        steps = OFFICIAL_STEPS.get(name, CURVE_STEPS)
        new = {'eps': [], 'steps': [], 'eps_at_steps': steps, 'steps_at_eps': results.eps}
        curve = curves.setdefault(name, new)
        jobs += [(name, 'eps', x, x, steps) for x in EPS_VALUES[len(curve['eps']) :]]
        jobs += [(name, 'steps', x, results.eps, x) for x in STEPS_VALUES[len(curve['steps']) :]]

    def measure(job: tuple[str, str, int, int, int]) -> dict[str, Any]:
        name, _, _, eps, steps = job
        attack, (levels, labels) = variants[name](model, eps, steps), as_batch(data, range(results.probed))

        def trial(part: slice) -> Bits:
            generator = seeded(results.seed, f'{name} eps {eps} steps {steps}', part.start)
            return attack_batch(model, attack, levels[part], labels[part], attack.eps, generator)[1]

        fell = np.concatenate(run.memory.parts(name, len(levels), results.batch_size, trial))
        return proportion(is_correct(model, levels, labels) & ~fell)

    with runner('step', show) as run:
        run.progress.expect(sum(steps for *_, steps in jobs))
        for (name, axis, x, eps, steps), share in run.results(jobs, measure):
            curves[name][axis].append({'x': x, **share})
            results.write()
            run.progress.step(steps, f'{model.name} {name}: eps {eps}, {steps} steps')


def probe_binarization(
    model: PixelModel, data: ImageSet, results: AttackResults, name: str, variant: Variant, show: bool = False
) -> None:
    """Add the binarization test of the attack `name`, image by image, with `BINARIZATION_STEPS` or its own steps."""
    steps = OFFICIAL_STEPS.get(name, BINARIZATION_STEPS)
    found = _probes(results).setdefault('binarization', {})
    if found.get('attack') != name:
        found.clear()
        found.update(attack=name, steps=steps, random_draws=RANDOM, tried=0, separable=0, solved=0, random=0)

    def measure(index: int) -> BinarizationTrial:
        levels, _ = as_batch(data, [index])
        generator = seeded(results.seed, 'binarization', name, index)
        return binarize(model, levels[0], lambda binary: variant(binary, results.eps, steps), results.eps, generator)

    with runner('image', show) as run:
        run.progress.expect(results.probed - found['tried'])
        for index, trial in run.results(range(found['tried'], results.probed), measure):
            found['tried'] = index + 1
            found['separable'] += trial.separable
            found['solved'] += trial.attack
            found['random'] += trial.random
            results.write()
            run.progress.step(1, f'{model.name} binarization')


def strongest(content: dict[str, Any], names: Sequence[str]) -> str | None:
    """Return which of the attacks left the fewest images alone, the first of equals; None if there are no names."""
    return min(names, key=lambda name: content['alone'][name]['accuracy'], default=None)


def _probes(results: AttackResults) -> dict[str, Any]:
    return results.content.setdefault('probes', {'subset': f'first {results.probed} images'})
