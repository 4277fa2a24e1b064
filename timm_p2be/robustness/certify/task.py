"""Certified training by interval bounds."""

from typing import Any

from timm.task import ClassificationTask
from torch import Tensor, nn

from timm_p2be.encodings import pixel_levels
from timm_p2be.robustness.attacks.attack import check_counts, check_eps
from timm_p2be.robustness.certify.intervals import IntervalNetwork
from timm_p2be.robustness.certify.margins import margin_bounds
from timm_p2be.robustness.pixel_model import PixelModel


class IBPTask(ClassificationTask):
    """Trains by L = (1 - kappa) CE(clean) + kappa CE(worst logits within eps levels) (Gowal et al., 2018, Eq. 12).

    The worst logits have the label's least lead over every class. Over the first `warmup` calls in training mode the
    intervals grow from nothing to the whole ball and kappa from 0 to its value. The table of a P2BE stem gets its
    gradient through the sliding maximum of its rows, so that training smooths it where it needs to.

    Args:
        model: timm classifier whose layers `IntervalNetwork` understands.
        eps: levels, at least 1.

    Example:
        >>> import timm
        >>> task = IBPTask(timm.create_model('wrn10_2_p2be', num_classes=10), eps=1)
        >>> sorted(task(torch.rand(4, 3, 32, 32), torch.tensor([1, 7, 7, 0])))
        ['ce', 'loss', 'output', 'worst']
    """

    def __init__(self, model: nn.Module, eps: int = 1, kappa: float = 0.5, warmup: int = 1000, **kwargs: Any) -> None:
        check_eps(eps)
        check_counts(eps=eps, warmup=warmup)
        if not 0 <= kappa <= 1:
            raise ValueError(f'Got kappa={kappa!r}; the weight of the worst case is 0 to 1.')
        super().__init__(model, **kwargs)
        self.eps, self.kappa, self.warmup = eps, kappa, warmup
        self.updates = 0
        mode = model.training
        self._network = IntervalNetwork(PixelModel(model))  # no module: its weights are the model's
        model.train(mode)

    def prepare_distributed(self, device_ids: list[int] | None = None, **ddp_kwargs: Any) -> 'IBPTask':
        raise ValueError('IBPTask reads the network layer by layer, past DistributedDataParallel; use one process.')

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the objective of (B, 3, H, W) images, uint8 levels or floats in [0, 1], and (B,) labels.

        Returns:
            'loss', 'output' (the (B, K) logits of the images), and detached scalars: 'ce' and 'worst', the two parts.
        """
        share = 1.0
        if self.training:
            self.updates += 1
            share = min(self.updates / self.warmup, 1.0)
        bounds = self._network.propagate(pixel_levels(input), self.eps, share)
        logits = bounds.logits.center.float()
        ce = self.criterion(logits, target)
        worst = self.criterion(-margin_bounds(bounds, target).float(), target)
        kappa = self.kappa * share
        loss = (1 - kappa) * ce + kappa * worst
        return {'loss': loss, 'output': logits, 'ce': ce.detach(), 'worst': worst.detach()}
