"""A torch optimizer with two update rules and one state: a subclass's for the network, AdamW for the pixel embedding.

The paper trains the network by SGD and the latent table w (256, M) by AdamW. Two optimizers would need two schedulers,
two gradient scalers and two checkpoint entries, and timm's training scripts know one of each. Here both rules live in
one `torch.optim.Optimizer`: the table is recognized by its type (`EmbeddingParameter`), whatever group it arrives in,
and moved to a group of its own, marked `'embedding': True`. The arithmetic is torch's own.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from timm_p2be.encodings import EmbeddingParameter
from timm_p2be.optim.schedule import EMBEDDING_SCHEDS, take_table_lr

_EMBEDDING_SETTINGS = ('lr', 'betas', 'eps', 'weight_decay', 'maximize')


def _number(name: str, value: Any, below: float = math.inf) -> float:
    """Return `value` as a float, or raise ValueError if it is not a number in [0, below)."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < below:
        hint = '; YAML reads 1e-4 as text, write 1.0e-4' if isinstance(value, str) else ''
        raise ValueError(f'Got {name}={value!r}; it must be a finite number in [0, {below:g}){hint}.')
    return float(value)


def beta_pair(name: str, value: Any) -> tuple[float, float]:
    """Return `value` as two floats in [0, 1), or raise ValueError."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f'Got {name}={value!r}; it must be two numbers in [0, 1), for example {name}=(0.999,0.999).')
    return _number(f'{name}[0]', value[0], below=1), _number(f'{name}[1]', value[1], below=1)


def _tensor(entry: Any) -> Any:
    """Return the parameter of a group's entry, which torch allows to be a (name, parameter) pair."""
    return entry[1] if isinstance(entry, tuple) else entry


