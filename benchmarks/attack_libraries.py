"""Let foolbox attack networks through attack_view, beside our own PGD.

    pip install foolbox
    P2BE_DATA=DIR python benchmarks/attack_libraries.py [--images 200] [--json FILE]

The networks are those of benchmarks/networks, which have no defense; DIR holds cifar10/ as parquet files. Both take 40
steps of half a level at eps 8, from the clean image, through the same surrogate; their images are rounded to levels and
judged by the network itself. foolbox's attack with its own random start comes on top.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import timm_p2be  # noqa: F401  registers the models
from timm_p2be.robustness.attacks import PGD, attack_view
from timm_p2be.robustness.evaluation.results import environment
from timm_p2be.robustness.images import as_batch, read_images
from timm_p2be.robustness.pixel_model import PixelModel, load_model

NETWORKS = Path(__file__).parent / 'networks'
NAMES = ('wrn10_2', 'wrn10_2_onehot', 'wrn10_2_thermometer', 'wrn10_2_p2be')
EPS, STEPS, STEP = 8, 40, 0.5
Find = Callable[[Tensor, Tensor], Tensor]  # uint8 levels and labels -> uint8 levels


def attacks(model: PixelModel, eps: int) -> dict[str, Find]:
    """Return what attacks one network."""
    import foolbox

    box = foolbox.PyTorchModel(attack_view(model), (0, 1), device='cpu')

    def by_foolbox(random_start: bool) -> Find:
        attack = foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=STEP / 255, random_start=random_start)

        def find(levels: Tensor, labels: Tensor) -> Tensor:
            found = attack(box, levels / 255, labels, epsilons=eps / 255)[1]
            return (found * 255).round().to(torch.uint8)

        return find

    return {
        'ours: PGD': PGD(model, eps, steps=STEPS, step_size=STEP),
        'foolbox: LinfPGD': by_foolbox(random_start=False),
        'foolbox: LinfPGD, random start': by_foolbox(random_start=True),
    }


def main() -> None:
    """Attack and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=200, help='default: %(default)s')
    parser.add_argument('--eps', type=int, nargs='+', default=[2, 8], help='levels, default: 2 8')
    parser.add_argument('--json', type=Path, help='write the figures there, too')
    args = parser.parse_args()
    data = read_images(
        f'hfds/{os.environ["P2BE_DATA"]}/cifar10', None, 'test', limit=args.images, input_key='img', target_key='label'
    )
    levels, labels = as_batch(data, range(len(data)))
    rows = []
    print('| network | eps | attack | accuracy, % | s |\n|---|---|---|---|---|')
    for name in NAMES:
        model = load_model(f'{name}={NETWORKS / name}.safetensors')
        for eps in args.eps:
            for attack, find in attacks(model, eps).items():
                torch.manual_seed(0)
                start = time.perf_counter()
                found = torch.cat([find(x, y) for x, y in zip(levels.split(100), labels.split(100), strict=True)])
                seconds = time.perf_counter() - start
                assert (found.int() - levels.int()).abs().max() <= eps, attack
                with torch.no_grad():
                    accuracy = (model(found).argmax(1) == labels).float().mean().item()
                print(f'| {name} | {eps} | {attack} | {100 * accuracy:.1f} | {seconds:.1f} |', flush=True)
                rows.append({'network': name, 'eps': eps, 'attack': attack, 'accuracy': accuracy, 'seconds': seconds})
    if args.json:
        content = {'images': len(data), 'steps': STEPS, 'step_in_levels': STEP, 'seed': 0, 'rows': rows}
        args.json.write_text(json.dumps({**content, 'environment': environment()}, indent=1) + '\n')


if __name__ == '__main__':
    main()
