"""What an attack benchmark will cost, before it starts: calls of the model, and time from a few timed passes."""

import timeit
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from timm_p2be.robustness.attacks.attack import Attack
from timm_p2be.robustness.pixel_model import PixelModel


class Speed(NamedTuple):
    """Seconds that one image takes."""

    forward: float
    backward: float


def measure_speed(model: PixelModel, levels: Tensor) -> Speed:
    """Time passes of uint8 images (B, 3, H, W), backward to the weights, since levels of codes have no gradient."""
    levels = levels.to(model.device)
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def forward() -> None:
        with torch.no_grad():
            model(levels)

    def backward() -> None:
        torch.autograd.grad(model(levels).sum(), weights, allow_unused=True)

    return Speed(*(min(timeit.repeat(run, number=1, repeat=4)) / len(levels) for run in (forward, backward)))


def budget(attacks: Sequence[Attack], images: int, speed: Speed) -> str:
    """Return the budget of a benchmark, one line an attack, and the time it takes at most.

    Nobody knows before how many of the `images`, those of the larger set, fall early and cost less.
    """
    lines, total = [], 0.0
    for attack in attacks:
        forwards, backwards = attack.cost()
        seconds = images * (forwards * speed.forward + backwards * speed.backward)
        total += seconds
        lines.append(
            f'  {attack.name:28} {attack.kind:10} {forwards:7,} passes, {backwards:6,} with gradient per image  '
            f'{tqdm.format_interval(seconds):>10}'
        )
    lines.append(f'  {images} images, at most {tqdm.format_interval(total)} ([h:]min:s), much less if they fall early')
    return '\n'.join(lines)
