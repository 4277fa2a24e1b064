"""SGD or AdamW for the network, with AdamW for the pixel embedding's table beside it, as one torch optimizer.

Two optimizers would need two schedulers, two gradient scalers and two checkpoint entries, and timm's training scripts
know one of each. Here the table is recognized by its type (`EmbeddingParameter`), whatever group it arrives in, and
moved to a group of its own, marked `'embedding': True`. The arithmetic is torch's own.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from timm_p2be.encodings import EmbeddingParameter
from timm_p2be.losses import REDUCTIONS, smoothness_gradient
from timm_p2be.optim.schedule import EMBEDDING_SCHEDS, table_lr

_TABLE_SETTINGS = ('lr', 'betas', 'eps', 'weight_decay')


def _number(name: str, value: Any, below: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < below:
        hint = '; YAML reads 1e-4 as text, write 1.0e-4' if isinstance(value, str) else ''
        raise ValueError(f'Got {name}={value!r}; it must be a finite number in [0, {below:g}){hint}.')
    return float(value)


def _betas(name: str, value: Any) -> tuple[float, float]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f'Got {name}={value!r}; it must be two numbers in [0, 1), for example {name}=(0.999,0.999).')
    return _number(f'{name}[0]', value[0], below=1), _number(f'{name}[1]', value[1], below=1)


def _tensor(entry: Any) -> Any:
    """Return the parameter of a group's entry, which torch allows to be a (name, parameter) pair."""
    return entry[1] if isinstance(entry, tuple) else entry


