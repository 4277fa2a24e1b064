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
import json
import platform
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from authors_code import BITS, CLASSES, ENCODINGS, SUFFIXES, Authors, State, Theirs, as_ours, computing_in, split_name
from corruptions import photographs
from torch import Tensor, nn

from timm_p2be.data import AugMix
from timm_p2be.losses import smoothness_loss
from timm_p2be.stem import find_embedding
from timm_p2be.task import P2BETask
from timm_p2be.training.arguments import parse_args
from timm_p2be.training.building import build_optimizer, build_task
from timm_p2be.training.schedules import Schedules

SEED = 0
TABLE_LR = 0.05
DTYPES = {'float64': torch.float64, 'float32': torch.float32}
Row = dict[str, Any]
MODELS = [
    *(f'{network}{suffix}' for network in ('wrn40_2', 'densenet40_12') for suffix in ('', *SUFFIXES)),
    'resnext29_4x32d_p2be',
]


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
    with computing_in(dtype):
        ours, theirs = Ours(name, weights, dtype, steps), Theirs(authors, net, network, encoding, steps, TABLE_LR)
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
    with computing_in(torch.float64):
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
    norms, products = table.detach().norm(dim=1), (table[:-1] * table[1:]).sum(dim=1).detach()
    found['smoothness'] = {
        'theirs': float(1 - net.embedding_smoothness() / net.beta),
        'ours, mean': float(mean),
        'ours, mean, with 1e-8 added to the product of norms, as theirs has': float(
            1 - (products / (norms[:-1] * norms[1:] + 1e-8)).mean()
        ),
        'ours, sum (Eq. 9)': float(total),
    }
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
