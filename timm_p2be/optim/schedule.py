"""Where the learning rate of the pixel embedding's table comes from: the network's schedule, a constant, or a cosine.

The paper's text keeps the rate constant (section IV-B), the authors' code anneals it by a cosine per update
(nutszebra/Pixel-to-Binary-Embedding, cifar_augmix.py); `docs/protocol.md` compares them.
"""

import math
from typing import Any

from torch.optim import Optimizer

EMBEDDING_SCHEDS = ('follow', 'constant', 'cosine')


def table_lr(group: dict[str, Any], sched: str) -> float:
    """Return the learning rate that the update of a table's group uses."""
    if sched == 'cosine':
        if 'cosine_lr' not in group:
            raise ValueError(
                "Got embedding_sched='cosine', but nothing set the embedding's learning rate; it needs "
                'timm_p2be.optim.EmbeddingCosine and its step_update(num_updates) after every update, as in the '
                "training script of timm-p2be. Elsewhere (timm's train.py) use embedding_sched='follow' or 'constant'."
            )
        return group['cosine_lr']
    # schedulers of timm and torch keep the base value in 'initial_lr' before they first write 'lr', warmup included
    return group.get('initial_lr', group['lr']) if sched == 'constant' else group['lr']


def _table_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [group for group in optimizer.param_groups if group.get('embedding')]


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """Return the learning rates in use, for logs: timm prints the mean over all groups, which is neither of them.

    They are 'network' (the largest rate of its groups, hence the scheduler's under layer-wise decay) and 'embedding',
    each only if the optimizer has such a group.
    """
    network = [group['lr'] for group in optimizer.param_groups if not group.get('embedding')]
    sched = optimizer.defaults.get('embedding_sched', 'follow')
    tables = [table_lr(group, sched) for group in _table_groups(optimizer)]
    return {name: max(rates) for name, rates in (('network', network), ('embedding', tables)) if rates}


class EmbeddingCosine:
    """Anneals the table's learning rate by a cosine per update, beside whatever schedules the network.

    lr(t) = min_lr + (base - min_lr) (1 + cos(pi t / total_updates)) / 2 after t updates, then `min_lr`, as in
    nutszebra/Pixel-to-Binary-Embedding, cifar_augmix.py. Create it after loading a checkpoint into the optimizer, whose
    `embedding_sched` is 'cosine', and call `step_update` after every update with the number of updates so far, like
    timm's schedulers; it has no state to save. Without a table it does nothing.
    """

    def __init__(self, optimizer: Optimizer, total_updates: int, min_lr: float = 1e-6) -> None:
        sched = optimizer.defaults.get('embedding_sched')
        if sched != 'cosine':
            raise ValueError(
                f'Got an {type(optimizer).__name__} with embedding_sched={sched!r}, which would not read this cosine; '
                "create the optimizer as 'sgdp2be' or 'adamwp2be' with embedding_sched='cosine'."
            )
        if total_updates < 1:
            raise ValueError(f'Got total_updates={total_updates}; it must be at least 1: epochs * updates per epoch.')
        for base in (table_lr(group, 'constant') for group in _table_groups(optimizer)):
            if not 0 <= min_lr <= base:
                raise ValueError(f'Got min_lr={min_lr!r}; it must lie between 0 and the embedding_lr of {base:g}.')
        self.optimizer = optimizer
        self.total_updates = total_updates
        self.min_lr = min_lr
        self.step_update(0)

    def step_update(self, num_updates: int) -> None:
        """Set the learning rate of the next update, after `num_updates` updates."""
        done = min(num_updates / self.total_updates, 1.0)
        for group in _table_groups(self.optimizer):  # looked up anew: loading a checkpoint replaces the groups
            height = (table_lr(group, 'constant') - self.min_lr) * (1 + math.cos(math.pi * done)) / 2
            group['cosine_lr'] = self.min_lr + height
