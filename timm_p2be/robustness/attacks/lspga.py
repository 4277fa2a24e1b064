"""LS-PGA, the attack on discretized pixels of the paper's adversarial experiments, for any table of codes."""

import math

import torch
from torch import Generator, Tensor, nn

from timm_p2be.robustness.attacks.attack import Attack, Cost, check_counts
from timm_p2be.robustness.attacks.attempts import Attempts
from timm_p2be.robustness.attacks.code_model import CodeModel
from timm_p2be.robustness.attacks.windows import Windows
from timm_p2be.robustness.pixel_model import tied_copy

ANNEALS = ('flatten', 'sharpen')


class LSPGA(Attack):
    """Gradient ascent in the logits u of a distribution over the at most 2 eps + 1 legal levels of every pixel value.

    Logit-Space Projected Gradient Ascent of Buckman et al., ICLR 2018, and of the official P2BE code
    (nutszebra/Pixel-to-Binary-Embedding, lspga.py), which anneals the other way (docs/protocol.md). In each step the
    network sees the expected code z = sum_k softmax(u / T)_k e_k, and u moves by `step_size` times the sign of the
    gradient of the cross-entropy; at the end every value takes its most probable level.

    Arguments are those of `Attack`, and:

    Args:
        steps: gradient steps, at least 1.
        step_size: xi, added to u in each step; above 0.
        anneal_rate: delta, at least 1 (constant temperature).
        anneal: 'flatten' as the P2BE code: T = 1, 1, delta, delta^2, ...; 'sharpen' as Buckman: T = 1, 1/delta, ...
        restarts: random starts u ~ N(0, 1), at least 1; an image that has fallen is not attacked again.

    Example:
        >>> import timm
        >>> images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        >>> LSPGA(timm.create_model('wrn10_2_p2be', num_classes=10), eps=8)(images, torch.tensor([3, 1])).dtype
        torch.uint8
    """

    kind = 'white-box'

    def __init__(
        self,
        model: nn.Module,
        eps: int = 8,
        steps: int = 7,
        step_size: float = 1.0,
        anneal_rate: float = 1.2,
        anneal: str = 'flatten',
        restarts: int = 1,
        name: str = 'lspga',
    ) -> None:
        super().__init__(model, eps, name)
        check_counts(steps=steps, restarts=restarts)
        if not 0 < step_size < math.inf:
            raise ValueError(f'Got step_size={step_size!r}; it must be positive (1.0 in the official code).')
        if not 1 <= anneal_rate < math.inf:
            raise ValueError(f'Got anneal_rate={anneal_rate!r}; it must be at least 1, `anneal` gives the direction.')
        if anneal not in ANNEALS:
            raise ValueError(f'Unknown anneal {anneal!r}; choose one of {list(ANNEALS)}.')
        self.steps = steps
        self.step_size = step_size
        self.anneal_rate = anneal_rate
        self.anneal = anneal
        self.restarts = restarts
        self._network = CodeModel(self.model)
        self._judge = tied_copy(self.model)  # a PixelModel may be training meanwhile

    @classmethod
    def official(cls, model: nn.Module, eps: int = 8) -> 'LSPGA':
        """Return the attack of the paper's Tables IV and V: 7 steps, xi = 1, delta = 1.2, flattening, one start."""
        return cls(model, eps, name='lspga-official')

    def cost(self) -> Cost:
        return Cost(self.restarts, self.restarts * self.steps)

    def _attack(self, levels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        attempts = Attempts(self._judge, levels, labels, clean=False)
        for _, standing in attempts.rounds(self.restarts):
            attempts.offer(standing, self.ascend(levels[standing], labels[standing], generator))
        return attempts.levels

    def ascend(self, levels: Tensor, labels: Tensor, generator: Generator) -> Tensor:
        """Return the end of one climb, uint8 (B, 3, H, W), not judged: what adversarial training wants.

        The generator may be on any device; otherwise as `__call__`.
        """
        windows = Windows(levels, self.eps)
        table = self._network.table()
        start = torch.randn((*levels.shape, windows.width), generator=generator, device=generator.device)
        logits = windows.sort(start.to(levels.device)).masked_fill_(~windows.legal, -math.inf)
        for index in range(self.steps):
            temperature = self._temperature(index)
            shares = torch.softmax(logits / temperature, dim=1)
            slope = windows.compare(self._network.gradient(windows.mix(shares, table), labels), table)
            # softmax backward; exactly 0 where the share is 0, so illegal levels never move
            slope = shares * (slope - (shares * slope).sum(1, keepdim=True)) / temperature
            logits += self.step_size * slope.sign_()
        return windows.pick(logits.argmax(dim=1))

    def _temperature(self, step: int) -> float:
        if self.anneal == 'flatten':
            return self.anneal_rate ** max(step - 1, 0)
        return self.anneal_rate**-step
