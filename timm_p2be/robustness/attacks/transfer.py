"""Images made to fool another model: what an attacker can do who may not even query the attacked one."""

from torch import Generator, Tensor, nn

from timm_p2be.robustness.attacks.attack import Attack, Cost
from timm_p2be.robustness.attacks.attempts import Attempts


class Transfer(Attack):
    """An attack on a source model whose images are handed to the attacked one, whatever that makes of them.

    As strong as the source: an attack that stops at the source's decision boundary transfers badly.

    Args:
        model: attacked; only asked which images it gets wrong anyway.
        eps: bound in levels, 0 to 255, that of `source`.
        source: attack built on another model.
        name: in reports; None is 'transfer-' and the name of the source's model.

    Example:
        >>> import timm, torch
        >>> from timm_p2be.robustness.attacks import PGD
        >>> attacked, other = (timm.create_model('resnet10t', num_classes=10) for _ in range(2))
        >>> images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        >>> Transfer(attacked, 8, PGD(other, 8, steps=2, stop=False))(images, torch.tensor([3, 1])).shape
        torch.Size([2, 3, 32, 32])
    """

    kind = 'transfer'

    def __init__(self, model: nn.Module, eps: int, source: Attack, name: str | None = None) -> None:
        super().__init__(model, eps, name or f'transfer-{source.model.name}')
        if source.eps != eps:
            raise ValueError(
                f'Got eps={eps} and a source attack with eps={source.eps}; its images would not keep to the bound, or '
                f'not use it. Build the source with eps={eps}.'
            )
        self.source = source

    def cost(self) -> Cost:
        """Return the clean image's query of the attacked model, and the source attack's cost on its own model."""
        forwards, backwards = self.source.cost()
        return Cost(1 + forwards, backwards)

    def _attack(self, levels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        attempts = Attempts(self.model, levels, labels)
        standing = attempts.standing()
        if len(standing):
            attempts.levels[standing] = self.source(levels[standing], labels[standing], generator)
        return attempts.levels
