"""Images made to fool another model: what an attacker can do who may not even query the attacked one."""

from torch import Generator, Tensor

from timm_p2be.robustness.attacks.attack import Attack, Cost
from timm_p2be.robustness.attacks.attempts import Attempts
from timm_p2be.robustness.attacks.windows import check_eps
from timm_p2be.robustness.pixel_model import PixelModel


class Transfer:
    """An attack on a source model whose images are handed to the attacked one, whatever that makes of them.

    As strong as the source: an attack that stops at the source's decision boundary transfers badly.

    Args:
        model: attacked; only asked which images it gets wrong anyway.
        eps: bound in levels, 0 to 255, that of `source`.
        source: attack built on another model.
        name: in reports; None is 'transfer-' and the name of the source's model.

    Raises:
        ValueError: `eps` is out of range or not that of `source`.
    """

    kind = 'transfer'

    def __init__(self, model: PixelModel, eps: int, source: Attack, name: str | None = None) -> None:
        check_eps(eps)
        if source.eps != eps:
            raise ValueError(
                f'Got eps={eps} and a source attack with eps={source.eps}; its images would not keep to the bound, or '
                f'not use it. Build the source with eps={eps}.'
            )
        self.model = model
        self.eps = eps
        self.source = source
        origin = getattr(source, 'model', None)
        self.name = name or f'transfer-{getattr(origin, "name", source.name)}'

    def cost(self) -> Cost:
        """Return the clean image's query of the attacked model, and the source attack's cost on its own model."""
        forwards, backwards = self.source.cost()
        return Cost(1 + forwards, backwards)

    def __call__(self, levels: Tensor, labels: Tensor, generator: Generator | None = None) -> Tensor:
        """Return the source attack's images, except where the model gets the clean image wrong; see `Attack`.

        Raises:
            ValueError: `levels` is not uint8 (B, 3, H, W).
        """
        attempts = Attempts(self.model, levels, labels)
        standing = attempts.standing()
        if len(standing):
            attempts.levels[standing] = self.source(levels[standing], labels[standing], generator)
        return attempts.levels
