"""Compare training steps with those of the authors' code, from the same weights, on the same views.

    python benchmarks/compare_authors.py --authors CHECKOUT [--models NAME ...] [--json FILE]

CHECKOUT is one of github.com/nutszebra/Pixel-to-Binary-Embedding. Its networks and the function `train` of its
cifar_augmix.py run as they are, on the CPU; ours are what `timm-p2be train -c cifar10` builds from that recipe. Both
get the same images, each with two AugMix versions of ours, as uint8 levels (divided by 255 for theirs), and anneal both
learning rates over the steps that are run. That of the table starts at 0.05: at 1e-4 no bit flips in so few steps. Set
P2BE_DATA to a folder with cifar10/ for photographs of CIFAR-10.

Of the first step: logits, parts of the loss, gradients. Over all steps: the changes of weights, batch statistics and
table. Given is the largest absolute difference, and that over the largest absolute value of theirs. In float64 what is
left is the order of sums; for that, `Tensor.float`, which both codes call, is made to mean `Tensor.double`.

Besides, the differences that are known (docs/protocol.md), each measured.
"""

import argparse
import ast
import contextlib
import importlib
import json
import platform
import re
import subprocess
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import timm
import torch
from corruptions import photographs
from torch import Tensor, nn

from timm_p2be.data import AugMix
from timm_p2be.losses import smoothness_loss
from timm_p2be.stem import find_embedding
from timm_p2be.task import P2BETask
from timm_p2be.training.arguments import parse_args
from timm_p2be.training.building import build_optimizer, build_task
from timm_p2be.training.schedules import Schedules

BITS, CLASSES, SEED = 64, 10, 0
TABLE_LR = 0.05
ENCODINGS = ('rgb', 'onehot', 'thermometer', 'p2be')
SUFFIXES = ('_onehot', '_thermometer', '_p2be')
DTYPES = {'float64': torch.float64, 'float32': torch.float32}
State = dict[str, Tensor]
Row = dict[str, Any]
MODELS = [
    *(f'{network}{suffix}' for network in ('wrn40_2', 'densenet40_12') for suffix in ('', *SUFFIXES)),
    'resnext29_4x32d_p2be',
]

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
                self.recorded[name].append(value.detach())
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
def _computing_in(dtype: torch.dtype) -> Iterator[None]:
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


def difference(theirs: Tensor | list[Tensor], ours: Tensor | list[Tensor]) -> dict[str, float]:
    """Return the largest absolute difference, and that over the largest absolute value of theirs."""
    pairs = list(zip(theirs, ours, strict=True)) if isinstance(theirs, list) else [(theirs, ours)]
    assert all(one.shape == other.shape for one, other in pairs)
    largest = max(float((one.double() - other.double()).abs().max()) for one, other in pairs)
    scale = max(float(one.double().abs().max()) for one, _ in pairs)
    return {'absolute': largest, 'relative': largest / scale}


def _by_part(theirs: State, ours: State) -> dict[str, dict[str, float]]:
    """Return the difference of the table, the stem's kernel, all other parameters and batch statistics."""
    assert theirs.keys() == ours.keys(), theirs.keys() ^ ours.keys()
    parts: dict[str, list[str]] = {}
    for name in theirs:
        if not name.endswith('num_batches_tracked'):
            part = {'conv1.embedding.weight': 'table', 'conv1.weight': 'stem'}.get(name, 'network')
            parts.setdefault('statistics' if '.running_' in name else part, []).append(name)
    return {part: difference([theirs[n] for n in names], [ours[n] for n in names]) for part, names in parts.items()}


def views(images: int) -> tuple[Tensor, Tensor, str]:
    """Return uint8 levels (3 * images, 3, 32, 32), labels and where the images are from; clean ones first."""
    pictures, source = photographs(32, images)
    augmix, generator = AugMix(severity=3), torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    stacked = np.stack([*pictures, *(augmix(picture) for _ in range(2) for picture in pictures)])
    labels = torch.randint(CLASSES, (images,), generator=generator)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous(), labels, source


class Ours:
    """What the recipe cifar10 trains, at a few steps in all."""

    def __init__(self, name: str, weights: State, dtype: torch.dtype, steps: int) -> None:
        words = ['-c', 'cifar10', '--data-dir', '.', '--model', name, '--epochs', '1', '--device', 'cpu']
        words += ['--p2be-lr', str(TABLE_LR)] if name.endswith('_p2be') else []
        self.args = parse_args(words).args
        self.args.world_size, self.args.rank = 1, 0
        self.model = timm.create_model(name, num_classes=CLASSES).to(dtype)
        self.model.load_state_dict(weights)
        self.task: P2BETask = build_task(self.args, self.model, torch.device('cpu'))
        self.optimizer = build_optimizer(self.args, self.model)
        self.schedules = Schedules(self.args, self.optimizer, steps)

    def step(self, images: Tensor, labels: Tensor, number: int) -> dict[str, Tensor]:
        self.task.train()
        self.optimizer.zero_grad()
        outcome = self.task(images, labels)
        outcome['loss'].backward()
        self.optimizer.step()
        self.schedules.after_update(number, float(outcome['loss']))
        return outcome


