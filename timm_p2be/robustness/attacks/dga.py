"""DGA, the discrete gradient attack: jump to the level that the gradient at the current codes favors."""

import torch
from torch import Generator, Tensor, nn

from timm_p2be.robustness.attacks.attack import Attack, Cost, check_count
from timm_p2be.robustness.attacks.code_model import CodeModel
from timm_p2be.robustness.attacks.windows import Windows


class DGA(Attack):
    """Discrete Gradient Ascent (Buckman et al., ICLR 2018) for any table of codes.

    Starts at a random image within the bound. In each step every value jumps to the legal level j that, to first order
    at the current codes e_k, raises the cross-entropy most: the largest <dL/de, e_j - e_k>; the first image that is
    misclassified is kept. The published code (anishathalye/obfuscated-gradients, thermometer/discretization_attacks.py)
    weighs single bits instead, which for thermometer codes is not the first-order change (docs/protocol.md).
    """

    kind = 'white-box'

    def __init__(self, model: nn.Module, eps: int = 8, steps: int = 7, name: str = 'dga') -> None:
        super().__init__(model, eps, name)
        check_count('steps', steps)
        self.steps = steps
        self._network = CodeModel(self.model)

    def cost(self) -> Cost:
        return Cost(1, self.steps)

    def _attack(self, levels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        table = self._network.table()
        noise = torch.rand(levels.shape, generator=generator).to(levels.device)
        current = (levels + (2 * noise - 1) * self.eps).round().clamp(0, 255).to(torch.uint8)
        standing = torch.arange(len(levels), device=levels.device)
        for _ in range(self.steps):
            # the gradient pass also tells which images have fallen already
            planes = table[current[standing].permute(0, 2, 3, 1).long()]
            logits, slope = self._network.gradient(planes, labels[standing])
            alive = logits.argmax(dim=1) == labels[standing]
            standing = standing[alive]
            if len(standing) == 0:
                break
            windows = Windows(levels[standing], self.eps)
            harm = windows.compare(slope[alive], table).masked_fill_(~windows.legal, -torch.inf)
            current[standing] = windows.pick(harm.argmax(dim=1))
        return current
