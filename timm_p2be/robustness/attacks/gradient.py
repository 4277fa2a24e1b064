"""PGD and APGD on pixel levels, through any surrogate of the lookup (BPDA)."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from timm_p2be.encodings import pixel_levels
from timm_p2be.robustness.attacks.attack import Cost
from timm_p2be.robustness.attacks.attempts import check_count
from timm_p2be.robustness.attacks.surrogates import attack_view
from timm_p2be.robustness.attacks.windows import check_eps, check_images
from timm_p2be.robustness.pixel_model import PixelModel

LOSSES = ('ce', 'margin')


class PGD:
    """Projected gradient descent with sign steps (Madry et al., ICLR 2018) in the L-infinity ball.

    The iterate is a real number of levels; the network sees it rounded, so every step judges the image that would be
    returned, and the first that is misclassified is kept.

    Args:
        model: encoded or not.
        eps: bound in levels, 0 to 255.
        surrogate: of `attack_view`.
        steps: at least 1; with 1 it is FGSM from the clean image, with a step of `eps`.
        step_size: in levels; None is 2.5 eps / steps, at least half a level.
        restarts: the first starts at the clean image, the others at random in the ball.
        loss: 'ce', or 'margin': largest wrong logit less the right one.
        sigma: see `attack_view`.
        stop: at the first misclassified iterate; else climb on and keep the one of largest margin, which transfers
            better to other models.
        name: in reports; None is 'pgd-SURROGATE' or 'fgsm-SURROGATE'.

    Raises:
        ValueError: an argument out of range.
    """

    algorithm = 'pgd'

    def __init__(
        self,
        model: PixelModel,
        eps: int = 8,
        surrogate: str = 'kernel',
        steps: int = 40,
        step_size: float | None = None,
        restarts: int = 1,
        loss: str = 'ce',
        sigma: float = 4.0,
        stop: bool = True,
        name: str | None = None,
    ) -> None:
        check_eps(eps)
        check_count('steps', steps)
        check_count('restarts', restarts)
        if step_size is not None and not 0 < step_size < math.inf:
            raise ValueError(f'Got step_size={step_size!r}; it is a positive number of levels.')
        if loss not in LOSSES:
            raise ValueError(f'Unknown loss {loss!r}; choose one of {list(LOSSES)}.')
        self.model = model
        self.eps = eps
        self.surrogate = surrogate
        self.steps = steps
        self.step_size = step_size if step_size is not None else (eps if steps == 1 else max(2.5 * eps / steps, 0.5))
        self.restarts = restarts
        self.stop = stop
        self.loss = loss
        self.kind = 'one-step' if steps == 1 else 'white-box'
        self.name = name or self._default_name()
        self._view = attack_view(model, surrogate, sigma)

    def _default_name(self) -> str:
        if self.steps == 1:
            return f'fgsm-{self.surrogate}'
        return f'{self.algorithm}-{self.surrogate}' + ('-margin' if self.loss == 'margin' else '')

    def cost(self) -> Cost:
        """Return the most an image can cost: a gradient a step, and the judgement of the last iterate."""
        return Cost(self.restarts, self.restarts * self.steps)

    def __call__(self, levels: Tensor, labels: Tensor, generator: Generator | None = None) -> Tensor:
        """Return uint8 (B, 3, H, W) images within `eps` of `levels`; see `timm_p2be.robustness.attacks.attack`."""
        check_images(levels)
        generator = generator or torch.Generator().manual_seed(0)
        result = levels.clone()
        standing = torch.arange(len(levels), device=levels.device)
        for restart in range(self.restarts):
            clean = levels[standing].float()
            start = clean.clone() if restart == 0 else self._project(clean + self._noise(clean, generator), clean)
            attempt, margin = self._climb(start, clean, labels[standing])
            fallen = margin > 0
            result[standing] = pixel_levels(attempt / 255)
            standing = standing[~fallen]
            if len(standing) == 0:
                break
        return result

    def _climb(self, current: Tensor, clean: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first misclassified iterate of each image, or the one of largest margin, and that margin."""
        best, margins = current.clone(), torch.full((len(clean),), -math.inf, device=clean.device)
        alive = torch.arange(len(clean), device=clean.device)
        for _ in range(self.steps):
            margin, gradient = self._gradient(current[alive], labels[alive])[1:]
            alive, gradient = _keep(best, margins, current, margin, alive, gradient, self.stop)
            if len(alive) == 0:
                return best, margins
            current[alive] = self._project(current[alive] + self.step_size * gradient.sign(), clean[alive])
        with torch.no_grad():
            margin = _margin(self._view(current[alive] / 255), labels[alive])
        _keep(best, margins, current, margin, alive, margin, self.stop)
        return best, margins

    def _gradient(self, current: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of each image, its margin, and the gradient of the loss."""
        with torch.enable_grad():
            images = (current / 255).requires_grad_()
            logits = self._view(images)
            margin = _margin(logits, labels)
            loss = (
                margin if self.loss == 'margin' else torch.nn.functional.cross_entropy(logits, labels, reduction='none')
            )
            return loss.detach(), margin.detach(), torch.autograd.grad(loss.sum(), images)[0]

    def _project(self, images: Tensor, clean: Tensor) -> Tensor:
        return images.clamp(clean - self.eps, clean + self.eps).clamp(0, 255)

    def _noise(self, clean: Tensor, generator: Generator) -> Tensor:
        return self.eps * (2 * torch.rand(clean.shape, generator=generator).to(clean.device) - 1)


class APGD(PGD):
    """Auto-PGD (Croce and Hein, ICML 2020): momentum, and a step size that halves where the loss stops rising.

    Step sizes and checkpoints are those of their Algorithm 1: the first step is 2 eps, an image's step is halved, and
    the search goes on from its best point, when fewer than 75 % of the steps since the last checkpoint raised the loss
    or when neither step nor best loss has changed. Checkpoints lie at .22, then ever closer, at least .06 of the steps
    apart.

    Args: as `PGD`, without `step_size`.
    """

    algorithm = 'apgd'

    def __init__(
        self,
        model: PixelModel,
        eps: int = 8,
        surrogate: str = 'kernel',
        steps: int = 100,
        restarts: int = 1,
        loss: str = 'ce',
        sigma: float = 4.0,
        stop: bool = True,
        name: str | None = None,
    ) -> None:
        if steps < 2:
            raise ValueError(f'Got steps={steps}; APGD needs at least 2.')
        super().__init__(model, eps, surrogate, steps, None, restarts, loss, sigma, stop, name)

    def _climb(self, current: Tensor, clean: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        best, margins = current.clone(), torch.full((len(clean),), -math.inf, device=clean.device)
        alive = torch.arange(len(clean), device=clean.device)
        state = _Ascent(current, clean, 2.0 * max(self.eps, 1))
        checkpoints = _checkpoints(self.steps)
        for step in range(self.steps):
            loss, margin, gradient = self._gradient(state.current, labels[alive])
            current[alive] = state.current
            still, _ = _keep(best, margins, current, margin, alive, gradient, self.stop)
            state.record(loss, gradient)
            if len(still) < len(alive):
                state.select(torch.isin(alive, still))
                alive = still
                if len(alive) == 0:
                    return best, margins
            if step in checkpoints:
                state.check(step - checkpoints[step])
            state.move(self._project, momentum=0.75 if step else 1.0)
        with torch.no_grad():
            margin = _margin(self._view(state.current / 255), labels[alive])
        current[alive] = state.current
        _keep(best, margins, current, margin, alive, margin, self.stop)
        return best, margins


class _Ascent:
    """What APGD remembers of each image still standing."""

    def __init__(self, current: Tensor, clean: Tensor, step: float) -> None:
        self.current = current.clone()
        self.previous = current.clone()
        self.clean = clean
        self.best = current.clone()
        self.gradient = torch.zeros_like(current)
        self.best_gradient = torch.zeros_like(current)
        self.loss = torch.full((len(current),), -math.inf, device=current.device)
        self.best_loss = self.loss.clone()
        self.step = torch.full_like(self.loss, step)
        self.rises = torch.zeros_like(self.loss)
        self.checked_loss = self.loss.clone()
        self.halved = torch.zeros_like(self.loss, dtype=torch.bool)

    def record(self, loss: Tensor, gradient: Tensor) -> None:
        """Take note of the loss and gradient at the current points."""
        self.rises += loss > self.loss
        self.loss = loss
        self.gradient = gradient
        better = loss > self.best_loss
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.best[better] = self.current[better]
        self.best_gradient[better] = gradient[better]

    def check(self, steps: int) -> None:
        """Halve the steps of the images that `steps` steps have brought too little, and send them to their best."""
        stuck = ~self.halved & (self.checked_loss >= self.best_loss)
        halve = (self.rises < 0.75 * steps) | stuck
        self.step = torch.where(halve, self.step / 2, self.step)
        self.current[halve] = self.best[halve]
        self.gradient[halve] = self.best_gradient[halve]
        self.halved = halve
        self.checked_loss = self.best_loss.clone()
        self.rises.zero_()

    def move(self, project: Callable[[Tensor, Tensor], Tensor], momentum: float) -> None:
        """Take a step, keeping part of the last one."""
        step = self.step.view(-1, 1, 1, 1)
        plain = project(self.current + step * self.gradient.sign(), self.clean)
        ahead = self.current + momentum * (plain - self.current) + (1 - momentum) * (self.current - self.previous)
        self.previous, self.current = self.current, project(ahead, self.clean)

    def select(self, kept: Tensor) -> None:
        """Forget the images that are not `kept`."""
        for name, value in vars(self).items():
            setattr(self, name, value[kept])


def _checkpoints(steps: int) -> dict[int, int]:
    """Return checkpoint -> the one before it."""
    result, last, share, gap = {}, 0, 0.22, 0.22
    while (step := math.ceil(round(share * steps, 6))) < steps:  # .57 * 100 is a little more than 57
        result[step] = last
        last = step
        gap = max(gap - 0.03, 0.06)
        share += gap
    return result


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the largest wrong logit less the right one, (B,); an image has fallen where it is positive."""
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return logits.scatter(1, labels.unsqueeze(1), -math.inf).amax(dim=1) - own


def _keep(
    best: Tensor, margins: Tensor, current: Tensor, margin: Tensor, alive: Tensor, gradient: Tensor, stop: bool
) -> tuple[Tensor, Tensor]:
    """Store the iterates that beat their image's best; return the images to go on with and their gradients."""
    better = margin > margins[alive]
    chosen = alive[better]
    best[chosen] = current[chosen]
    margins[chosen] = margin[better]
    stands = (margin <= 0) | (not stop)
    return alive[stands], gradient[stands]
