"""`timm-p2be corrupt`: corrupted copies of image files, or of a whole data set."""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from timm_p2be.cli.flags import DATA_FLAGS, add_data_flags, given_flags, images_from
from timm_p2be.cli.interruption import run_long
from timm_p2be.cli.picture_files import save_picture
from timm_p2be.data.image_files import open_image
from timm_p2be.robustness.corruptions import SEVERITIES, SUITES
from timm_p2be.robustness.corruptions.generated_set import GeneratedSet, write_set
from timm_p2be.robustness.evaluation.runner import Progress
from timm_p2be.robustness.images import RESIZE, ImageSet

_EPILOG = """\
IMAGE files are written to OUTPUT as <image>_<corruption>_<severity>.png. A data set is written in the layout that
`timm-p2be benchmark corruptions --corrupted` reads: <corruption>.npy and labels.npy as CIFAR-C for the suite cifar,
<corruption>/<severity>/<class>/<number>.JPEG (quality 85, as ImageNet-C) for imagenet. Images of the suite cifar must
have 32x32 pixels; those of imagenet are resized to a shorter side of 256 and cropped to 224x224, image files that have
224x224 are taken as they are. Noise depends on the seed and the image's number alone.

examples:
  timm-p2be corrupt cat.jpg --suite imagenet --name fog snow --severity 3 --output corrupted
  timm-p2be corrupt --dataset hfds/data/cifar10 --input-key img --target-key label --split test \\
      --output data/cifar10-c-style --workers 2
"""
_DATA_FLAGS = ('dataset', 'data_dir', *DATA_FLAGS, 'workers')


def declare(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the flags of `corrupt` and return the command."""
    parser.epilog = _EPILOG
    parser.add_argument('image', nargs='*', type=Path, metavar='IMAGE', help='image files')
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
    add('--workers', type=int, default=0, metavar='N', help='processes, for a data set (default: 0)')

    def command(args: argparse.Namespace) -> int:
        given = given_flags(parser, args, _DATA_FLAGS)
        return run_long(parser, lambda: _run(args, given), lambda: 'Files that were finished are whole, and kept.')

    return command


def _run(args: argparse.Namespace, data_flags: str) -> int:
    if args.image and data_flags:
        raise ValueError(f'Got image files and {data_flags}, which is for data sets. Pass one of the two.')
    if args.image:
        clean = ImageSet([(_read(path, args.suite), 0) for path in args.image], 'image files', SUITES[args.suite])
    else:
        clean = images_from(args, SUITES[args.suite], RESIZE[args.suite])
    data = GeneratedSet(clean, args.suite, args.name, args.severity, args.extra, args.seed)
    (_write_files if args.image else _write_data)(args, data)
    return 0


def _write_data(args: argparse.Namespace, data: GeneratedSet) -> None:
    progress = Progress(len(data.names) * len(data.severities) * len(data))
    try:
        written = write_set(data, args.output, args.workers, args.overwrite, progress.step)
    finally:
        progress.close()
    kind = 'arrays' if args.suite == 'cifar' else 'folders'
    print(f'{written} {kind} of {data.describe()["label"]} written to {args.output}')


def _write_files(args: argparse.Namespace, data: GeneratedSet) -> None:
    stems = [path.stem for path in args.image]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ValueError(f'Two images are called {twice[0]!r}; corrupt them into folders of their own.')
    jobs = [*itertools.product(enumerate(stems), data.names, data.severities)]
    for (index, stem), name, severity in jobs:
        image = Image.fromarray(data.image(name, severity, index)[0])
        save_picture(image, args.output / f'{stem}_{name}_{severity}.png', args.overwrite)
    print(f'{len(jobs)} images written to {args.output}')


def _read(path: Path, suite: str) -> Image.Image:
    """Return an image file at the suite's size: as it is if it has that, else as images of a data set are treated."""
    image, side = open_image(path, str(path)), SUITES[suite]
    if image.size == (side, side):
        return image
    return Image.fromarray(ImageSet([(image, 0)], path.name, side, RESIZE[suite])[0][0])
