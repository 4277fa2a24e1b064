"""APGD on pixel levels: PGD that finds its step size by itself."""

import math

import torch
from torch import Tensor

from timm_p2be.robustness.attacks.climbing import Ascent
from timm_p2be.robustness.attacks.pgd import PGD


class APGD(PGD):
    """Auto-PGD (Croce and Hein, ICML 2020, Algorithm 1): momentum, and a step size that halves where it is too large.

    The first step is 2 eps by default. An image's step is halved, and the search goes on from its best point, if fewer
    than 75 % of the steps since the last checkpoint raised the loss or when neither step nor best loss has changed.

    Arguments are those of `PGD`, by default 100 steps; `step_size` is the first one.
    """

    algorithm, usual_steps = 'apgd', 100

    def _usual_step_size(self) -> float:
        return 2.0 * max(self.eps, 1)

    def _ascent(self, start: Tensor, clean: Tensor) -> Ascent:
        return _AutoAscent(start, clean, self.eps, self.step_size, _checkpoints(self.steps))


class _AutoAscent(Ascent):
    """Steps with momentum whose size each image finds by itself."""

    def __init__(self, start: Tensor, clean: Tensor, eps: int, step: float, checkpoints: dict[int, int]) -> None:
        super().__init__(start, clean, eps, step)
        self._checkpoints = checkpoints
        self.previous = self.current.clone()
        self.best = self.current.clone()
        self.best_gradient = torch.zeros_like(start)
        self.loss = torch.full((len(start),), -math.inf, device=start.device)
        self.best_loss = self.loss.clone()
        self.checked_loss = self.loss.clone()
        self.rises = torch.zeros_like(self.loss)
        self.halved = torch.zeros_like(self.loss, dtype=torch.bool)

    def move(self, index: int, loss: Tensor, gradient: Tensor) -> None:
        self.rises += loss > self.loss
        self.loss = loss
        better = loss > self.best_loss
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.best[better] = self.current[better]
        self.best_gradient[better] = gradient[better]
        if index in self._checkpoints:
            halve = self._check(index - self._checkpoints[index])
            self.current[halve] = self.best[halve]
            gradient[halve] = self.best_gradient[halve]
        momentum = 0.75 if index else 1.0
        plain = self.project(self.current + self.step * gradient.sign())
        ahead = self.current + momentum * (plain - self.current) + (1 - momentum) * (self.current - self.previous)
        self.previous, self.current = self.current, self.project(ahead)

    def _check(self, steps: int) -> Tensor:
        """Halve the steps of the images that `steps` steps have brought too little; return which, (N,)."""
        stuck = ~self.halved & (self.checked_loss >= self.best_loss)
        self.halved = (self.rises < 0.75 * steps) | stuck
        self.step = torch.where(self.halved.view(-1, 1, 1, 1), self.step / 2, self.step)
        self.checked_loss = self.best_loss.clone()
        self.rises.zero_()
        return self.halved


def _checkpoints(steps: int) -> dict[int, int]:
    """Return checkpoint -> the one before it: at .22 of the steps, then ever closer, at least .06 apart."""
    result, last, share, gap = {}, 0, 0.22, 0.22
    while (step := math.ceil(round(share * steps, 6))) < steps:  # .57 * 100 is a little more than 57
        result[step] = last
        last = step
        gap = max(gap - 0.03, 0.06)
        share += gap
    return result
