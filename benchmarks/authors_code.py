"""The networks and the training function of nutszebra/Pixel-to-Binary-Embedding, from a checkout, unchanged."""

import ast
import contextlib
import importlib
import re
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

BITS, CLASSES = 64, 10
ENCODINGS = ('rgb', 'onehot', 'thermometer', 'p2be')
SUFFIXES = ('_onehot', '_thermometer', '_p2be')
State = dict[str, Tensor]

_WRN = {'rgb': ('', 'wideresnet.WideResNet'), 'p2be': ('_s', 'wideresnet_b.WideResNetB')}
_WRN |= {e: (f'_{e}', f'wideresnet_{e}.WideResNet{e.capitalize()}') for e in ('onehot', 'thermometer')}
# names of modules, theirs -> ours, where they differ
_RENAMED = {
    'wrn': {
        r'^block(\d)\.layer\.(\d+)\.bn': r'layer\1.\2.norm',
        r'^block(\d)\.layer\.': r'layer\1.',
        r'\.conv_shortcut\.': '.shortcut.',
        r'^bn1\.': 'norm.',
    },
    'densenet': {
        r'^dense(\d)\.(\d+)\.bn1': lambda m: f'layer{m[1]}.{int(m[2]) + (m[1] != "1")}.norm1',  # after a transition
        r'^dense(\d)\.(\d+)\.': lambda m: f'layer{m[1]}.{int(m[2]) + (m[1] != "1")}.',
        r'^trans(\d)\.bn1': lambda m: f'layer{int(m[1]) + 1}.0.0',
        r'^trans(\d)\.conv1': lambda m: f'layer{int(m[1]) + 1}.0.1',
        r'^bn1\.': 'norm.',
    },
    'resnext': {
        r'^conv_1_3x3\.': 'conv1.',
        r'^bn_1\.': 'bn1.',
        r'^stage_': 'layer',
        r'\.(conv|bn)_reduce\.': r'.\g<1>1.',
        r'\.conv_conv\.': '.conv2.',
        r'(?<=\d)\.bn\.': '.bn2.',
        r'\.(conv|bn)_expand\.': r'.\g<1>3.',
        r'^classifier\.': 'fc.',
    },
}  # fmt: skip


class Authors:
    """The authors' networks and training function, from a checkout."""

    def __init__(self, checkout: Path) -> None:
        source = (checkout / 'cifar_augmix.py').read_text(encoding='utf-8')
        wanted = ('train', 'get_lr')
        functions = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name in wanted]
        self._code = compile(ast.Module(list[ast.stmt](functions), []), 'cifar_augmix.py', 'exec')
        self.recorded: dict[str, list[Tensor]] = {}
        sys.path.insert(0, str(checkout))

    def network(self, name: str, encoding: str, **arguments: Any) -> nn.Module:
        """Return their network that corresponds to ours, a WideResNet, DenseNet or ResNeXt."""
        codes = {} if encoding == 'rgb' else {'m': BITS}
        if encoding == 'p2be':
            codes['beta'] = 1.0  # lambda
        if depth := re.match(r'wrn(\d+)_2', name):
            folder, path = _WRN[encoding]
            folder, arguments = f'WideResNet_pytorch{folder}', {'depth': int(depth[1]), 'widen_factor': 2}
        else:
            kind = name.split('_')[0].rstrip('0123456789') + ('29' if name.startswith('resnext') else '')
            folder = 'ResNeXt_DenseNet' + ('' if encoding == 'rgb' else '_s') + '.models'
            end = {'rgb': '', 'p2be': 'b'}.get(encoding, f'_{encoding}')
            file = kind.removesuffix('29') + (end if end != 'b' else '_b')
            path = f'{file}.{kind}{end}'
        module, _, function = path.partition('.')
        return getattr(importlib.import_module(f'third_party.{folder}.{module}'), function)(
            num_classes=CLASSES, **codes, **arguments
        )

    def functions(self, model: str) -> dict[str, Any]:
        """Return their `train` and `get_lr`, run with `--model`; parts of the loss are kept in `recorded`."""
        self.recorded = {'ce': [], 'kl': []}

        def keep(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def kept(*args: Any, **kwargs: Any) -> Tensor:
                value = function(*args, **kwargs)
                self.recorded[name].append(value.detach().clone())  # they add to it in place
                return value

            return kept

        functional = {**vars(nn.functional), 'cross_entropy': keep('ce', nn.functional.cross_entropy)}
        functional['kl_div'] = keep('kl', nn.functional.kl_div)
        names = {'args': types.SimpleNamespace(model=model, no_jsd=False, print_freq=10**9), 'torch': torch, 'np': np}
        names['F'] = types.SimpleNamespace(**functional)
        exec(self._code, names)
        return names


def split_name(name: str) -> tuple[str, str]:
    """Return network and encoding of one of our models."""
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), '')
    return name.removesuffix(suffix), suffix.removeprefix('_') or 'rgb'


