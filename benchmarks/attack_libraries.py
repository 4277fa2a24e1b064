"""Let AutoAttack and foolbox attack networks through attack_view, and our suite the same images.

    pip install foolbox pyautoattack
    P2BE_DATA=DIR python benchmarks/attack_libraries.py --json FILE [--images 200] [--eps 1 2 8]

The networks are those of benchmarks/networks, which have no defense; DIR holds cifar10/ as parquet files. Theirs and
ours run in turn on what still stands of the same images: the four of AutoAttack's standard version, foolbox's PGD with
and without a random start; all of ours, cheapest first. Every image is rounded to levels and judged by the network
itself. `theirs_alone` counts the images that a library fells and our whole suite leaves. A network in FILE at the same
bound is not attacked again.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import timm_p2be  # noqa: F401  registers the models
from timm_p2be.encodings import pixel_levels
from timm_p2be.robustness.attacks import attack_view
from timm_p2be.robustness.attacks.judge import is_correct, seeded
from timm_p2be.robustness.evaluation.attack_suite import build_suite
from timm_p2be.robustness.evaluation.results import environment
from timm_p2be.robustness.images import as_batch, read_images
from timm_p2be.robustness.pixel_model import PixelModel, load_model

FOLDER = Path(__file__).parent / 'networks'
NETWORKS = {
    'rgb': 'wrn10_2',
    'onehot': 'wrn10_2_onehot',
    'thermometer': 'wrn10_2_thermometer',
    'p2be': 'wrn10_2_p2be',
    'p2be_rough': 'wrn10_2_p2be',
}
STEPS = 40
QUERIES = 1000  # of AutoAttack's Square, whose own is 5,000: it takes two thirds of all time; ours keeps 5,000
Find = Callable[[Tensor, Tensor], Tensor]  # uint8 levels and labels -> uint8 levels


def theirs(model: PixelModel, eps: int) -> Iterator[tuple[str, Find]]:
    """Yield the attacks of the libraries."""
    import foolbox
    from pyautoattack import AutoAttack

    view = attack_view(model, eps=eps)
    box = foolbox.PyTorchModel(view, (0, 1), device='cpu')

    def foolbox_pgd(random_start: bool) -> Find:
        attack = foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=eps / 16 / 255, random_start=random_start)
        return lambda levels, labels: attack(box, levels / 255, labels, epsilons=eps / 255)[1]

    def autoattack(name: str) -> Find:
        attack = AutoAttack(view, norm='Linf', eps=eps / 255, version='standard', device='cpu', seed=0)
        attack.attacks_to_run = [name]
        attack.square.n_queries = QUERIES
        return lambda levels, labels: attack.run_standard_evaluation(levels / 255, labels)[0]

    yield 'foolbox LinfPGD', foolbox_pgd(random_start=False)
    yield 'foolbox LinfPGD, random start', foolbox_pgd(random_start=True)
    for name in ('apgd-ce', 'apgd-t', 'fab-t', 'square'):
        yield f'AutoAttack {name}', autoattack(name)


def ours(model: PixelModel, eps: int) -> Iterator[tuple[str, Find]]:
    """Yield the attacks of the suite."""
    for attack in build_suite(model, eps):
        yield attack.name, lambda levels, labels, attack=attack: attack(levels, labels, seeded(attack.name)) / 255


def attack_in_turn(
    model: PixelModel, attacks: Iterator[tuple[str, Find]], eps: int, levels: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Any]]:
    """Return which images stand after all attacks, and how many stand after each and its seconds."""
    standing = torch.from_numpy(is_correct(model, levels, labels))
    left: dict[str, Any] = {'clean': [int(standing.sum()), 0.0]}
    for name, find in attacks:
        some = standing.nonzero().squeeze(1)
        if len(some) == 0:
            break
        torch.manual_seed(0)
        start = time.perf_counter()
        found = pixel_levels(find(levels[some], labels[some]))
        assert (found.int() - levels[some].int()).abs().max() <= eps, name
        standing[some] = torch.from_numpy(is_correct(model, found, labels[some]))
        left[name] = [int(standing.sum()), round(time.perf_counter() - start, 1)]
    return standing, left


def main() -> None:
    """Attack, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=200, help='first test images, default: %(default)s')
    parser.add_argument('--eps', type=int, nargs='+', default=[8, 2, 1], help='levels, default: 8 2 1')
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--json', type=Path, required=True)
    args = parser.parse_args()
    content = {'images': args.images, 'seed': 0, 'environment': environment(), 'networks': {}}
    if args.json.is_file():
        content = json.loads(args.json.read_text())
        if content['images'] != args.images:
            raise SystemExit(f'attack_libraries.py: error: {args.json} is of {content["images"]} images; name another.')
    data = read_images(
        f'hfds/{os.environ["P2BE_DATA"]}/cifar10', None, 'test', limit=args.images, input_key='img', target_key='label'
    )
    levels, labels = as_batch(data, range(len(data)))
    for eps in args.eps:
        for name in args.networks:
            if (key := f'{name}-eps{eps}') in content['networks']:
                continue
            suffix = '_rough' if name == 'p2be_rough' else ''
            model = load_model(f'{NETWORKS[name]}={FOLDER / NETWORKS[name]}{suffix}.safetensors')
            by_theirs, left = attack_in_turn(model, theirs(model, eps), eps, levels, labels)
            by_ours, left_by_ours = attack_in_turn(model, ours(model, eps), eps, levels, labels)
            content['networks'][key] = {
                'theirs': left,
                'ours': left_by_ours,
                'theirs_alone': int((by_ours & ~by_theirs).sum()),
                'ours_alone': int((by_theirs & ~by_ours).sum()),
            }
            args.json.write_text(json.dumps(content, indent=1) + '\n')
            print(key, content['networks'][key], flush=True)


if __name__ == '__main__':
    main()
