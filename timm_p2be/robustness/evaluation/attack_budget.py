"""What an attack benchmark will cost, before it starts: calls of the model, and time from a few timed passes."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from timm_p2be.robustness.attacks.attack import Attack
from timm_p2be.robustness.pixel_model import PixelModel


class Speed(NamedTuple):
    """Seconds that one image takes."""

    forward: float
    backward: float


def measure_speed(model: PixelModel, levels: Tensor, repeats: int = 3) -> Speed:
    """Time passes of uint8 images (B, 3, H, W), backward to the weights, since levels of codes have no gradient.

    One pass of each sort warms up, and the fastest of the others counts.
    """
    levels = levels.to(model.device)
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def forward() -> None:
        with torch.no_grad():
            model(levels)

    def backward() -> None:
        torch.autograd.grad(model(levels).sum(), weights, allow_unused=True)

    return Speed(*(_fastest(run, repeats) / len(levels) for run in (forward, backward)))


def _fastest(run: Callable[[], object], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


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
            f'{duration(seconds):>10}'
        )
    return '\n'.join([*lines, f'  {images} images, at most {duration(total)}, much less if they fall early'])


def duration(seconds: float) -> str:
    """Return a time in words.

    Example:
        >>> duration(5), duration(600), duration(9000)
        ('5 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 6000 else f'{seconds / 3600:.1f} h'
