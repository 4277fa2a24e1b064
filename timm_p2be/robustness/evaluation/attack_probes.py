"""Measurements that tell a robust model from one on which attacks merely fail: gradients, curves, binarization."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from timm_p2be.robustness.attacks.attack import Attack, Cost
from timm_p2be.robustness.attacks.judge import Bits, attack_batch, is_correct, logits, seeded
from timm_p2be.robustness.attacks.surrogates import attack_view, surrogates_for
from timm_p2be.robustness.evaluation.attack_results import AttackResults
from timm_p2be.robustness.evaluation.attack_suite import Variant
from timm_p2be.robustness.evaluation.binarization import INNER, RANDOM, BinarizationTrial, binarize
from timm_p2be.robustness.evaluation.results import proportion
from timm_p2be.robustness.evaluation.runner import runner
from timm_p2be.robustness.images import ImageSet, as_batch
from timm_p2be.robustness.pixel_model import PixelModel

EXAMPLES = 4  # images that the report shows
EPS_VALUES = (1, 2, 4, 8, 16, 32, 64, 255)
STEPS_VALUES = (1, 2, 5, 10, 20, 50, 100)
OFFICIAL = 'lspga-official'
OFFICIAL_STEPS = {OFFICIAL: 7}  # attacks with other steps than those of the next two lines
CURVE_STEPS = 40  # of the curve over the bound
BINARIZATION_STEPS = 100
Point = tuple[str, int, int, int]  # of a curve: its axis, where on it, the bound, and the number of steps


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
    """Return which share of the cross-entropy's gradient is 'zero' and 'nonfinite', for uint8 images (B, 3, H, W)."""
    zero = nonfinite = 0
    for images, truth in zip(levels.split(batch_size), labels.split(batch_size), strict=True):
        pixels = (images.float() / 255).requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(view(pixels), truth, reduction='sum'), pixels)
        zero += int((gradient == 0).sum())
        nonfinite += int((~gradient.isfinite()).sum())
    return {'zero': zero / levels.numel(), 'nonfinite': nonfinite / levels.numel()}


def probe_curves(
    model: PixelModel, data: ImageSet, results: AttackResults, variants: Mapping[str, Variant], show: bool = False
) -> None:
    """Add accuracy over the bound and over the number of steps, each point in a run of its own.

    `content['probes']['curves'][name]['eps' or 'steps']` gets points with `x` and a proportion, for attacks that
    `variants` build with another bound and number of steps.
    """
    curves = _probes(results).setdefault('curves', {})
    jobs: list[tuple[str, str, int, int, int]] = []
    for name in variants:
        by_eps, by_steps = _points(name, results.eps)
        new = {'eps': [], 'steps': [], 'eps_at_steps': by_eps[0][-1], 'steps_at_eps': results.eps}
        curve = curves.setdefault(name, new)
        jobs += [(name, *point) for point in (*by_eps[len(curve['eps']) :], *by_steps[len(curve['steps']) :])]

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


def _points(name: str, eps: int) -> tuple[list[Point], list[Point]]:
    """Return the points of an attack's curves over the bound and over the steps."""
    steps = OFFICIAL_STEPS.get(name, CURVE_STEPS)
    return [('eps', x, x, steps) for x in EPS_VALUES], [('steps', x, eps, x) for x in STEPS_VALUES]


def probe_examples(model: PixelModel, data: ImageSet, results: AttackResults, attack: Attack) -> None:
    """Add `content['probes']['examples']`: the first images that the model gets right and `attack` alone felled.

    It attacks them once more. Those that fall again are kept as they were and as they became, uint8 (H, W, 3) in
    base64, each with the class that the model sees and its probability.
    """
    probes, names = _probes(results), model.class_names or data.class_names
    if probes.get('examples', {}).get('attack') == attack.name:
        return

    def seen(levels: Tensor) -> dict[str, Any]:
        confidence, guess = logits(model, levels[None]).softmax(dim=1).max(dim=1)
        pixels = base64.b64encode(levels.permute(1, 2, 0).numpy().tobytes()).decode()
        return {'class': named(int(guess)), 'confidence': round(float(confidence), 6), 'levels': pixels}

    def named(label: int) -> str:
        return names[label] if names else str(label)

    fell = np.flatnonzero(results.clean[: results.alone] & results.bits('alone', attack.name))[:EXAMPLES].tolist()
    images = []
    if fell:
        levels, labels = as_batch(data, fell)
        generator = seeded(results.seed, 'examples', attack.name)
        attempts, fooled = attack_batch(model, attack, levels, labels, results.eps, generator)
        for row in np.flatnonzero(fooled).tolist():
            image = {'index': fell[row], 'label': named(int(labels[row])), 'shape': [*levels.shape[2:], 3]}
            images.append({**image, 'clean': seen(levels[row]), 'attacked': seen(attempts[row])})
    probes['examples'] = {'attack': attack.name, 'images': images}
    results.write()


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


def probe_costs(model: PixelModel, eps: int, variants: Mapping[str, Variant]) -> tuple[Cost, Cost]:
    """Return what an image costs at most in the curves and in the binarization test, whichever attack they follow."""
    curves, binarization = {}, []
    for name, build in variants.items():
        points = [build(model, bound, steps).cost() for part in _points(name, eps) for *_, bound, steps in part]
        curves[name] = np.sum(points, axis=0)
        binarization.append(build(model, eps, OFFICIAL_STEPS.get(name, BINARIZATION_STEPS)).cost())
    both = max((curves[name] for name in followed(variants)), key=lambda cost: cost[1])
    if OFFICIAL in curves and OFFICIAL not in followed(variants):
        both = both + curves[OFFICIAL]
    forwards, backwards = np.max(binarization, axis=0)
    return Cost(*both), Cost(forwards + INNER + RANDOM + 4, backwards)


def followed(names: Iterable[str]) -> list[str]:
    """Return the attacks of which the strongest is probed: the paper's only if there is no other."""
    return [name for name in names if name != OFFICIAL] or [*names]


def strongest(content: dict[str, Any], names: Sequence[str]) -> str | None:
    """Return which of the attacks left the fewest images alone, the first of equals; None if there are no names."""
    return min(names, key=lambda name: content['alone'][name]['accuracy'], default=None)


def _probes(results: AttackResults) -> dict[str, Any]:
    return results.content.setdefault('probes', {'subset': f'first {results.probed} images'})