@contextlib.contextmanager
def computing_in(dtype: torch.dtype) -> Iterator[None]:
    """Without a GPU, and without a way back to float32 from float64."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.Tensor, 'cuda', lambda self: self))
        if dtype == torch.float64:
            stack.enter_context(mock.patch.object(torch.Tensor, 'float', torch.Tensor.double))
        stack.enter_context(contextlib.redirect_stdout(None))
        yield


def as_ours(theirs: State, network: str, encoding: str) -> State:
    """Return tensors by the names of our network's; the stem's planes, color-major in theirs, become bit-major."""
    renamed = {}
    for name, tensor in theirs.items():
        if name.endswith('.embedding'):
            if encoding != 'p2be':  # a fixed table is a buffer of theirs, and none of ours
                continue
            name = 'conv1.embedding.weight'
        for pattern, ours in _RENAMED[re.split(r'\d', network)[0]].items():
            name = re.sub(pattern, ours, name)
        renamed[name] = tensor.detach().clone()
    if encoding != 'rgb':
        renamed['conv1.weight'] = renamed['conv1.weight'].unflatten(1, (3, BITS)).transpose(1, 2).flatten(1, 2)
    return renamed


class Theirs:
    """What their cifar_augmix.py trains with the options of its README but for the table's rate, in `steps` in all."""

    def __init__(
        self, authors: Authors, net: nn.Module, network: str, encoding: str, steps: int, table_lr: float
    ) -> None:
        self.authors, self.net, self.logits = authors, net, []
        learned = encoding == 'p2be'
        model = re.split(r'\d', network)[0] + ('b' if learned else '')
        self.functions = authors.functions(model)
        base = net.base_parameters() if learned else net.parameters()
        rates = {'lr': 0.1, 'momentum': 0.9, 'weight_decay': 5e-4, 'nesterov': True}
        self.optimizers = [torch.optim.SGD(base, **rates)]
        if learned:
            table = {'lr': table_lr, 'betas': (0.999, 0.999), 'weight_decay': 1e-4}
            self.optimizers.append(torch.optim.AdamW(net.embedding_parameters(), **table))
        self.schedulers = [
            torch.optim.lr_scheduler.LambdaLR(o, self._height(steps, o.param_groups[0]['lr'])) for o in self.optimizers
        ]
        net.register_forward_hook(lambda module, args, output: self.logits.append(output.detach()))
        self.wrapped = nn.Sequential(OrderedDict(module=net))  # by this name their function reaches into DataParallel

    def _height(self, steps: int, rate: float) -> Callable[[int], float]:
        return lambda step: self.functions['get_lr'](step, steps, 1, 1e-6 / rate)

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Train on one batch and return its loss."""
        sgd, *adamw = self.optimizers
        decay, *table_decay = self.schedulers
        extra = {'optimizer_e': adamw[0], 'scheduler_e': table_decay[0]} if adamw else {}
        batches = [(list(images.chunk(3)), labels)]
        return self.functions['train'](self.wrapped, batches, sgd, decay, **extra) * 10  # a moving average from 0
