"""What an attack is to the benchmark: a function from uint8 images to uint8 images, and what it costs at most."""

from typing import NamedTuple, Protocol

from torch import Generator, Tensor

# Rough order of strength and of what the attacker knows; the automatic checks compare kinds.
KINDS = ('noise', 'transfer', 'one-step', 'white-box', 'score', 'decision')


class Cost(NamedTuple):
    """Most that one image can cost: calls of the model without and with a backward pass."""

    forwards: int
    backwards: int


class Attack(Protocol):
    """An attack on one model with one bound, both fixed when it is built.

    Attributes:
        name: unique in a benchmark, such as 'lspga-official'.
        kind: one of `KINDS`.
        eps: largest change of a pixel value, in levels.
    """

    name: str
    kind: str
    eps: int

    def cost(self) -> Cost:
        """Return the budget of one image."""

    def __call__(self, levels: Tensor, labels: Tensor, generator: Generator | None = None) -> Tensor:
        """Return an attempt for each image: uint8 (B, 3, H, W), at most `eps` levels from `levels`.

        Args:
            levels: uint8 (B, 3, H, W) clean images, on the model's device.
            labels: int64 (B,) true labels.
            generator: CPU source of all randomness; None starts one from seed 0.
        """
