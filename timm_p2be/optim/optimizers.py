"""SGD or AdamW for the network, with AdamW for the pixel embedding's table beside it."""

from typing import Any

from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from timm_p2be.optim.two_rules import TwoRuleOptimizer, beta_pair


class SGDP2BE(TwoRuleOptimizer):
    """SGD for the network, AdamW for the pixel embedding; 'sgdp2be' in timm.

    The network's arithmetic is torch.optim.SGD's. Nesterov momentum is on as in the official code; the paper only says
    "Momentum SGD with momentum of 0.9" (section IV-B).

    Args:
        params: parameters or groups.
        lr: the network's learning rate.
        momentum: the network's momentum.
        weight_decay: L2 penalty on the network's parameters, for groups that do not bring their own.
        dampening: dampening of the momentum.
        nesterov: use Nesterov momentum; needs a momentum and no dampening.
        maximize: ascend instead of descend, both rules.
        foreach: multi-tensor implementation for the network; None lets torch decide.
        **embedding: `embedding_lr`, `embedding_betas`, `embedding_eps`, `embedding_weight_decay`, `embedding_sched`
            of `TwoRuleOptimizer`.

    Raises:
        ValueError: a setting out of range.

    Example:
        >>> from timm.optim import create_optimizer_v2
        >>> from timm_p2be.encodings import PixelEmbedding
        >>> optimizer = create_optimizer_v2(PixelEmbedding(), 'sgdp2be', lr=0.1, embedding_lr=1e-3)
        >>> optimizer.param_groups[0]['lr']
        0.001
    """

    network_settings = ('lr', 'momentum', 'weight_decay', 'dampening', 'nesterov', 'maximize', 'foreach')

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = True,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        **embedding: Any,
    ) -> None:
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError(
                f'Got nesterov=True with momentum={momentum!r} and dampening={dampening!r}; it needs a momentum and no '
                'dampening. Pass nesterov=False (in train.py: --opt-kwargs nesterov=False).'
            )
        defaults = {
            'lr': lr,
            'momentum': momentum,
            'weight_decay': weight_decay,
            'dampening': dampening,
            'nesterov': nesterov,
            'maximize': maximize,
            'foreach': foreach,
        }
        super().__init__(params, defaults, **embedding)

    def _network_rule(self, group: dict[str, Any], lr: float) -> None:
        params = [p for p in group['params'] if p.grad is not None]
        grads = [p.grad for p in params]
        buffers = [self.state[p].get('momentum_buffer') for p in params]
        sgd(
            params,
            grads,
            buffers,
            has_sparse_grad=any(grad.is_sparse for grad in grads),
            foreach=group['foreach'],
            weight_decay=group['weight_decay'],
            momentum=group['momentum'],
            lr=lr,
            dampening=group['dampening'],
            nesterov=group['nesterov'],
            maximize=group['maximize'],
        )
        if group['momentum'] != 0:
            for p, momentum_buffer in zip(params, buffers, strict=True):
                self.state[p]['momentum_buffer'] = momentum_buffer


class AdamWP2BE(TwoRuleOptimizer):
    """AdamW for the network, another AdamW for the pixel embedding; 'adamwp2be' in timm.

    Args:
        params: parameters or groups.
        lr: the network's learning rate.
        betas: the network's coefficients.
        eps: the network's epsilon.
        weight_decay: decoupled weight decay of the network's parameters, for groups that do not bring their own.
        maximize: ascend instead of descend, both rules.
        foreach: multi-tensor implementation for the network; None lets torch decide.
        **embedding: as for `SGDP2BE`.

    Raises:
        ValueError: a setting out of range.
    """

    network_settings = ('lr', 'betas', 'eps', 'weight_decay', 'maximize', 'foreach')

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        **embedding: Any,
    ) -> None:
        defaults = {
            'lr': lr,
            'betas': beta_pair('betas', betas),
            'eps': eps,
            'weight_decay': weight_decay,
            'maximize': maximize,
            'foreach': foreach,
        }
        super().__init__(params, defaults, **embedding)

    def _network_rule(self, group: dict[str, Any], lr: float) -> None:
        self._adamw_rule(group, lr)
