"""The binarization test: can an attack find an adversarial image that is known to exist?

Zimmermann, Brendel, Tramer and Carlini, "Increasing Confidence in Adversarial Robustness Evaluations", NeurIPS 2022.
For one clean image the last layer is replaced by a linear classifier of two classes: random points inside the bound
against one at a corner of it. The corner is adversarial by construction; an attack that finds nothing fails by itself,
whatever it says about the original model. Simplifications here:

- inner points lie within half the bound, all points are uint8 images;
- the classifier is a regularized Fisher discriminant in closed form, not a logistic regression;
- 199 inner points and 1 corner, against 999 inner points and several boundary points there;
- the attack starts as it does in the benchmark; it is not adapted to two classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from timm_p2be.robustness.attacks.attack import Attack
from timm_p2be.robustness.attacks.attempts import shift, signs
from timm_p2be.robustness.attacks.judge import attack_batch
from timm_p2be.robustness.pixel_model import PixelModel, tied_copy

INNER = 199
RANDOM = 200
CLOSENESS = 0.999  # where the threshold lies between the outermost inner point (0) and the corner (1)
_SCALE = 5.0  # logit difference of an average inner point; large ones would make the loss flat
_BATCH = 100


class BinarizationTrial(NamedTuple):
    """What came of one image; if it is not separable, the rest is False."""

    separable: bool  # a linear classifier tells the corner from the inner points
    attack: bool  # the attack found an image on the corner's side
    random: bool  # random corners did


def binarize(
    model: PixelModel,
    image: Tensor,
    make_attack: Callable[[PixelModel], Attack],
    eps: int,
    generator: Generator,
    points: int = INNER,
    draws: int = RANDOM,
) -> BinarizationTrial:
    """Build the two-class problem of one uint8 image (3, H, W) and let an attack and a random search solve it.

    Args:
        model: whose features are classified; unchanged. Its last layer is linear.
        eps: bound in levels, 2 to 255.
        points, draws: inner points besides the clean image, and corners that the random search tries.
    """
    if not 2 <= eps <= 255:
        raise ValueError(f'Got eps={eps}; points inside the bound need 2 to 255 levels.')
    inner = torch.cat([image[None], shift(image, _inside(eps, points, image.shape, generator))])
    corner = shift(image, eps * signs((1, *image.shape), generator))
    readout = _separate(_features(model, inner), _features(model, corner))
    if readout is None:
        return BinarizationTrial(False, False, False)
    binary = _with_readout(model, *readout)
    if not _is_corner(binary, corner).all() or _is_corner(binary, inner).any():  # rounding in the network
        return BinarizationTrial(False, False, False)
    random = shift(image, eps * signs((draws, *image.shape), generator))
    attack = make_attack(binary)
    _, success = attack_batch(binary, attack, image[None], torch.zeros(1, dtype=torch.int64), eps, generator)
    return BinarizationTrial(True, bool(success[0]), bool(_is_corner(binary, random).any()))


@torch.no_grad()
def _features(model: PixelModel, levels: Tensor) -> Tensor:
    """Return what uint8 images make of the input of the last layer, float64 (B, D) on the CPU."""
    seen: list[Tensor] = []
    layer = model.model.get_classifier()  # type: ignore[operator]
    hook = layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].flatten(1).cpu().double()))
    for batch in levels.split(_BATCH):
        model(batch.to(model.device))
    hook.remove()
    return torch.cat(seen)


def _separate(inner: Tensor, corner: Tensor) -> tuple[Tensor, float] | None:
    """Return weight (D,) and bias of a readout positive at corner (1, D) only, not at inner (N, D), if there is one."""
    center = inner.mean(dim=0)
    spread = torch.cov(inner.T)
    ridge = 1e-3 * spread.diagonal().mean() + 1e-12
    weight = torch.linalg.solve(spread + ridge * torch.eye(len(spread), dtype=spread.dtype), corner[0] - center)
    outermost, target = float((inner @ weight).max()), float(corner[0] @ weight)
    if not outermost < target:
        return None
    threshold = outermost + CLOSENESS * (target - outermost)
    scale = _SCALE / (threshold - float(center @ weight))
    return weight * scale, -threshold * scale


def _with_readout(model: PixelModel, weight: Tensor, bias: float) -> PixelModel:
    """Return the model with a last layer of two classes: 0 inside, 1 on the corner's side."""
    network = tied_copy(model.model)
    network.reset_classifier(2)  # type: ignore[operator]
    layer = network.get_classifier()  # type: ignore[operator]
    if not isinstance(layer, nn.Linear) or layer.in_features != len(weight):
        raise ValueError(
            f'{model.name}: the binarization test needs a model whose last layer is linear, this one has '
            f'{type(layer).__name__}; leave it out (--no-binarization).'
        )
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-weight / 2, weight / 2]))
        layer.bias.copy_(torch.tensor([-bias / 2, bias / 2]))
    return PixelModel(network, model.mean, model.std, name=model.name).to(model.device)


@torch.no_grad()
def _is_corner(binary: PixelModel, levels: Tensor) -> Tensor:
    return torch.cat([binary(batch.to(binary.device)).argmax(1).cpu() == 1 for batch in levels.split(_BATCH)])


def _inside(eps: int, count: int, shape: torch.Size, generator: Generator) -> Tensor:
    """Return changes within half the bound, every second one at the corners of that half."""
    half = eps // 2
    changes = torch.randint(-half, half + 1, (count, *shape), generator=generator, dtype=torch.int16)
    changes[::2] = half * signs(changes[::2].shape, generator)
    return changes
