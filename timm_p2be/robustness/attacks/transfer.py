"""Images made to fool another model: what an attacker can do who may not even query the attacked one."""

from torch import Generator, Tensor, nn

from timm_p2be.robustness.attacks.attack import Attack, Cost
from timm_p2be.robustness.attacks.attempts import Attempts


class Transfer(Attack):
    """An attack on a source model whose images are handed to the attacked one, whatever that makes of them.

    As strong as the source, an attack built on another model, whose bound it has: one that stops at that model's
    decision boundary transfers badly. The attacked model is only asked which images it gets wrong anyway.
    """

    kind = 'transfer'

    def __init__(self, model: nn.Module, source: Attack, name: str | None = None) -> None:
        super().__init__(model, source.eps, name or f'transfer-{source.model.name}')
        self.source = source

    def cost(self) -> Cost:
        forwards, backwards = self.source.cost()
        return Cost(1 + forwards, backwards)

    def _attack(self, levels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        attempts = Attempts(self.model, levels, labels)
        standing = attempts.standing()
        if len(standing):
            attempts.levels[standing] = self.source(levels[standing], labels[standing], generator)
        return attempts.levels
