"""A tiny model and the steps that the optimizers' tests share."""

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from timm_p2be.stem import EncodedConv2d

NETWORK = {
    'sgdp2be': {'lr': 0.1, 'momentum': 0.9, 'weight_decay': 5e-4},
    'adamwp2be': {'lr': 1e-2, 'weight_decay': 0.1},
}


class Tiny(nn.Module):
    """A classifier of 5 classes with an encoded stem, small enough to step a hundred times."""

    def __init__(self, encoding: str = 'p2be') -> None:
        super().__init__()
        self.stem = EncodedConv2d(3, 4, 3, encoding, num_bits=8, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)
        self.pretrained_cfg = {'classifier': 'fc'}

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.stem(x)).relu().mean((2, 3)))


def create(model: nn.Module, name: str = 'sgdp2be', **kwargs) -> torch.optim.Optimizer:
    return create_optimizer_v2(model, name, **{**NETWORK[name], **kwargs})


def set_gradients(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


def run(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> nn.Module:
    for seed in seeds:
        set_gradients(list(model.parameters()), seed)
        optimizer.step()
    return model


def assert_same(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def group_of(optimizer: torch.optim.Optimizer, param: Tensor) -> dict:
    (group,) = [g for g in optimizer.param_groups if any(p is param for p in g['params'])]
    return group
