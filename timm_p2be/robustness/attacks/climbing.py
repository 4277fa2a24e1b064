"""What gradient attacks share: passes that climb a loss, whose every step is judged."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from timm_p2be.encodings import pixel_levels
from timm_p2be.robustness.attacks.attack import Attack, Cost, check_counts, margin
from timm_p2be.robustness.attacks.attempts import Attempts

LOSSES = ('ce', 'margin', 'target')


class Pass(NamedTuple):
    """One climb of every image that still stands.

    `loss` is 'ce', 'margin' (the largest wrong logit less the right one) or 'target' (one wrong logit less the right
    one: that of the class that is number `rank` among the wrong ones on the clean image).
    """

    loss: str
    random: bool = False  # starts at random within the bound, else at the clean image
    rank: int = 0


class Ascent:
    """Steps of one size along the sign of the gradient, from `start` in the ball round `clean`, float32 (N, 3, H, W).

    Every tensor has a row for each image that still moves.
    """

    def __init__(self, start: Tensor, clean: Tensor, eps: int, step: float) -> None:
        self.low, self.high = (clean - eps).clamp(min=0), (clean + eps).clamp(max=255)
        self.current = self.project(start)
        self.step = torch.full((len(start), 1, 1, 1), step, dtype=start.dtype, device=start.device)

    def move(self, index: int, loss: Tensor, gradient: Tensor) -> None:
        """Take step number `index` from the current images, which have this loss, (N,), and gradient."""
        self.current = self.project(self.current + self.step * gradient.sign())

    def project(self, images: Tensor) -> Tensor:
        """Move images into the ball."""
        return images.clamp(self.low, self.high)

    def select(self, kept: Tensor) -> None:
        """Forget the images that are not `kept`."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[kept])


class Climber(Attack):
    """An attack in passes, the later ones on what still stands; each image keeps its attempt of lowest margin.

    The network sees every iterate rounded to levels, so each step judges the image that would be returned.

    Arguments are those of `Attack`, and:

    Args:
        steps: gradient steps of a pass, at least 1.
        passes: at least one.
        stop: at the first misclassified iterate; else climb on and keep the one of lowest margin, which transfers
            better to other models.
    """

    kind = 'white-box'

    def __init__(
        self, model: nn.Module, eps: int, name: str, steps: int, passes: Sequence[Pass], stop: bool = True
    ) -> None:
        super().__init__(model, eps, name)
        check_counts(steps=steps)
        self.steps = steps
        self.passes = list(passes)
        self.stop = stop

    def cost(self) -> Cost:
        """Return the most an image can cost: a gradient a step, each last iterate's judgment, the likely classes."""
        targeted = any(way.loss == 'target' for way in self.passes)
        return Cost(len(self.passes) + targeted, len(self.passes) * self.steps)

    def _attack(self, levels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        attempts = Attempts(self.model, levels, labels, clean=False)
        likely = self._likely(levels, labels) if any(way.loss == 'target' for way in self.passes) else labels[:, None]
        for number, standing in attempts.rounds(len(self.passes)):
            way = self.passes[number]
            clean = levels[standing].float()
            start = self._random_start(clean, generator) if way.random else clean
            target = likely[standing, way.rank]
            attempt, found = self._climb(self._ascent(start, clean), way.loss, labels[standing], target)
            better = found < attempts.margins[standing]
            attempts.take(standing[better], pixel_levels(attempt[better] / 255), found[better])
        return attempts.levels

    def ascend(self, levels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        """Return the last iterate of one climb of the cross-entropy from a random start, as `LSPGA.ascend` does."""
        clean = levels.float()
        ascent = self._ascent(self._random_start(clean, generator), clean)
        for step in range(self.steps):
            with torch.enable_grad():
                logits, leaf = self._see(ascent.current, with_gradient=True)
                loss = nn.functional.cross_entropy(logits, labels, reduction='none')
                gradient = torch.autograd.grad(loss.sum(), leaf)[0]
            ascent.move(step, loss.detach(), gradient)
        return pixel_levels(ascent.current / 255)

    def _random_start(self, clean: Tensor, generator: Generator) -> Tensor:
        noise = torch.rand(clean.shape, generator=generator, device=generator.device).to(clean.device)
        return clean + self.eps * (2 * noise - 1)

    @torch.no_grad()
    def _likely(self, levels: Tensor, labels: Tensor) -> Tensor:
        """Return the wrong classes, likeliest first, and the label behind them, (B, K)."""
        logits, _ = self._see(levels.float(), with_gradient=False)
        return logits.scatter(1, labels.unsqueeze(1), -math.inf).argsort(dim=1, descending=True)

    def _climb(self, ascent: Ascent, loss: str, labels: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first misclassified iterate of each image, or the one of lowest margin, and that margin."""
        best, margins = ascent.current.clone(), torch.full((len(labels),), math.inf, device=labels.device)
        alive = torch.arange(len(labels), device=labels.device)
        for step in range(self.steps + 1):
            last = step == self.steps
            with torch.set_grad_enabled(not last):
                logits, leaf = self._see(ascent.current, with_gradient=not last)
                now = margin(logits, labels[alive])
                height = _height(loss, logits, now, labels[alive], target[alive])
                gradient = leaf if last else torch.autograd.grad(height.sum(), leaf)[0]
            now, height = now.detach(), height.detach()
            better = now < margins[alive]
            best[alive[better]] = ascent.current[better]
            margins[alive[better]] = now[better]
            going = (now >= 0) | (not self.stop)
            alive = alive[going]
            if last or len(alive) == 0:
                break
            ascent.select(going)
            ascent.move(step, height[going], gradient[going])
        return best, margins

    @abstractmethod
    def _ascent(self, start: Tensor, clean: Tensor) -> Ascent:
        """Return the rule by which images, float32 levels (N, 3, H, W), move from `start`."""

    @abstractmethod
    def _see(self, current: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
        """Return the logits of images, float32 levels (N, 3, H, W), and what their gradient is taken of."""


def _height(loss: str, logits: Tensor, margins: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Return the loss that is climbed, (N,)."""
    if loss == 'ce':
        return nn.functional.cross_entropy(logits, labels, reduction='none')
    if loss == 'target':
        return (logits.gather(1, target.unsqueeze(1)) - logits.gather(1, labels.unsqueeze(1))).squeeze(1)
    return -margins