class EmbeddingOptimizer(torch.optim.Optimizer):
    """Base of the optimizers with a rule for the network (the subclass's, by `defaults`) and AdamW for the table.

    The table's group has the settings below, none of the group it was handed in (weight decay, timm's `lr_scale`),
    unless that is marked `'embedding': True`. A frozen table is in no group. Without a table this is plain SGD or
    AdamW.

    The defaults are the paper's (section IV-B) and those of nutszebra/Pixel-to-Binary-Embedding, cifar_augmix.py;
    (0.999, 0.999) is no misprint (`docs/protocol.md`). `embedding_sched` says where the table's learning rate comes
    from: 'follow' takes what the scheduler writes to its group, from the table's own base; 'constant' (text of the
    paper) ignores the schedule; 'cosine' (official code) has a cosine of its own and needs `EmbeddingCosine`.

    `smoothness` is lambda of Eq. 10, for training scripts whose loss has no smoothness term: lambda dL_s/dw joins the
    table's gradient in `step`, before AdamW's moments, hence once per update (whatever was accumulated), unscaled, and
    after clipping, which does not see it. `smoothness_reduction` is that of `smoothness_loss`. With `P2BETask` leave
    it 0, or the term counts twice. `timm_recipe` is set by recipes of `timm-p2be train` and always refused.
    """

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        embedding_lr: float = 1e-4,
        embedding_betas: tuple[float, float] = (0.999, 0.999),
        embedding_eps: float = 1e-8,
        embedding_weight_decay: float = 1e-4,
        embedding_sched: str = 'follow',
        smoothness: float = 0.0,
        smoothness_reduction: str = 'mean',
        timm_recipe: str | None = None,
    ) -> None:
        if timm_recipe is not None:
            own = f"for timm's own train.py use train_scripts/recipes/timm/{timm_recipe}; or "
            raise ValueError(
                'Got a recipe of `timm-p2be train`, whose p2be_ settings no other script reads: it would train without '
                f'them. Instead, {own if timm_recipe != "none" else ""}start this one by `timm-p2be train -c RECIPE`.'
            )
        schedules = ('embedding_sched', embedding_sched, EMBEDDING_SCHEDS)
        for name, choice, allowed in (schedules, ('smoothness_reduction', smoothness_reduction, REDUCTIONS)):
            if choice not in allowed:
                raise ValueError(f'Unknown {name} {choice!r}; choose one of {list(allowed)}.')
        for name in defaults.keys() & {'lr', 'momentum', 'dampening', 'eps', 'weight_decay'}:
            defaults[name] = _number(name, defaults[name])
        # settings live in `defaults` because torch pickles an optimizer's defaults, state and groups and nothing else
        defaults.update(
            embedding_lr=_number('embedding_lr', embedding_lr),
            embedding_betas=_betas('embedding_betas', embedding_betas),
            embedding_eps=_number('embedding_eps', embedding_eps),
            embedding_weight_decay=_number('embedding_weight_decay', embedding_weight_decay),
            embedding_sched=embedding_sched,
            embedding_smoothness=_number('smoothness', smoothness),
            embedding_smoothness_reduction=smoothness_reduction,
        )
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does; trainable tables in it get a group of their own, frozen ones none."""
        params = param_group['params']
        entries = [params] if isinstance(params, Tensor) else list(params)
        tables = [entry for entry in entries if isinstance(_tensor(entry), EmbeddingParameter)]
        network = [entry for entry in entries if not isinstance(_tensor(entry), EmbeddingParameter)]
        marked = bool(param_group.get('embedding'))
        if network or not tables:
            self._append({**param_group, 'params': network})
        if tables := [entry for entry in tables if _tensor(entry).requires_grad]:
            settings = {name: self.defaults[f'embedding_{name}'] for name in _TABLE_SETTINGS}
            spelled_out = {name: param_group[name] for name in settings if marked and name in param_group}
            self._append({'params': tables, 'embedding': True, **settings, **spelled_out})

    def _append(self, group: dict[str, Any]) -> None:
        """Add `group` and take away the defaults that torch gives it for the other rule."""
        super().add_param_group(group)
        network = {name for name in self.defaults if not name.startswith('embedding_')}
        for name in self.defaults.keys() - ({*_TABLE_SETTINGS} if group.get('embedding') else network):
            del self.param_groups[-1][name]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient, each by its rule, and return the loss of `closure` if given."""
        sched = self.defaults['embedding_sched']
        # taken before anything is updated, so that an error leaves no half-made step behind
        rates = [table_lr(g, sched) if g.get('embedding') else g['lr'] for g in self.param_groups]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, lr in zip(self.param_groups, rates, strict=True):
            (self._adamw_rule if group.get('embedding') else self._network_rule)(group, lr)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; `embedding_sched` and `smoothness` stay as this optimizer was created."""
        saved = [bool(group.get('embedding')) for group in state_dict['param_groups']]
        own = [bool(group.get('embedding')) for group in self.param_groups]
        if saved != own:
            raise ValueError(
                f'Got a checkpoint with {len(saved)} parameter groups, {sum(saved)} of them for a pixel embedding; '
                f'this optimizer has {len(own)} and {sum(own)}. Create the model and the optimizer as in the saved '
                'run (same --opt, same freezing: --p2be-freeze), or resume the weights only (--no-resume-opt).'
            )
        super().load_state_dict(state_dict)

    def _network_rule(self, group: dict[str, Any], lr: float) -> None:
        raise NotImplementedError

    def _adamw_rule(self, group: dict[str, Any], lr: float) -> None:
        """Update a group by torch's AdamW; the state has torch's names, `step` lives on the CPU as in torch."""
        params = [p for p in group['params'] if p.grad is not None]
        grads = [p.grad for p in params]
        if group.get('embedding') and (smoothness := self.defaults['embedding_smoothness']):
            reduction = self.defaults['embedding_smoothness_reduction']
            grads = [p.grad.add(smoothness_gradient(p, reduction), alpha=smoothness) for p in params]  # p.grad stays
        for p in params:
            if not self.state[p]:
                self.state[p]['step'] = torch.tensor(0.0, dtype=torch.float32)
                self.state[p]['exp_avg'] = torch.zeros_like(p, memory_format=torch.preserve_format)
                self.state[p]['exp_avg_sq'] = torch.zeros_like(p, memory_format=torch.preserve_format)
        adamw(
            params,
            grads,
            [self.state[p]['exp_avg'] for p in params],
            [self.state[p]['exp_avg_sq'] for p in params],
            [],
            [self.state[p]['step'] for p in params],
            foreach=group.get('foreach'),
            amsgrad=False,
            beta1=group['betas'][0],
            beta2=group['betas'][1],
            lr=lr,
            weight_decay=group['weight_decay'],
            eps=group['eps'],
            maximize=False,
        )


class SGDP2BE(EmbeddingOptimizer):
    """torch.optim.SGD for the network, AdamW for the pixel embedding; 'sgdp2be' in timm.

    Nesterov momentum is on as in the official code; the paper only says "Momentum SGD with momentum of 0.9" (section
    IV-B). `embedding` are the settings of `EmbeddingOptimizer`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = True,
        *,
        foreach: bool | None = None,
        **embedding: Any,
    ) -> None:
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError(
                f'Got nesterov=True with momentum={momentum!r} and dampening={dampening!r}; it needs a momentum and no '
                'dampening. Pass nesterov=False (in train.py: --opt-kwargs nesterov=False).'
            )
        defaults = {'lr': lr, 'momentum': momentum, 'weight_decay': weight_decay, 'dampening': dampening}
        super().__init__(params, {**defaults, 'nesterov': nesterov, 'foreach': foreach}, **embedding)

    def _network_rule(self, group: dict[str, Any], lr: float) -> None:
        params = [p for p in group['params'] if p.grad is not None]
        grads = [p.grad for p in params]
        buffers = [self.state[p].get('momentum_buffer') for p in params]
        settings = {name: group[name] for name in ('momentum', 'weight_decay', 'dampening', 'nesterov', 'foreach')}
        sgd(params, grads, buffers, has_sparse_grad=False, lr=lr, maximize=False, **settings)
        if group['momentum'] != 0:
            for p, momentum_buffer in zip(params, buffers, strict=True):
                self.state[p]['momentum_buffer'] = momentum_buffer


class AdamWP2BE(EmbeddingOptimizer):
    """torch.optim.AdamW for the network, another for the table by `embedding` settings as `SGDP2BE` has them."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        foreach: bool | None = None,
        **embedding: Any,
    ) -> None:
        defaults = {'lr': lr, 'betas': _betas('betas', betas), 'eps': eps, 'weight_decay': weight_decay}
        super().__init__(params, {**defaults, 'foreach': foreach}, **embedding)

    def _network_rule(self, group: dict[str, Any], lr: float) -> None:
        self._adamw_rule(group, lr)
