"""`timm-p2be corrupt`: a corrupted copy of a whole data set."""

import argparse
from collections.abc import Callable
from pathlib import Path

from timm_p2be.cli.flags import add_data_flags, images_from
from timm_p2be.cli.interruption import run_long
from timm_p2be.robustness.corruptions import SEVERITIES, SUITES
from timm_p2be.robustness.corruptions.generated_set import GeneratedSet, write_set
from timm_p2be.robustness.evaluation.runner import Progress
from timm_p2be.robustness.images import RESIZE

_EPILOG = """\
The set is written in the layout that `timm-p2be benchmark corruptions --corrupted` reads: <corruption>.npy and
labels.npy as CIFAR-C for the suite cifar, <corruption>/<severity>/<class>/<number>.JPEG (quality 85, as ImageNet-C) for
imagenet. Images of the suite cifar must have 32x32 pixels; those of imagenet are resized to a shorter side of 256 and
cropped to 224x224. Noise depends on the seed and the image's number alone. In Python,
`timm_p2be.robustness.corruptions.corrupt` takes one image.

example:
  timm-p2be corrupt --dataset hfds/data/cifar10 --input-key img --target-key label --split test \\
      --output data/cifar10-c-style --workers 2
"""


def declare(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the flags of `corrupt` and return the command."""
    parser.epilog = _EPILOG
    add_data_flags(parser)
    add = parser.add_argument_group('corruptions').add_argument
    add('--suite', choices=list(SUITES), default='cifar', help='parameters and size (default: %(default)s)')
    add('--name', nargs='+', metavar='NAME', help='default: the 15 of the benchmark')
    add('--extra', action='store_true', help='also the 4 extra ones')
    add('--severity', nargs='+', type=int, default=list(SEVERITIES), metavar='S', help='default: 1 to 5')
    add('--seed', type=int, default=0, help='default: %(default)s')
    add = parser.add_argument_group('output').add_argument
    add('--output', type=Path, required=True, metavar='DIR', help='folder of the corrupted images')
    add('--overwrite', action='store_true', help='replace what an earlier run wrote')
    add('--workers', type=int, default=0, metavar='N', help='processes that make images (default: %(default)s)')

    return lambda args: run_long(parser, lambda: _run(args), 'Files that were finished are whole, and kept.')


def _run(args: argparse.Namespace) -> int:
    clean = images_from(args, SUITES[args.suite], RESIZE[args.suite])
    data = GeneratedSet(clean, args.suite, args.name, args.severity, args.extra, args.seed)
    progress = Progress(len(data.names) * len(data.severities) * len(data))
    try:
        written = write_set(data, args.output, args.workers, args.overwrite, progress.step)
    finally:
        progress.close()
    kind = 'arrays' if args.suite == 'cifar' else 'folders'
    print(f'{written} {kind} of {data.describe()["label"]} written to {args.output}')
    return 0
