"""`timm-p2be benchmark attacks`: models under attacks within one bound, the worst case, and checks on the attacks."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from timm_p2be.cli.flags import add_data_flags, add_model_flags, images_from, models_from
from timm_p2be.cli.interruption import KEPT, alone_in, run_long
from timm_p2be.extras import require
from timm_p2be.robustness.attacks.attack import Attack, Cost
from timm_p2be.robustness.attacks.surrogates import surrogates_for
from timm_p2be.robustness.evaluation import attack_probes as probes
from timm_p2be.robustness.evaluation.attack_benchmark import benchmark_attacks
from timm_p2be.robustness.evaluation.attack_checks import conclude
from timm_p2be.robustness.evaluation.attack_report import attack_report
from timm_p2be.robustness.evaluation.attack_results import AttackResults
from timm_p2be.robustness.evaluation.attack_suite import (
    FAMILIES,
    SUITES,
    Task,
    Variant,
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
fgsm, pgd and apgd run through the surrogates 'linear' and 'kernel'; pgd-ramp names one of all. quick: {quick},
on 50 images, without curves and binarization unless they are asked for: minutes for a network of CIFAR.

Each attack runs alone on the first --alone images. The worst case runs them in turn on the first --worst-case images,
each on those still standing. Every adversarial image is a uint8 image within the bound, judged by the untouched model.
OUTPUT gets MODEL.attacks.json, report.md and report.html; the same command again goes on where it stopped.

exit codes: 0 done, 2 wrong usage, 3 done, and gradient masking is suspected.

examples:
  timm-p2be benchmark attacks --model wrn40_2_p2be=last.pth.tar --dataset torch/cifar10 --data-dir data --split test
  timm-p2be benchmark attacks --model ours:wrn10_2_p2be=a.pth.tar rgb:wrn10_2=b.pth.tar --attacks quick --limit 100 \\
      --dataset hfds/data/cifar10 --input-key img --target-key label --split test
  timm-p2be benchmark attacks ... --attacks pgd-kernel square --alone 50 --worst-case 0 --no-curves --no-binarization
  timm-p2be benchmark attacks ... --transfer-from rgb:wrn40_2=rgb.pth.tar
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
    add('--alone', type=int, metavar='N', help='images that every attack faces (default: 200)')
    add('--worst-case', type=int, metavar='N', help='images of the worst case; 0: none (default: 1000)')
    choice = argparse.BooleanOptionalAction
    add('--curves', action=choice, help='draw curves over the bound and the steps, or not (default: drawn)')
    add('--binarization', action=choice, help='run the binarization test, or not (default: run)')
    add('--probed', type=int, default=50, metavar='N', help='images of curves and binarization (default: %(default)s)')
    add = parser.add_argument_group('run').add_argument
    add('--img-size', type=int, metavar='SIDE', help="side of the images (default: the model's)")
    add('--resize', type=int, metavar='SIDE', help='shorter side before a central crop (default: none)')
    add('--batch-size', type=int, default=100, metavar='N', help='default: %(default)s')
    add('--seed', type=int, default=0, help='default: %(default)s')
    add('--output', type=Path, default=Path('output/attacks'), metavar='DIR', help='default: %(default)s')
    add('--overwrite', action='store_true', help='start afresh, whatever results are in --output')
    add('--budget', action='store_true', help='only print what all of this would cost')


def _run(args: argparse.Namespace) -> int:
    require('matplotlib', extra='robustness')  # the report's; not found out after hours
    quick = args.attacks == ['quick']
    usual = {'alone': 50 if quick else 200, 'worst_case': 50 if quick else 1000}
    for name, value in {**usual, 'curves': not quick, 'binarization': not quick}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.binarization = args.binarization and args.eps > 1
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
    ranks = connected_ranks()
    with alone_in(args.output, ranks.first and not args.budget):
        for model, images, attacks in jobs:  # what is wrong with the last model is said before the first
            folder = None if args.overwrite or args.budget else args.output
            AttackResults.start(model, images, attacks, _settings(args), folder if ranks.first else None)
            check_size(model, images.size)
            if ranks.first:
                _print_budget(args, model, images, attacks)
        if args.budget:
            return 0
        contents: list[dict[str, Any]] = []
        try:
            for job in jobs:
                contents.append(_benchmark(args, *job))
                if ranks.first:
                    attack_report(contents).write(args.output)
        except KeyboardInterrupt:
            for job in jobs[len(contents) :][: ranks.first]:
                found = AttackResults.start(*job, _settings(args), args.output).content
                if found['clean'] is not None:
                    attack_report([*contents, found]).write(args.output)
            raise
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
    results.content.pop('verdict', None)  # of an earlier run, which may have looked at less
    probes.probe_gradients(model, data, results)
    variants = _variants(attacks)
    best = probes.strongest(results.content, probes.followed(variants))
    shown = best or probes.strongest(results.content, [attack.name for attack in attacks])
    probes.probe_examples(model, data, results, next(attack for attack in attacks if attack.name == shown))
    if args.curves:
        chosen = {name: build for name, build in variants.items() if name in (best, probes.OFFICIAL)}
        probes.probe_curves(model, data, results, chosen, show=True)
    if args.binarization and best is not None:
        probes.probe_binarization(model, data, results, best, variants[best], show=True)
    conclude(results)
    return results.content


def _variants(attacks: Sequence[Attack]) -> dict[str, Variant]:
    return {attack.name: build for attack in attacks if (build := variant(attack.name)) is not None}


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    names = ('eps', 'alone', 'worst_case', 'probed', 'batch_size', 'seed')
    return {name: getattr(args, name) for name in names}


def _print_budget(args: argparse.Namespace, model: PixelModel, data: ImageSet, attacks: Sequence[Attack]) -> None:
    levels, _ = as_batch(data, range(min(16, args.batch_size, len(data))))
    speed, single = measure_speed(model, levels), measure_speed(model, levels[:1])
    images, probed = (min(count, len(data)) for count in (max(args.alone, args.worst_case), args.probed))
    tasks: list[Task] = [(attack.name, images, attack.cost(), speed) for attack in attacks]
    tasks.append(('images that are shown', probes.EXAMPLES, max((task[2] for task in tasks), key=sum), single))
    tasks.append(('gradients', probed, Cost(0, len(surrogates_for(model))), speed))
    if variants := _variants(attacks):
        curves, binarization = probes.probe_costs(model, args.eps, variants)
        tasks += [('curves', probed, curves, speed)] if args.curves else []
        tasks += [('binarization', probed, binarization, single)] if args.binarization else []
    print(f'{model.name}, eps {args.eps}:\n{budget(tasks)}', file=sys.stdout if args.budget else sys.stderr)
