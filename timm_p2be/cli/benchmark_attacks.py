"""`timm-p2be benchmark attacks`: models under attacks within one bound, the worst case, and checks on the attacks."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from timm_p2be.cli.flags import add_data_flags, add_model_flags, images_from, models_from
from timm_p2be.cli.interruption import KEPT, alone_in, run_long
from timm_p2be.extras import require
from timm_p2be.robustness.attacks.attack import Attack
from timm_p2be.robustness.evaluation.attack_benchmark import benchmark_attacks
from timm_p2be.robustness.evaluation.attack_checks import conclude
from timm_p2be.robustness.evaluation.attack_probes import probe_binarization, probe_curves, probe_gradients, strongest
from timm_p2be.robustness.evaluation.attack_report import attack_report
from timm_p2be.robustness.evaluation.attack_results import AttackResults
from timm_p2be.robustness.evaluation.attack_suite import (
    FAMILIES,
    SUITES,
    budget,
    build_suite,
    measure_speed,
    variant,
)
from timm_p2be.robustness.evaluation.predictions import check_size
from timm_p2be.robustness.evaluation.runner import connected_ranks
from timm_p2be.robustness.images import ImageSet, as_batch
from timm_p2be.robustness.pixel_model import PixelModel, load_model

_EPILOG = """\
Attacks, cheapest first: {families}.
fgsm, pgd and apgd run through the surrogates 'linear' and 'kernel'; pgd-ramp names one of all. quick: {quick}.

Each attack runs alone on the first --alone images. The worst case runs them in turn on the first --worst-case images,
each on those still standing. Every adversarial image is a uint8 image within the bound, judged by the untouched model.
OUTPUT gets MODEL.attacks.json, report.md and report.html; the same command again goes on where it stopped.

exit codes: 0 done, 2 wrong usage, 3 done, and gradient masking is suspected.

examples:
  timm-p2be benchmark attacks --model wrn40_2_p2be=last.pth.tar --dataset torch/cifar10 --data-dir data --split test
  timm-p2be benchmark attacks --model ours:wrn10_2_p2be=a.pth.tar rgb:wrn10_2=b.pth.tar --attacks quick --limit 100 \\
      --dataset hfds/data/cifar10 --input-key img --target-key label --split test
  timm-p2be benchmark attacks ... --attacks pgd-kernel square --alone 50 --worst-case 0 --no-curves --no-binarization
  timm-p2be benchmark attacks ... --transfer-from rgb:wrn40_2=rgb.pth.tar --save-images
  timm-p2be benchmark attacks ... --budget          (only says what it would cost)
  torchrun --nproc-per-node 4 -m timm_p2be.cli benchmark attacks ...     (the ranks share the batches)
"""


def declare(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the flags of `benchmark attacks` and return the command."""
    parser.epilog = _EPILOG.format(families=', '.join(FAMILIES), quick=', '.join(SUITES['quick']))
    add_model_flags(parser)
    add_data_flags(parser)
    _add_flags(parser)
    return lambda args: run_long(parser, lambda: _run(args), KEPT)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('attacks').add_argument
    add('--eps', type=int, default=8, metavar='LEVELS', help='bound, 1 to 255 (default: %(default)s)')
    add('--attacks', nargs='+', default=['full'], metavar='NAME', help='full (default), quick, or names, see below')
    add(
        '--transfer-from',
        nargs='+',
        default=[],
        metavar='[LABEL:]NAME[=FILE]',
        help='models whose adversarial images are tried, too',
    )
    add('--alone', type=int, default=200, metavar='N', help='images that every attack faces (default: %(default)s)')
    add('--worst-case', type=int, default=1000, metavar='N', help='images of the worst case; 0: none (%(default)s)')
    add('--no-curves', action='store_true', help='leave out the curves over the bound and the steps')
    add('--no-binarization', action='store_true', help='leave out the binarization test')
    add('--probed', type=int, default=50, metavar='N', help='images of curves and binarization (default: %(default)s)')
    add = parser.add_argument_group('run').add_argument
    add('--img-size', type=int, metavar='SIDE', help="side of the images (default: the model's)")
    add('--resize', type=int, metavar='SIDE', help='shorter side before a central crop (default: none)')
    add('--batch-size', type=int, default=100, metavar='N', help='default: %(default)s')
    add('--seed', type=int, default=0, help='default: %(default)s')
    add('--output', type=Path, default=Path('output/attacks'), metavar='DIR', help='default: %(default)s')
    add('--overwrite', action='store_true', help='start afresh, whatever results are in --output')
    add('--budget', action='store_true', help='only print what the attacks would cost')
    add('--save-images', action='store_true', help='keep the images that fell in the worst case')


def _run(args: argparse.Namespace) -> int:
    require('matplotlib', extra='robustness')  # the report's; not found out after hours
    models = models_from(args)
    device = models[0].device
    sources = [load_model(spec, args.num_classes, device, args.mean, args.std) for spec in args.transfer_from]
    suites = [build_suite(model, args.eps, args.attacks, sources) for model in models]
    sides = [args.img_size or model.input_size[-1] for model in models]
    data = {side: images_from(args, side, args.resize) for side in set(sides)}
    jobs = [
        (model, data[side].numbered_for(model), attacks)
        for model, side, attacks in zip(models, sides, suites, strict=True)
    ]
    with connected_ranks() as ranks, alone_in(args.output, ranks.first and not args.budget):
        for model, images, attacks in jobs:  # what is wrong with the last model is said before the first
            folder = None if args.overwrite or args.budget else args.output
            AttackResults.start(model, images, attacks, _settings(args), folder if ranks.first else None)
            check_size(model, images.size)
            if ranks.first:
                _print_budget(args, model, images, attacks)
        if args.budget:
            return 0
        contents: list[dict[str, Any]] = []
        for job in jobs:
            contents.append(_benchmark(args, *job))
            if ranks.first:
                attack_report(contents).write(args.output)
        if ranks.first:
            print(attack_report(contents).markdown())
    return 3 if any(content['gradient_masking_suspected'] for content in contents) else 0


def _benchmark(
    args: argparse.Namespace, model: PixelModel, data: ImageSet, attacks: Sequence[Attack]
) -> dict[str, Any]:
    """Run attacks, probes and checks on one model and return the content of its result file."""
    results = benchmark_attacks(
        model, data, attacks, **_settings(args), output=args.output, overwrite=args.overwrite, show=True
    )
    probe_gradients(model, data, results)
    variants = {attack.name: build for attack in attacks if (build := variant(attack.name)) is not None}
    best = strongest(results.content, [name for name in variants if name != 'lspga-official'] or list(variants))
    if not args.no_curves:
        chosen = {name: build for name, build in variants.items() if name in (best, 'lspga-official')}
        probe_curves(model, data, results, chosen, show=True)
    if not args.no_binarization and best is not None and args.eps > 1:
        probe_binarization(model, data, results, best, variants[best], show=True)
    conclude(results)
    return results.content


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    names = ('eps', 'alone', 'worst_case', 'probed', 'batch_size', 'seed', 'save_images')
    return {name: getattr(args, name) for name in names}


def _print_budget(args: argparse.Namespace, model: PixelModel, data: ImageSet, attacks: Sequence[Attack]) -> None:
    levels, _ = as_batch(data, range(min(16, args.batch_size, len(data))))
    images = min(max(args.alone, args.worst_case), len(data))
    text = budget(attacks, images, measure_speed(model, levels))
    print(f'{model.name}, eps {args.eps}:\n{text}', file=sys.stdout if args.budget else sys.stderr)