class Theirs:
    """What their cifar_augmix.py trains with the options of its README, at a few steps in all."""

    def __init__(self, authors: Authors, net: nn.Module, network: str, encoding: str, steps: int) -> None:
        self.authors, self.net, self.logits = authors, net, []
        learned = encoding == 'p2be'
        model = re.split(r'\d', network)[0] + ('b' if learned else '')
        self.functions = authors.functions(model)
        base = net.base_parameters() if learned else net.parameters()
        rates = {'lr': 0.1, 'momentum': 0.9, 'weight_decay': 5e-4, 'nesterov': True}
        self.optimizers = [torch.optim.SGD(base, **rates)]
        if learned:
            table = {'lr': TABLE_LR, 'betas': (0.999, 0.999), 'weight_decay': 1e-4}
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


def compare(authors: Authors, name: str, dtype: torch.dtype, images: Tensor, labels: Tensor, steps: int) -> Row:
    """Return one row: the first step and the state after the last, of our model `name` and theirs.

    Args:
        authors: theirs.
        name: wrn40_2_p2be, densenet40_12, ...
        dtype: of weights and, for models of pixel values, images.
        images: uint8 levels (3 * batch * steps, 3, 32, 32): all clean ones, then both versions of all.
        labels: (batch * steps,).
        steps: number of updates.
    """
    network, encoding = split_name(name)
    torch.manual_seed(SEED)
    growth = {'growth_rate': 12} if network.startswith('densenet') else {}
    net = authors.network(network, encoding, **growth).to(dtype)
    weights = as_ours(net.state_dict(), network, encoding)
    pixels = images / 255 if encoding != 'rgb' else images.to(dtype) / 255
    row: Row = {'model': name, 'dtype': str(dtype).removeprefix('torch.'), 'steps': steps}
    with _computing_in(dtype):
        ours, theirs = Ours(name, weights, dtype, steps), Theirs(authors, net, network, encoding, steps)
        for number in range(steps):
            chosen = torch.arange(len(labels)).chunk(steps)[number]
            taken = torch.cat([chosen + view * len(labels) for view in range(3)])
            their_loss = theirs.step(pixels[taken], labels[chosen])
            parts = ours.step(images[taken] if encoding != 'rgb' else pixels[taken], labels[chosen], number + 1)
            if number == 0:
                row['first step'] = _first_step(theirs, their_loss, ours, parts, network, encoding)
    after = as_ours(net.state_dict(), network, encoding)
    moved = [{n: s[n] - weights[n] for n in weights} for s in (after, ours.model.state_dict())]
    row['change over all steps'] = _by_part(moved[0], moved[1])
    if encoding == 'p2be':
        start, table = weights['conv1.embedding.weight'] >= 0, 'conv1.embedding.weight'
        row['bits'] = {
            'that differ': int(((after[table] >= 0) != (ours.model.state_dict()[table] >= 0)).sum()),
            'flipped by training': int((start != (after[table] >= 0)).sum()),
        }
    return row


def _first_step(
    theirs: Theirs, their_loss: float, ours: Ours, parts: dict[str, Tensor], network: str, encoding: str
) -> Row:
    recorded, smoothness = theirs.authors.recorded, ours.args.p2be_smoothness or 0.0
    # they subtract lambda times the mean cosine, we add lambda times one minus it
    losses = {'ce': difference(recorded['ce'][0], parts['ce'])}
    losses['jsd'] = difference(torch.stack(recorded['kl'][:3]).mean(), parts['jsd'])
    losses['loss'] = difference(torch.tensor(their_loss + smoothness, dtype=torch.float64), parts['loss'].detach())
    their_grads = {name: p.grad for name, p in theirs.net.named_parameters() if p.grad is not None}
    our_grads = {name: p.grad for name, p in ours.model.named_parameters() if p.grad is not None}
    clean = theirs.logits[0][: len(parts['output'])]
    return {
        'logits of the clean view': difference(clean, parts['output'].detach()),
        'losses': losses,
        'gradients': _by_part(as_ours(their_grads, network, encoding), our_grads),
    }


