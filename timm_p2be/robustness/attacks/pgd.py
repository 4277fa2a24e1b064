"""PGD on pixel levels, through any surrogate of the lookup (BPDA)."""

import math

import torch
from torch import Generator, Tensor, nn

from timm_p2be.encodings import pixel_levels
from timm_p2be.robustness.attacks.attack import Attack, Cost, check_count, margin
from timm_p2be.robustness.attacks.surrogates import attack_view, choose_surrogate

LOSSES = ('ce', 'margin')


class PGD(Attack):
    """Projected gradient descent with sign steps (Madry et al., ICLR 2018) in the L-infinity ball.

    The iterate is a real number of levels; the network sees it rounded, so every step judges the image that would be
    returned, and the first that is misclassified is kept.

    Args: as `Attack`, and
        surrogate: of `attack_view`.
        steps: at least 1, by default 40; with 1 it is FGSM from the clean image, with a step of `eps`.
        step_size: in levels; None is 2.5 eps / steps, at least half a level.
        restarts: the first starts at the clean image, the others at random in the ball.
        loss: 'ce', or 'margin': largest wrong logit less the right one.
        sigma: see `attack_view`.
        stop: at the first misclassified iterate; else climb on and keep the one of lowest margin, which transfers
            better to other models.
    """

    algorithm, usual_steps = 'pgd', 40

    def __init__(
        self,
        model: nn.Module,
        eps: int = 8,
        surrogate: str = 'auto',
        steps: int | None = None,
        step_size: float | None = None,
        restarts: int = 1,
        loss: str = 'ce',
        sigma: float = 4.0,
        stop: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(model, eps, name or '')
        steps = self.usual_steps if steps is None else steps
        check_count('steps', steps)
        check_count('restarts', restarts)
        if step_size is not None and not 0 < step_size < math.inf:
            raise ValueError(f'Got step_size={step_size!r}; it is a positive number of levels.')
        if loss not in LOSSES:
            raise ValueError(f'Unknown loss {loss!r}; choose one of {list(LOSSES)}.')
        self.surrogate = choose_surrogate(self.model, surrogate)
        self.steps = steps
        self.step_size = step_size if step_size is not None else self._usual_step_size()
        self.restarts = restarts
        self.stop = stop
        self.loss = loss
        self.kind = 'one-step' if steps == 1 else 'white-box'
        self.name = name or self._default_name()
        self._view = attack_view(self.model, self.surrogate, sigma)

    def _usual_step_size(self) -> float:
        return self.eps if self.steps == 1 else max(2.5 * self.eps / self.steps, 0.5)

    def _default_name(self) -> str:
        if self.steps == 1:
            return f'fgsm-{self.surrogate}'
        return f'{self.algorithm}-{self.surrogate}' + ('-margin' if self.loss == 'margin' else '')

    def cost(self) -> Cost:
        return Cost(self.restarts, self.restarts * self.steps)

    def _attack(self, levels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        result = levels.clone()
        standing = torch.arange(len(levels), device=levels.device)
        for restart in range(self.restarts):
            clean = levels[standing].float()
            start = clean
            if restart > 0:
                noise = 2 * torch.rand(clean.shape, generator=generator).to(clean.device) - 1
                start = clean + self.eps * noise
            attempt, margins = self._climb(self._ascent(start, clean), labels[standing])
            result[standing] = pixel_levels(attempt / 255)
            standing = standing[~(margins < 0)]
            if len(standing) == 0:
                break
        return result

    def _climb(self, ascent: 'Ascent', labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first misclassified iterate of each image, or the one of lowest margin, and that margin."""
        best, margins = ascent.current.clone(), torch.full((len(labels),), math.inf, device=labels.device)
        alive = torch.arange(len(labels), device=labels.device)
        for step in range(self.steps + 1):
            last = step == self.steps
            now, loss, gradient = self._look(ascent.current, labels[alive], with_gradient=not last)
            better = now < margins[alive]
            best[alive[better]] = ascent.current[better]
            margins[alive[better]] = now[better]
            going = (now >= 0) | (not self.stop)
            alive = alive[going]
            if last or len(alive) == 0:
                break
            ascent.select(going)
            ascent.move(step, loss[going], gradient[going])
        return best, margins

    def _ascent(self, start: Tensor, clean: Tensor) -> 'Ascent':
        """Return the rule by which images move, at the start."""
        return Ascent(start, clean, self.eps, self.step_size)

    def _look(self, current: Tensor, labels: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return margins, losses and, if wanted, the gradient of the losses."""
        with torch.set_grad_enabled(with_gradient):
            images = (current / 255).requires_grad_(with_gradient)
            logits = self._view(images)
            margins = margin(logits, labels)
            loss = -margins
            if self.loss == 'ce':
                loss = nn.functional.cross_entropy(logits, labels, reduction='none')
            gradient = torch.autograd.grad(loss.sum(), images)[0] if with_gradient else images
        return margins.detach(), loss.detach(), gradient


class Ascent:
    """Steps of one size along the sign of the gradient, from `start` in the ball round `clean`, float32 (N, 3, H, W).

    Every tensor has a row for each image that still moves.
    """

    def __init__(self, start: Tensor, clean: Tensor, eps: int, step: float) -> None:
        self.low, self.high = (clean - eps).clamp(min=0), (clean + eps).clamp(max=255)
        self.current = self.project(start)
        self.step = torch.full((len(start), 1, 1, 1), step, dtype=start.dtype, device=start.device)

    def move(self, index: int, loss: Tensor, gradient: Tensor) -> None:
        """Take step number `index` from the current images, which have this loss and gradient."""
        self.current = self.project(self.current + self.step * gradient.sign())

    def project(self, images: Tensor) -> Tensor:
        """Move images into the ball."""
        return images.clamp(self.low, self.high)

    def select(self, kept: Tensor) -> None:
        """Forget the images that are not `kept`."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[kept])
