"""The paper's training objectives as timm tasks: on augmented views (Eq. 10), and adversarial (Eq. 11 and 12)."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_p2be.losses import REDUCTIONS, at_least_float32, jensen_shannon, smoothness_loss
from timm_p2be.robustness.attacks.training_attack import TrainingAttack
from timm_p2be.stem import learned_embedding

_logger = logging.getLogger(__name__)


class P2BETask(ClassificationTask):
    """Trains by L = CE(clean view) + alpha JSD(all views) + lambda L_smooth (Eq. 10 of the paper).

    All views go through the network in one forward, so that batch normalization sees them together, as in
    google-research/augmix, cifar.py; the cross-entropy sees the first, clean view only.

    Args:
        alpha: weight of the divergence, at least 0; 12 in the paper (section IV-B) and in AugMix. Unused with one view.
        smoothness: lambda, weight of the smoothness loss: 1.0 on CIFAR-100, 10.0 on ImageNet, both with 'mean'
            (`docs/protocol.md`). Must be 0 for models without a learned table: RGB, one-hot, thermometer.
        num_views: V: 3 for AugMix (clean, mixed, mixed), 1 for plain images.
        criterion: loss of the clean view; None is cross-entropy, by timm's loss factory with `criterion_kwargs`.

    Example:
        >>> import timm
        >>> task = P2BETask(timm.create_model('wrn10_2_p2be'))
        >>> sorted(task(torch.rand(6, 3, 32, 32), torch.tensor([1, 7])))
        ['ce', 'jsd', 'loss', 'output', 'smoothness']
    """

    parts: tuple[str, ...] = ('ce', 'jsd', 'smoothness')  # scalars of the result, for logs

    def __init__(
        self,
        model: nn.Module,
        alpha: float = 12.0,
        smoothness: float = 1.0,
        reduction: str = 'mean',
        num_views: int = 3,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        criterion_kwargs: dict[str, Any] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        for name, value in (('alpha', alpha), ('smoothness', smoothness)):
            if not value >= 0:
                raise ValueError(f'Got {name}={value!r}; it must be 0 or larger (0 switches the term off).')
        if reduction not in REDUCTIONS:
            raise ValueError(f'Unknown reduction {reduction!r}; choose one of {list(REDUCTIONS)}.')
        if num_views < 1:
            raise ValueError(f'Got num_views={num_views}; use 1 for plain images, 3 for AugMix with its clean view.')
        super().__init__(model, criterion, criterion_kwargs, device=device, dtype=dtype, verbose=verbose)
        self.alpha = alpha
        self.smoothness = smoothness
        self.reduction = reduction
        self.num_views = num_views
        # in a tuple, so that the task does not list the embedding a second time among its own modules
        self._embedding = (learned_embedding(model),)
        if smoothness > 0 and self._embedding[0] is None:
            raise ValueError(
                f'Got smoothness={smoothness!r}, but {type(model).__name__} has no learned table (pixel values, onehot '
                'and thermometer have none); pass smoothness=0.'
            )
        self._labels_checked = False
        if verbose:
            _logger.info(f'{type(self).__name__}: {self.extra_repr()}')

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the objective of one batch.

        Args:
            input: (V B, C, H, W) images, views-major, as timm's `fast_collate` stacks tuples of views.
            target: (B,) labels, or (V B,) labels repeated for every view as `fast_collate` does.

        Returns:
            'loss' to call backward on; 'output', the (B, K) logits of the clean view; and the unweighted parts as
            detached float32 scalars: 'ce', 'jsd' (0 with one view) and 'smoothness' (0 without a learned table).
        """
        batch = self._clean_batch(input, target)
        return self._train(input, target[:batch])[1]

    def _train(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits of all views, and the objective: all of a step that is compiled."""
        logits = self.trainable_module(images)
        return logits, self.objective(logits, labels)

    def compile(
        self, backend: str = 'inductor', mode: str | None = None, dynamic: bool | None = None, **kwargs: Any
    ) -> nn.Module:
        """Compile network and objective together, and the network alone for validation; arguments as `torch.compile`.

        One graph serves all batch sizes (`dynamic=False` compiles each by itself). What `prepare_distributed` wraps is
        the network alone, whose objective then runs eagerly.
        """
        network = torch.compile(self.trainable_module, backend=backend, mode=mode, dynamic=dynamic, **kwargs)
        step = torch.compile(self._train, backend=backend, mode=mode, dynamic=dynamic, **kwargs)
        self.eval_model = cast(nn.Module, network)

        def train(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            if dynamic is None:
                for tensor in (images, labels):
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
            return step(images, labels)

        self._train = train  # type: ignore[method-assign]
        return self.eval_model

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> 'P2BETask':
        """As timm's."""
        if '_train' in vars(self):
            del self._train
            self.trainable_module: nn.Module = self.eval_model
        super().prepare_distributed(device_ids, **ddp_kwargs)
        return self

    def objective(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return what `forward` returns, from the (V B, K) logits of all views, V >= 1, and the (B,) labels."""
        clean, views = logits[: len(labels)], len(logits) // len(labels)
        ce = self.criterion(at_least_float32(clean), labels)
        jsd = jensen_shannon(logits, views) if views > 1 else ce.new_zeros(())
        # read outside the model's forward: DistributedDataParallel still reduces the table's whole gradient, once
        roughness = ce.new_zeros(())
        if (embedding := self._embedding[0]) is not None:
            roughness = smoothness_loss(cast(Tensor, embedding.weight), self.reduction)
        loss = ce
        if self.alpha > 0:
            loss = loss + self.alpha * jsd
        if self.smoothness > 0:
            loss = loss + self.smoothness * roughness
        parts = {'ce': ce.detach(), 'jsd': jsd.detach(), 'smoothness': roughness.detach()}
        return {'loss': loss, 'output': clean, **parts}

    def _clean_batch(self, images: Tensor, labels: Tensor) -> int:
        """Return B, or raise ValueError if the batch does not consist of `num_views` views."""
        batch, rest = divmod(len(images), self.num_views)
        if rest or batch == 0 or len(labels) not in (batch, len(images)):
            raise ValueError(
                f'Got {len(images)} images and {len(labels)} labels with num_views={self.num_views}; allowed are '
                f'{self.num_views} * B images, one view after another, and B labels or {self.num_views} * B.'
            )
        # only the first batch: the comparison waits for the device, and breaks a graph
        repeated = len(labels) != len(images) or torch.compiler.is_compiling() or self._labels_checked
        if not (repeated or (labels.unflatten(0, (self.num_views, batch)) == labels[:batch]).all()):
            raise ValueError(
                f'Got {len(images)} images whose labels are not {self.num_views} times the same; they are no '
                f'{self.num_views} views of {batch} images. Stack the views one after another, or use num_views=1.'
            )
        if not torch.compiler.is_compiling():
            self._labels_checked = True
        return batch

    def extra_repr(self) -> str:
        return (
            f'alpha={self.alpha}, smoothness={self.smoothness}, reduction={self.reduction!r}, '
            f'num_views={self.num_views}'
        )


class _AdversarialTask(P2BETask):
    """What both kinds of adversarial training share."""

    parts = (*P2BETask.parts, 'adversarial_error')
    _clean_view: bool  # whether the network trains on the clean images, too

    def __init__(
        self,
        model: nn.Module,
        alpha: float = 12.0,
        smoothness: float = 1.0,
        reduction: str = 'mean',
        eps: int = 8,
        steps: int = 7,
        step_size: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        self.attack = TrainingAttack(model, eps, steps, step_size, mean, std, seed)
        super().__init__(model, alpha, smoothness, reduction, num_views=1, **kwargs)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the objective of one batch.

        Args:
            input: (B, 3, H, W) clean images, as the model reads them.
            target: (B,) labels.

        Returns:
            As `P2BETask`, 'output' being the logits of the clean images or, where the network does not see these, of
            the adversarial ones; and 'adversarial_error', percent of the adversarial images that the network, in its
            present mode, gets wrong.
        """
        batch = self._clean_batch(input, target)
        adversarial = self.attack(unwrap_model(self.trainable_module), input, target)
        logits, result = self._train(torch.cat([input, adversarial]) if self._clean_view else adversarial, target)
        wrong = (logits[-batch:].argmax(dim=1) != target).float().mean()
        return {**result, 'adversarial_error': 100 * wrong}

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Return what a checkpoint needs for the noise to go on where it stopped."""
        return {} if ema else {'batches': self.attack.batches}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Go on with the noise of a checkpoint; one of another task has none, and it starts afresh."""
        if state and not ema:
            self.attack.batches = state['batches']

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, {self.attack}'


class ConTrainTask(_AdversarialTask):
    """Trains by L = CE(clean) + alpha JSD(clean, adversarial) + lambda L_smooth (Eq. 11 and 12 of the paper).

    Each image gets an adversarial version by the network as it is, in evaluation mode, and both go through the network
    in one forward. Encoded networks are attacked by LS-PGA; networks of pixel values, which the paper leaves out, by
    as many steps of PGD from a random start. Noise depends on seed, process and number of the batch alone, and that
    number is in checkpoints.

    Arguments are those of `P2BETask`, and:

    Args:
        smoothness: 1.0 on CIFAR-10, 0.1 on CIFAR-100 (Table V); 0 for models without a learned table.
        eps: largest change of a pixel value, in levels, 1 to 255.
        steps: of the attack, at least 1.
        step_size: above 0; None is 1.0 in the logits of LS-PGA (xi), 2.5 eps / steps levels for PGD.
        mean: of the normalization of the images, 3 values on the [0, 1] scale, for networks of pixel values; None
            takes the model's own, of its `pretrained_cfg`.
        std: likewise.
        seed: of the noise.

    Example:
        >>> import timm
        >>> task = ConTrainTask(timm.create_model('wrn10_2_p2be', num_classes=10), steps=1)
        >>> sorted(task(torch.rand(2, 3, 32, 32), torch.tensor([1, 7])))
        ['adversarial_error', 'ce', 'jsd', 'loss', 'output', 'smoothness']
    """

    _clean_view = True


class AdvTrainTask(_AdversarialTask):
    """Trains by L = CE(adversarial) + lambda L_smooth, which the paper sets against `ConTrainTask` (Table IV).

    Arguments are those of `ConTrainTask`, without `alpha`. 'jsd' is 0.
    """

    _clean_view = False

    def __init__(
        self,
        model: nn.Module,
        smoothness: float = 1.0,
        reduction: str = 'mean',
        eps: int = 8,
        steps: int = 7,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, 0.0, smoothness, reduction, eps, steps, **kwargs)