def known_differences(authors: Authors, levels: Tensor, labels: Tensor) -> Row:
    """Return what docs/protocol.md says of differences between the two, measured in float64 on WRN-10-2."""
    network = 'wrn10_2'
    torch.manual_seed(SEED)
    net = authors.network(network, 'p2be').double()
    zeros = torch.rand(256, BITS) < 0.02
    net.p2be.embedding.data[zeros] = 0
    weights = as_ours(net.state_dict(), network, 'p2be')
    ours = timm.create_model(f'{network}_p2be', num_classes=CLASSES).double()
    found: Row = {'model': f'{network}_p2be'}
    with _computing_in(torch.float64):
        for order, stem in (('bit-major', weights['conv1.weight']), ('color-major', net.conv1.weight.detach())):
            ours.load_state_dict({**weights, 'conv1.weight': stem})
            gap = difference(net.eval()(levels / 255).detach(), ours.eval()(levels).detach())
            found[f'logits, our stem with their kernel {order}'] = gap
        ours.load_state_dict(weights)
        grads = []
        for model, images in ((net, levels / 255), (ours, levels)):
            nn.functional.cross_entropy(model.train()(images), labels).backward()
            grads.append(next(p.grad for n, p in model.named_parameters() if 'embedding' in n))
    at_zero = zeros & (grads[1] != 0)
    ratios = grads[0][at_zero] / grads[1][at_zero]
    found['gradient of latents that are 0, theirs over ours'] = [float(ratios.min()), float(ratios.max())]
    found['gradient of the other latents'] = difference(grads[0][~zeros], grads[1][~zeros])
    table = find_embedding(ours).weight
    assert table is not None
    mean, total = (smoothness_loss(table.detach(), reduction) for reduction in ('mean', 'sum'))
    theirs = float(1 - net.embedding_smoothness() / net.beta)
    found['smoothness'] = {'theirs': theirs, 'ours, mean': float(mean), 'ours, sum (Eq. 9)': float(total)}
    counts = {e: sum(p.numel() for p in authors.network('densenet40_12', e).parameters()) for e in ENCODINGS}
    found['parameters of their DenseNets as they build them, 10 classes'] = counts
    single = authors.network('densenet40_12', 'p2be').eval()(levels[:1] / 255)
    found['shape of the logits of one image, their DenseNet'] = list(single.shape)
    return found


def line(row: Row) -> str:
    """Return a row of the Markdown table, relative differences."""
    first, last = row['first step'], row['change over all steps']
    values = [first['logits of the clean view'], first['losses']['loss']]
    values += [max((part[key] for key in part), key=lambda d: d['relative']) for part in (first['gradients'], last)]
    cells = [row['model'], row['dtype'], *(f'{value["relative"]:.0e}' for value in values)]
    cells.append(' of '.join(map(str, row['bits'].values())) if 'bits' in row else '')
    return f'| {" | ".join(cells)} |'


def _commit(checkout: Path) -> str | None:
    command = ['git', '-C', str(checkout), 'rev-parse', 'HEAD']
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else None


def main(argv: list[str] | None = None) -> Row:
    """Compare, print the table, write it as JSON and return it."""
    summary, _, details = (__doc__ or '').partition('\n')
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    networks = ('wrn10_2', 'wrn16_2', 'wrn40_2', 'densenet40_12', 'resnext29_4x32d')
    known = [f'{network}{suffix}' for network in networks for suffix in ('', *SUFFIXES)]
    parser.add_argument('--authors', type=Path, required=True, metavar='CHECKOUT', help='of the authors, with .git')
    parser.add_argument('--models', nargs='+', choices=known, metavar='NAME', default=MODELS, help=', '.join(known))
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=['float64'])
    parser.add_argument('--batch', type=int, default=2, metavar='N', help='images, of three views each (default: 2)')
    parser.add_argument('--steps', type=int, default=3, metavar='N', help='default: 3')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the outcome to FILE as well, after every row')
    args = parser.parse_args(argv)
    if not (args.authors / 'cifar_augmix.py').is_file():
        parser.error(f'--authors {args.authors} holds no cifar_augmix.py; clone nutszebra/Pixel-to-Binary-Embedding')
    if min(args.batch, args.steps) < 1:
        parser.error(f'--batch {args.batch} --steps {args.steps}: both must be at least 1')
    warnings.simplefilter('ignore')  # their code uses what torch has deprecated
    authors = Authors(args.authors.resolve())
    images, labels, source = views(args.batch * args.steps)
    outcome: Row = {
        'versions': {'python': platform.python_version(), 'torch': torch.__version__, 'timm': timm.__version__},
        'authors': {'repository': 'nutszebra/Pixel-to-Binary-Embedding', 'commit': _commit(args.authors)},
        'images': source,
        'batch': args.batch,
        'known differences': known_differences(authors, images[: len(labels)], labels),
        'rows': [],
    }
    print(json.dumps(outcome['known differences'], indent=1))
    print('| model | dtype | logits | loss | gradients | changes | bits that differ, of those flipped |')
    print('|---|---|---|---|---|---|---|')
    for name in args.models:
        for dtype in args.dtypes:
            outcome['rows'].append(compare(authors, name, DTYPES[dtype], images, labels, args.steps))
            print(line(outcome['rows'][-1]), flush=True)
            if args.json:
                args.json.write_text(json.dumps(outcome, indent=1) + '\n', encoding='utf-8')
    return outcome


if __name__ == '__main__':
    main()
