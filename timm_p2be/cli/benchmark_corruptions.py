"""`timm-p2be benchmark corruptions`: models under the corruptions of CIFAR-C or ImageNet-C."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from timm_p2be.cli.flags import add_data_flags, add_model_flags, images_from, models_from, names_images
from timm_p2be.cli.interruption import KEPT, alone_in, run_long
from timm_p2be.extras import require
from timm_p2be.robustness.corruptions import SEVERITIES, SUITES
from timm_p2be.robustness.corruptions.corrupted_sets import CorruptedSet
from timm_p2be.robustness.corruptions.generated_set import GeneratedSet
from timm_p2be.robustness.corruptions.stored_sets import open_corrupted
from timm_p2be.robustness.evaluation.corruption_benchmark import benchmark_corruptions, finished_part
from timm_p2be.robustness.evaluation.corruption_report import corruption_report
from timm_p2be.robustness.evaluation.results import read_json
from timm_p2be.robustness.evaluation.runner import connected_ranks
from timm_p2be.robustness.images import RESIZE, ImageSet

_RESULTS = 'results.json'
_AMP = {'bfloat16': torch.bfloat16, 'float16': torch.float16}
_EPILOG = """\
The images are those of a folder (--corrupted: CIFAR-10-C, CIFAR-100-C, ImageNet-C, ImageNet-C-bar, or a set written by
`timm-p2be corrupt`), or corrupted copies of clean images made as it goes. Clean images beside --corrupted add the clean
error. OUTPUT gets results.json, report.md and report.html; the same command again does what is missing.

examples:
  timm-p2be benchmark corruptions --model wrn40_2_p2be=last.pth.tar --corrupted CIFAR-10-C \\
      --dataset torch/cifar10 --data-dir data --split test --output results/cifar10c
  timm-p2be benchmark corruptions --model resnet50.a1_in1k resnet50.tv_in1k --corrupted ImageNet-C --suite imagenet
  timm-p2be benchmark corruptions --model ours:wrn10_2_p2be=a.pth.tar rgb:wrn10_2=b.pth.tar \\
      --dataset hfds/data/cifar10 --input-key img --target-key label --split test --limit 200 --workers 2
  torchrun --nproc-per-node 4 -m timm_p2be.cli benchmark corruptions ...     (the ranks share the images)
"""


def declare(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the flags of `benchmark corruptions` and return the command."""
    parser.epilog = _EPILOG
    add_model_flags(parser)
    add_data_flags(parser)
    _add_flags(parser)
    return lambda args: run_long(parser, lambda: _run(args), KEPT)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('corruptions').add_argument
    add('--corrupted', type=Path, metavar='DIR', help='stored images; default: corrupt the clean ones')
    add('--suite', choices=list(SUITES), help='parameters and image size (default: of --corrupted, or cifar)')
    add('--corruptions', nargs='+', metavar='NAME', help='default: the 15 of the benchmark')
    add('--extra', action='store_true', help='also the 4 extra ones, which enter no mean')
    add('--severities', nargs='+', type=int, default=list(SEVERITIES), metavar='S', help='default: 1 to 5')
    add('--seed', type=int, help='of the corruptions that are made here (default: 0)')
    add = parser.add_argument_group('run').add_argument
    add('--batch-size', type=int, default=128, metavar='N', help='default: %(default)s; less if memory runs out')
    add('--workers', type=int, default=0, metavar='N', help='processes that make images (default: %(default)s)')
    add('--amp-dtype', choices=list(_AMP), help='run the models in autocast (default: float32)')
    add('--output', type=Path, default=Path('output/corruptions'), metavar='DIR', help='default: %(default)s')
    add('--overwrite', action='store_true', help='start afresh, whatever results are in --output')


def _run(args: argparse.Namespace) -> int:
    require('matplotlib', extra='robustness')  # the report's; not found out after hours
    data, clean = _data(args)
    ranks = connected_ranks()
    with alone_in(args.output, ranks.first):
        models, output = models_from(args), args.output / _RESULTS
        settings = {'batch_size': args.batch_size, 'workers': args.workers, 'amp_dtype': _AMP.get(args.amp_dtype)}
        try:
            content = benchmark_corruptions(models, data, clean, output=output, overwrite=args.overwrite, **settings)
        except KeyboardInterrupt:
            if ranks.first and output.exists():
                found = finished_part(read_json(output, 'corruptions'))
                if found['config']['corruptions']:
                    corruption_report(found).write(args.output)
            raise
        if ranks.first:
            report = corruption_report(content)
            report.write(args.output)
            print(report.markdown())
    return 0


def _data(args: argparse.Namespace) -> tuple[CorruptedSet, ImageSet | None]:
    """Return corrupted images, and clean ones if the flags name some."""
    if args.corrupted is None:
        suite = args.suite or 'cifar'
        clean = images_from(args, SUITES[suite], RESIZE[suite])
        return GeneratedSet(clean, suite, args.corruptions, args.severities, args.extra, args.seed or 0), clean
    if args.seed is not None:
        raise ValueError(f'--seed is for corruptions that are made here; --corrupted {args.corrupted} has its own.')
    named = names_images(args)
    data = open_corrupted(args.corrupted, args.corruptions, args.severities, args.extra, args.limit, args.class_map)
    if args.suite not in (None, data.suite):
        raise ValueError(
            f'{args.corrupted} has the layout of the suite {data.suite}, not {args.suite}. Leave out --suite.'
        )
    return data, images_from(args, SUITES[data.suite], RESIZE[data.suite]) if named else None
