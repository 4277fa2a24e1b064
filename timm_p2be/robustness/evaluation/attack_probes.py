"""Measurements that tell a robust model from one on which attacks merely fail: gradients, curves, binarization."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from timm_p2be.robustness.attacks.attack import Attack
from timm_p2be.robustness.attacks.judge import attack_batch, is_correct, seeded
from timm_p2be.robustness.evaluation.attack_record import AttackRecord, proportion
from timm_p2be.robustness.evaluation.attack_suite import Variant
from timm_p2be.robustness.evaluation.binarization import RANDOM, binarize
from timm_p2be.robustness.evaluation.progress import Progress
from timm_p2be.robustness.images import ImageSet, as_batch
from timm_p2be.robustness.pixel_model import PixelModel

EPS_VALUES = (1, 2, 4, 8, 16, 32, 64, 255)
STEPS_VALUES = (1, 2, 5, 10, 20, 50, 100)
OFFICIAL_STEPS = {'lspga-official': 7}  # attacks with other steps than those of the next two lines
CURVE_STEPS = 40  # of the curve over the bound
BINARIZATION_STEPS = 100


def probe_gradients(
    model: PixelModel, data: ImageSet, record: AttackRecord, views: Mapping[str, Callable[[], nn.Module]]
) -> None:
    """Add, for each surrogate, the shares of the input gradient that are 0 or not finite, and of images without any.

    Args:
        model: of the record.
        data: of the record.
        record: gets `content['probes']['gradients']`.
        views: name of a surrogate -> builds the model on float images in [0, 1] whose gradient is looked at.
    """
    results = _probes(record).setdefault('gradients', {})
    for name, build in views.items():
        if name not in results:
            levels, labels = _subset(data, record)
            results[name] = gradient_shares(build(), levels.to(model.device), labels.to(model.device))
            record.write()


def gradient_shares(view: nn.Module, levels: Tensor, labels: Tensor, batch_size: int = 50) -> dict[str, float]:
    """Return shares, 0 to 1, of the gradient of the cross-entropy for the pixel values.

    Args:
        view: takes float images in [0, 1].
        levels: uint8 (B, 3, H, W).
        labels: int64 (B,).
        batch_size: images at once.

    Returns:
        'zero' and 'nonfinite' of all values; 'no_gradient' of images whose values are all 0 or not finite.
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
    model: PixelModel, data: ImageSet, record: AttackRecord, variants: Mapping[str, Variant], show: bool = False
) -> None:
    """Add accuracy over the bound and over the number of steps, each point in a run of its own.

    Args:
        model: of the record.
        data: of the record.
        record: gets `content['probes']['curves'][name]['eps' or 'steps']`, points with `x` and a proportion.
        variants: name of an attack -> builds it for another bound and number of steps.
        show: print progress on stderr.
    """
    curves = _probes(record).setdefault('curves', {})
    jobs = []
    for name in variants:
        steps = OFFICIAL_STEPS.get(name, CURVE_STEPS)
        curve = curves.setdefault(name, {'eps': [], 'steps': [], 'eps_at_steps': steps, 'steps_at_eps': record.eps})
        for axis, points in (
            ('eps', [(x, x, steps) for x in EPS_VALUES]),
            ('steps', [(x, record.eps, x) for x in STEPS_VALUES]),
        ):
            jobs += [(name, curve[axis], *point) for point in points[len(curve[axis]) :]]
    progress = Progress(sum(steps for *_, steps in jobs), 'step', show)
    for name, points, x, eps, steps in jobs:
        attack = variants[name](model, eps, steps)
        points.append({'x': x, **_accuracy(model, data, record, attack, f'{name} eps {eps} steps {steps}')})
        record.write()
        progress.step(steps, f'{model.name} {name}: eps {eps}, {steps} steps')
    progress.close()


def probe_binarization(
    model: PixelModel, data: ImageSet, record: AttackRecord, name: str, variant: Variant, show: bool = False
) -> None:
    """Add the binarization test of the attack `name`, image by image, with `BINARIZATION_STEPS` or its own steps."""
    steps = OFFICIAL_STEPS.get(name, BINARIZATION_STEPS)
    result = _probes(record).setdefault('binarization', {})
    if result.get('attack') != name:
        result.clear()
        result.update(attack=name, steps=steps, random_draws=RANDOM, tried=0, separable=0, solved=0, random=0)
    progress = Progress(record.probed - result['tried'], 'image', show)
    for index in range(result['tried'], record.probed):
        levels, _ = as_batch(data, [index])
        generator = seeded(record.seed, 'binarization', name, index)
        trial = binarize(model, levels[0], lambda binary: variant(binary, record.eps, steps), record.eps, generator)
        result['tried'] = index + 1
        result['separable'] += trial.separable
        result['solved'] += trial.attack
        result['random'] += trial.random
        record.write()
        progress.step(1, f'{model.name} binarization')
    progress.close()


def strongest(content: dict[str, Any], names: Sequence[str]) -> str | None:
    """Return which of the attacks left the fewest images alone, the first of equals; None if none of them ran."""
    ran = [name for name in names if 'accuracy' in content['alone'].get(name, {})]
    return min(ran, key=lambda name: content['alone'][name]['accuracy'], default=None)


def _probes(record: AttackRecord) -> dict[str, Any]:
    return record.content.setdefault('probes', {'subset': f'first {record.probed} images'})


def _subset(data: ImageSet, record: AttackRecord) -> tuple[Tensor, Tensor]:
    return as_batch(data, range(record.probed))


def _accuracy(model: PixelModel, data: ImageSet, record: AttackRecord, attack: Attack, seed: str) -> dict[str, Any]:
    """Return the proportion of the subset that stands."""
    levels, labels = _subset(data, record)
    standing = is_correct(model, levels, labels)
    for start in range(0, len(levels), record.batch_size):
        part = slice(start, start + record.batch_size)
        generator = seeded(record.seed, seed, start)
        _, success = attack_batch(model, attack, levels[part], labels[part], attack.eps, generator)
        standing[part] &= ~success
    return proportion(standing)
