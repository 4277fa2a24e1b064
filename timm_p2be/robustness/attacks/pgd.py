"""PGD on pixel levels, through any surrogate of the lookup (BPDA)."""

import math

from torch import Tensor, nn

from timm_p2be.robustness.attacks.attack import check_counts
from timm_p2be.robustness.attacks.climbing import LOSSES, Ascent, Climber, Pass
from timm_p2be.robustness.attacks.surrogates import attack_view, choose_surrogate


class PGD(Climber):
    """Projected gradient descent with sign steps (Madry et al., ICLR 2018) in the L-infinity ball.

    The iterate is a real number of levels.

    Arguments are those of `Climber`, and:

    Args:
        surrogate: of `attack_view`.
        steps: at least 1, by default 40; with 1 it is FGSM from the clean image, with a step of `eps`.
        step_size: in levels; None is 2.5 eps / steps, at least half a level.
        restarts: passes; the first starts at the clean image, the others at random in the ball. With 'target' each is
            a wrong class, likeliest first, and starts at the clean image: at most all of them.
        loss: 'ce', 'margin' or 'target', see `Pass`.
        sigma: see `attack_view`.
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
        sigma: float | None = None,
        stop: bool = True,
        name: str | None = None,
    ) -> None:
        check_counts(restarts=restarts)
        if loss not in LOSSES:
            raise ValueError(f'Unknown loss {loss!r}; choose one of {list(LOSSES)}.')
        targeted = loss == 'target'
        passes = [Pass(loss, number > 0 and not targeted, number * targeted) for number in range(restarts)]
        super().__init__(model, eps, name or '', self.usual_steps if steps is None else steps, passes, stop)
        if targeted and restarts >= self.model.num_classes:
            raise ValueError(
                f'Got restarts={restarts} of a targeted attack on {self.model.num_classes} classes; each has a wrong '
                f'class of its own, so at most {self.model.num_classes - 1}.'
            )
        if step_size is not None and not 0 < step_size < math.inf:
            raise ValueError(f'Got step_size={step_size!r}; it is a positive number of levels.')
        self.surrogate = choose_surrogate(self.model, surrogate)
        self.step_size = step_size if step_size is not None else self._usual_step_size()
        self.loss = loss
        self.kind = 'one-step' if self.steps == 1 else 'white-box'
        self.name = name or self._default_name()
        self._view = attack_view(self.model, self.surrogate, eps, sigma)

    def _usual_step_size(self) -> float:
        return self.eps if self.steps == 1 else max(2.5 * self.eps / self.steps, 0.5)

    def _default_name(self) -> str:
        if self.steps == 1:
            return f'fgsm-{self.surrogate}'
        return f'{self.algorithm}-{self.surrogate}' + (f'-{self.loss}' if self.loss != 'ce' else '')

    def _ascent(self, start: Tensor, clean: Tensor) -> Ascent:
        return Ascent(start, clean, self.eps, self.step_size)

    def _see(self, current: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
        images = (current / 255).requires_grad_(with_gradient)
        return self._view(images), images
