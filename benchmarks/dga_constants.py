"""Choose DGA's constants: momentum, share of jumping values and patience, on training images.

    python benchmarks/dga_constants.py --data CIFAR10_FOLDER --json FILE [--images 100]

Attacks the last training images of wrn16_2_p2be (shipped) at 1 and 2 levels and of the network on a rough table at 1,
one constant changed at a time, and prints how many stand. The constants with the fewest are those of the package. A row
that FILE has is not measured again; those of results/dga_constants.json are of the wrn16_2_p2be before AugMix.
"""

import argparse
import json
from pathlib import Path

import torch

import timm_p2be  # noqa: F401  registers the models
from timm_p2be.robustness.attacks import DGA, dga
from timm_p2be.robustness.attacks.judge import attack_batch, is_correct, seeded
from timm_p2be.robustness.images import as_batch, read_images
from timm_p2be.robustness.pixel_model import load_model

CONSTANTS = {'MOMENTUM': (0.5, 0.75, 0.9), 'SHARE': (0.05, 0.1, 0.2, 0.4), 'PATIENCE': (2, 4, 8)}


def main() -> None:
    """Attack and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--json', type=Path, required=True)
    parser.add_argument('--images', type=int, default=100)
    args = parser.parse_args()
    split = f'train[-{args.images}:]'
    data = read_images(f'hfds/{args.data}', None, split, input_key='img', target_key='label')
    levels, labels = as_batch(data, range(len(data)))
    rough = Path(__file__).parent / 'networks' / 'wrn10_2_p2be_rough.safetensors'
    rows = json.loads(args.json.read_text()) if args.json.is_file() else {}
    default = {name: getattr(dga, name) for name in CONSTANTS}
    changes = [{}] + [{name: x} for name, values in CONSTANTS.items() for x in values if x != default[name]]
    for spec, eps in (('wrn16_2_p2be', 2), ('wrn16_2_p2be', 1), (f'wrn10_2_p2be={rough}', 1)):
        model = load_model(spec)
        right = torch.from_numpy(is_correct(model, levels, labels))
        for change in changes:
            key = f'{Path(spec).stem.split("=")[0]}, eps {eps}, {default | change}'
            if key in rows:
                continue
            for name, value in (default | change).items():
                setattr(dga, name, value)
            _, fell = attack_batch(model, DGA(model, eps), levels[right], labels[right], eps, seeded('dga'))
            rows[key] = [int(right.sum()), int(right.sum()) - int(fell.sum())]
            print(key, rows[key], flush=True)
            args.json.write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
    main()