class TwoRuleOptimizer(torch.optim.Optimizer):
    """Base of the optimizers with a rule for the network (the subclass's) and AdamW for the pixel embedding's table.

    Every `EmbeddingParameter` is moved out of the group it is handed in, into its own group with the settings below;
    that group's own settings (weight decay, timm's layer-wise `lr_scale`) are not taken over, unless it is marked
    `'embedding': True` and so spells out settings for a table. A frozen table is in no group. Without a table this is
    plain SGD or AdamW, so RGB baselines run by the same recipe.

    Args:
        params: parameters, (name, parameter) pairs or groups, as for any torch optimizer.
        defaults: settings of the network's rule.
        embedding_lr: the table's base learning rate.
        embedding_betas: the table's AdamW coefficients. (0.999, 0.999) is no misprint for (0.9, 0.999): the official
            code has it too (`docs/protocol.md`).
        embedding_eps: the table's AdamW epsilon.
        embedding_weight_decay: the table's decoupled weight decay. The default does nothing in float32, where the
            factor 1 - 1e-4 * 1e-4 is 1; it is the paper's.
        embedding_sched: where the table's learning rate comes from: 'follow' takes what the scheduler writes to its
            group, so it runs the network's schedule from its own base; 'constant' (text of the paper, section IV-B)
            ignores the schedule; 'cosine' (official code) has a cosine of its own and needs `EmbeddingCosine`.

    The defaults of the `embedding_*` settings are the paper's (section IV-B) and those of
    nutszebra/Pixel-to-Binary-Embedding, cifar_augmix.py.

    Raises:
        ValueError: a setting out of range, or nothing to optimize.
    """

    network_settings: ClassVar[tuple[str, ...]]

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
    ) -> None:
        if embedding_sched not in EMBEDDING_SCHEDS:
            raise ValueError(f'Unknown embedding_sched {embedding_sched!r}; choose one of {list(EMBEDDING_SCHEDS)}.')
        for name in defaults.keys() & {'lr', 'momentum', 'dampening', 'eps', 'weight_decay'}:
            defaults[name] = _number(name, defaults[name])
        # settings live in `defaults` because torch pickles an optimizer's defaults, state and groups and nothing else
        defaults.update(
            embedding_lr=_number('embedding_lr', embedding_lr),
            embedding_betas=beta_pair('embedding_betas', embedding_betas),
            embedding_eps=_number('embedding_eps', embedding_eps),
            embedding_weight_decay=_number('embedding_weight_decay', embedding_weight_decay),
            embedding_sched=embedding_sched,
        )
        super().__init__(params, defaults)
        if not self.param_groups:
            raise ValueError('Got no parameter but a frozen table; pass the network too, or unfreeze the table.')

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; trainable tables in it get a group of their own, frozen ones none.

        Args:
            param_group: as for any torch optimizer.

        Raises:
            ValueError: the group is marked `'embedding': True` but holds other parameters than tables.
        """
        params = param_group['params'] if isinstance(param_group, dict) else None
        if params is None or isinstance(params, set):
            super().add_param_group(param_group)  # torch explains what it cannot take
            return
        entries = [params] if isinstance(params, Tensor) else list(params)
        tables = [entry for entry in entries if isinstance(_tensor(entry), EmbeddingParameter)]
        network = [entry for entry in entries if not isinstance(_tensor(entry), EmbeddingParameter)]
        marked = bool(param_group.get('embedding'))
        if marked and network:
            raise ValueError(
                f"Got a group marked 'embedding' with {len(network)} parameters that are no pixel embedding's table; "
                'put them into a group of their own.'
            )
        if network or not tables:
            self._append({**param_group, 'params': network}, self.network_settings)
        if tables := [entry for entry in tables if _tensor(entry).requires_grad]:
            settings = {name: self.defaults[f'embedding_{name}'] for name in ('lr', 'betas', 'eps', 'weight_decay')}
            spelled_out = {name: param_group[name] for name in settings if marked and name in param_group}
            self._append({'params': tables, 'embedding': True, **settings, **spelled_out}, _EMBEDDING_SETTINGS)

    def _append(self, group: dict[str, Any], settings: tuple[str, ...]) -> None:
        """Add `group` as it is and take away the defaults that torch gives it for the other rule."""
        super().add_param_group(group)
        for name in self.defaults.keys() - set(settings):
            self.param_groups[-1].pop(name, None)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient, each by its rule.

        Args:
            closure: reevaluates the model and returns the loss, as for any torch optimizer.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError: `embedding_sched='cosine'` and no learning rate was set for this step.
        """
        sched = self.defaults['embedding_sched']
        # taken before anything is updated, so that an error leaves no half-made step behind
        rates = [take_table_lr(g, sched) if g.get('embedding') else g['lr'] for g in self.param_groups]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, lr in zip(self.param_groups, rates, strict=True):
            if group.get('embedding'):
                self._adamw_rule(group, lr)
            else:
                self._network_rule(group, lr)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; `embedding_sched` stays as this optimizer was created.

        Raises:
            ValueError: the saved groups do not match, for example because the table was frozen in one of the runs.
        """
        saved = [bool(group.get('embedding')) for group in state_dict['param_groups']]
        own = [bool(group.get('embedding')) for group in self.param_groups]
        if saved != own:
            raise ValueError(
                f'Got a checkpoint with {len(saved)} parameter groups, {sum(saved)} of them for a pixel embedding; '
                f'this optimizer has {len(own)} and {sum(own)}. Create the model and the optimizer as in the saved '
                'run (same --opt, same freezing), or resume the weights only (--no-resume-opt).'
            )
        super().load_state_dict(state_dict)

    def _network_rule(self, group: dict[str, Any], lr: float) -> None:
        """Update one of the network's groups."""
        raise NotImplementedError

    def _adamw_rule(self, group: dict[str, Any], lr: float) -> None:
        """Update a group by torch's AdamW; the state has torch's names, `step` lives on the CPU as in torch."""
        params = [p for p in group['params'] if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p]['step'] = torch.tensor(0.0, dtype=torch.float32)
                self.state[p]['exp_avg'] = torch.zeros_like(p, memory_format=torch.preserve_format)
                self.state[p]['exp_avg_sq'] = torch.zeros_like(p, memory_format=torch.preserve_format)
        adamw(
            params,
            [p.grad for p in params],
            [self.state[p]['exp_avg'] for p in params],
            [self.state[p]['exp_avg_sq'] for p in params],
            [],
            [self.state[p]['step'] for p in params],
            foreach=group.get('foreach'),
            has_complex=any(p.is_complex() for p in params),
            amsgrad=False,
            beta1=group['betas'][0],
            beta2=group['betas'][1],
            lr=lr,
            weight_decay=group['weight_decay'],
            eps=group['eps'],
            maximize=group['maximize'],
        )

    def __repr__(self) -> str:
        lines = [f'{type(self).__name__}(embedding_sched={self.defaults["embedding_sched"]!r}']
        for group in self.param_groups:
            rule = 'embedding' if group.get('embedding') else 'network'
            size = sum(p.numel() for p in group['params'])
            hidden = ('params', 'param_names', 'embedding')
            settings = ' '.join(f'{name}={value!r}' for name, value in group.items() if name not in hidden)
            lines.append(f'  {rule}: {len(group["params"])} tensors, {size:,} values, {settings}')
        return '\n'.join([*lines, ')'])
