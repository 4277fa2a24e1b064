"""Train a recipe for so many minutes on a GPU: as many epochs as fit, the cosines fitted to them.

    python benchmarks/gpu_train.py --minutes 8 --data-dir DIR --experiment NAME [flags of train.py]
    python benchmarks/gpu_train.py --dry      # the same on a CPU, on scikit-learn's digits, in half a minute

Two epochs of the same run, in a folder that is thrown away, tell how long one takes, validation included. The table's
learning rate grows as the epochs get fewer, so that steps times rate stay the recipe's. Recipe: cifar10_gpu unless -c
names another. Error under corruptions: timm-p2be benchmark corruptions.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from timm_p2be.data.digits import write_digits
from timm_p2be.training import run
from timm_p2be.training.arguments import parse_args

DRY = '--dataset= --device cpu --model wrn10_2_p2be --train-num-samples 256 --workers 0 --torchcompile eager'


def epoch_and_start(words: list[str], folder: str) -> tuple[float, float]:
    """Return the seconds of an epoch, and of what comes before the first."""
    started = time.time()
    where = ['--output', folder, '--experiment', 'probe', '--overwrite', '--epochs', '2', '--checkpoint-hist', '2']
    if code := run.main([*words, *where], 'gpu_train.py'):
        sys.exit(code)
    first, second = (Path(folder, 'probe', f'checkpoint-{epoch}.pth.tar').stat().st_mtime for epoch in (0, 1))
    return second - first, max(first - started - (second - first), 0)


def main() -> int:
    """Measure, then train, and return train.py's exit code."""
    started = time.time()
    summary, _, details = (__doc__ or '').partition('\n')
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--minutes', type=float, default=8, help='all in all (default: %(default)s)')
    parser.add_argument('--dry', action='store_true', help='on a CPU, half a minute')
    args, words = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        words = words if '-c' in words else ['-c', 'cifar10_gpu', *words]
        if args.dry:
            words += [*DRY.split(), '--data-dir', str(write_digits(folder)), '--output', folder]
        recipe = parse_args(words, 'gpu_train.py').args
        epoch, start = epoch_and_start(words, folder)
        left = (0.5 if args.dry else args.minutes) * 60 - (time.time() - started) - start
        epochs = min(recipe.epochs, max(1, int(0.97 * left / epoch)))
        print(f'An epoch takes {epoch:.1f} s, {start:.1f} s come before the first: {epochs} epochs.', flush=True)
        words += ['--epochs', str(epochs)]
        if recipe.p2be_lr:
            words += ['--p2be-lr', str(recipe.p2be_lr * recipe.epochs / epochs)]
        if recipe.p2be_min_lr:
            words += ['--p2be-min-lr', str(recipe.p2be_min_lr * recipe.epochs / epochs)]
        code = run.main(words, 'gpu_train.py')
    print(f'{(time.time() - started) / 60:.1f} minutes in all.')
    return code


if __name__ == '__main__':
    sys.exit(main())
