"""`timm-p2be publish`: what a run of train.py trained, as a repository on the Hub."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from timm_p2be.cli.flags import add_data_flags, images_from, names_images
from timm_p2be.cli.interruption import run_long
from timm_p2be.files import file_sha256
from timm_p2be.hub.card import LICENSE
from timm_p2be.hub.publishing import check_names, publish
from timm_p2be.hub.release import Release, prepare
from timm_p2be.hub.repository import RELEASE_FILES
from timm_p2be.hub.run_description import Dataset

_EPILOG = """\
A release is model.safetensors, config.json, results.json and README.md, the card; a table has its results in
config.json. It is uploaded in one commit, then tagged. Never uploaded: checkpoints, args.yaml, paths, and anything else
in RUN_FOLDER. Look at it by --dry-run first, which needs no token. Uploading takes the token of `hf auth login`, or of
the variable HF_TOKEN.

The card states how the run was trained, from its args.yaml, and what it scored. The clean error is that of its
summary.csv; with --data-dir or --dataset it is measured now, on the weights as they are published, in float32, with
the resize and crop of config.json. --results adds benchmarks, which have to be of these very weights. Without any
result nothing is published.

examples:
  timm-p2be publish output/train/RUN --repo-id org/wrn40_2_p2be --tag v1 --dataset-name CIFAR-10 --dry-run release
  timm-p2be publish output/train/RUN --repo-id org/wrn40_2_p2be --tag v1 --dataset-name CIFAR-10 \\
      --results output/corruptions/results.json output/attacks/wrn40_2_p2be.attacks.json
  timm-p2be publish output/train/RUN --repo-id org/wrn40_2_p2be --tag v1 --dataset torch/cifar10 --data-dir data \\
      --dataset-name CIFAR-10
  timm-p2be publish output/train/RUN --repo-id org/p2be-m64 --embedding-only --tag v1 --dataset-name CIFAR-10
"""


def declare(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the flags of `publish` and return the command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        'run_folder', type=Path, metavar='RUN_FOLDER', help='output folder of train.py, with args.yaml in it'
    )
    parser.add_argument('--repo-id', required=True, metavar='ORG/NAME', help='on the Hub; created if it is not there')
    parser.add_argument('--tag', help='of the release, such as v1; never moved later (default: none)')
    parser.add_argument('--private', action='store_true', help='create the repository private')
    parser.add_argument('--dry-run', type=Path, metavar='FOLDER', help='write the release here, upload nothing')
    group = parser.add_argument_group('what to publish')
    group.add_argument(
        '--checkpoint', default='last', metavar='NAME', help='last, best or the path of another (default: last)'
    )
    group.add_argument('--embedding-only', action='store_true', help='the learned table alone, without the network')
    group.add_argument('--half', action='store_true', help='convolution and linear weights in float16: half the size')
    group.add_argument(
        '--results',
        type=Path,
        nargs='+',
        default=[],
        metavar='FILE',
        help='JSON results of timm-p2be benchmark: one of corruptions, any number of attacks',
    )
    add_data_flags(parser, 'test data, to measure the clean error on')
    group = parser.add_argument_group('what the card states')
    group.add_argument(
        '--dataset-name', metavar='NAME', help='what the run was trained on, such as CIFAR-10 (known for torch/ ones)'
    )
    group.add_argument('--dataset-id', metavar='ID', help='its id on the Hub, such as uoft-cs/cifar10')
    group.add_argument('--dataset-note', metavar='TEXT', help='what is particular about this copy of it')
    group.add_argument('--test-images', type=int, metavar='N', help='how many images the run was validated on')
    group.add_argument(
        '--base-model', metavar='ID', help='model the run started from; for a table, its published network'
    )
    group.add_argument('--license', default=LICENSE, metavar='ID', help='of the weights (default: %(default)s)')

    return lambda args: run_long(parser, lambda: _run(args), 'Run it again to complete the release.')


def _run(args: argparse.Namespace) -> int:
    if args.dry_run is not None and args.private:
        raise ValueError('Got --dry-run and --private; a dry run creates no repository. Leave one of them out.')
    if args.test_images is not None and args.test_images < 1:
        raise ValueError(f'Got --test-images {args.test_images}; allowed is at least 1.')
    check_names(args.repo_id, args.tag)
    release = Release(
        repo_id=args.repo_id,
        tag=args.tag,
        checkpoint=args.checkpoint,
        embedding_only=args.embedding_only,
        half=args.half,
        dataset=Dataset(args.dataset_name, args.dataset_id, args.dataset_note, args.test_images),
        results=args.results,
        base_model=args.base_model,
        license=args.license,
        test=partial(images_from, args) if names_images(args, 'class_map', 'limit') else None,
        # the test images of torchvision's sets are a 'validation' split to timm
        test_split=None if args.dataset.startswith('torch/') else args.split,
    )
    with TemporaryDirectory() as temporary:
        folder = args.dry_run or Path(temporary) / 'release'
        prepare(args.run_folder, folder, release)
        for path in sorted(folder / name for name in RELEASE_FILES):
            if path.is_file():
                print(f'{path.name}: {path.stat().st_size:,} bytes, sha256 {file_sha256(path)}')
        if args.dry_run is not None:
            print(f'The release of {release.name} is in {args.dry_run}; nothing was uploaded.')
            return 0
        commit = publish(folder, args.repo_id, args.tag, args.private)
    print(f'Published {release.name} at commit {commit.oid}: {commit.repo_url}')
    return 0
