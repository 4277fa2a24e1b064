"""DGA, the discrete gradient attack: the exact first-order attack on codes."""

import math

import torch
from torch import Tensor, nn

from timm_p2be.robustness.attacks.attack import check_counts
from timm_p2be.robustness.attacks.climbing import Ascent, Climber, Pass
from timm_p2be.robustness.attacks.code_model import CodeModel
from timm_p2be.robustness.attacks.windows import Windows

MOMENTUM = 0.75
SHARE = 0.1  # of the values that jump in a step, at first
PATIENCE = 4  # steps without gain after which an image returns to its best and halves its share


class DGA(Climber):
    """Discrete Gradient Ascent (Buckman et al., ICLR 2018) for any table of codes, made stronger.

    To first order at the codes e_k an image has, level j instead of k does the harm <dL/de, e_j - e_k>: exact for every
    legal level of every pixel value, without relaxation, surrogate or width. In each step the values with the most
    harmful jump, a share of all, make it; gradients are averaged over steps (momentum); the share shrinks when nothing
    is gained. Passes: margin loss from the image itself, cross-entropy from a random start, then towards each of the
    likeliest wrong classes. The published code (anishathalye/obfuscated-gradients,
    thermometer/discretization_attacks.py) moves all values at once, and weighs single bits, which for thermometer codes
    is not the first-order change (docs/protocol.md).

    Arguments are those of `Attack`, and:

    Args:
        steps: of a pass, at least 1.
        targets: number of wrong classes that have a pass of their own, at least 0; at most all are taken.
    """

    def __init__(self, model: nn.Module, eps: int = 8, steps: int = 40, targets: int = 3, name: str = 'dga') -> None:
        check_counts(least=0, targets=targets)
        super().__init__(model, eps, name, steps, [Pass('margin'), Pass('ce', random=True)])
        self.passes += [Pass('target', rank=rank) for rank in range(min(targets, self.model.num_classes - 1))]
        self._network = CodeModel(self.model)

    def _ascent(self, start: Tensor, clean: Tensor) -> Ascent:
        return _Jumps(start, clean, self.eps, self._network.table())

    def _see(self, current: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
        planes = self._network.table()[current.permute(0, 2, 3, 1).long()].requires_grad_(with_gradient)
        return self._network(planes), planes


class _Jumps(Ascent):
    """Jumps of the pixel values that do most harm, a share `step` of all, from levels within the ball."""

    def __init__(self, start: Tensor, clean: Tensor, eps: int, table: Tensor) -> None:
        super().__init__(start, clean, eps, SHARE)
        self.current = self.current.round()
        self.best = self.current
        self.best_loss = torch.full((len(start),), -math.inf, device=start.device)
        self.stale = torch.zeros_like(self.best_loss)
        self.clean = clean.to(torch.uint8)
        self.harm = torch.zeros((), device=start.device).expand(len(start), 1, 1, 1, 1)  # of candidates, with momentum
        self._rule = (eps, table)

    def move(self, index: int, loss: Tensor, gradient: Tensor) -> None:
        """Let the most harmful jumps happen; `gradient` is that of the (N, H, W, 3, M) code planes."""
        eps, table = self._rule
        better = loss > self.best_loss
        self.best = torch.where(better.view(-1, 1, 1, 1), self.current, self.best)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.stale = torch.where(better, 0, self.stale + 1)
        tired = self.stale >= PATIENCE

        windows = Windows(self.clean, eps)
        size = gradient.abs().flatten(1).mean(1).clamp(min=torch.finfo(gradient.dtype).tiny).view(-1, 1, 1, 1, 1)
        self.harm = MOMENTUM * self.harm + windows.unsort(windows.compare(gradient, table)) / size
        legal = windows.sort(self.harm).masked_fill(~windows.legal, -math.inf)
        most, choice = legal.max(dim=1)
        gain = windows.unsort(most - legal.gather(1, windows.position(self.current).unsqueeze(1)).squeeze(1))
        ranked = gain.flatten(1).sort(dim=1, descending=True).values
        count = (self.step.flatten(1) * ranked.shape[1]).ceil().long()
        least = ranked.gather(1, count - 1).view(-1, 1, 1, 1)
        jumping = (gain >= least) & (gain > 0)

        # the gradient is not that of the best images: those that return jump in the next step
        again = tired.view(-1, 1, 1, 1)
        moved = torch.where(jumping, windows.pick(choice).float(), self.current)
        self.current = torch.where(again, self.best, moved)
        self.harm = self.harm * ~again.unsqueeze(4)
        self.step = torch.where(again, self.step / 2, self.step)
        self.stale = torch.where(tired, 0, self.stale)
