"""`timm-p2be run SCRIPT`: a Python script with this package's models and optimizers registered."""

import argparse
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

import timm

_SCRIPTS = (
    "timm's own scripts (train.py, validate.py, inference.py, benchmark.py, onnx_export.py) are not in its wheel; take "
    'them from https://github.com/huggingface/pytorch-image-models'
)


def declare(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the flags of `run` and return the command."""
    parser.usage = '%(prog)s [-h] SCRIPT [ARGS ...]'
    parser.epilog = (
        f'{_SCRIPTS}. Example: timm-p2be run validate.py --model wrn40_2_p2be --data-dir DIR. Here train.py also takes '
        '--aa p2be-3, the AugMix of the paper, and --train-crop-mode zeropad4 (docs/timm_scripts.md).'
    )
    parser.add_argument('script', nargs='?', metavar='SCRIPT', help='a Python script')
    parser.add_argument('args', nargs=argparse.REMAINDER, metavar='ARGS', help='its arguments, passed on as they are')

    def command(args: argparse.Namespace) -> int:
        if args.script is None or not Path(args.script).is_file():
            got = 'no SCRIPT' if args.script is None else f'SCRIPT {args.script!r}, which is not a file'
            parser.error(f'Got {got}; allowed is the path of a Python script. {_SCRIPTS}.')
        run_script(Path(args.script), args.args)
        return 0

    return command


def run_script(script: Path, args: Sequence[str]) -> None:
    """Run a Python script as `python script args` does, with this package's models and optimizers registered.

    So are the names that `timm_p2be.timm_script` adds to the flags of timm's train.py.

    Processes that the script spawns load it under the name `__mp_main__`, as they do after `python script`. They have
    not imported this package, unless they unpickle something of it: data loading does not need it.
    """
    try:
        import timm_p2be.timm_script  # noqa: F401
    except ImportError as error:  # most scripts do without
        print(f'timm-p2be run: {error}', file=sys.stderr)
    script = script.absolute()  # Python does the same to __file__, which stays valid when the script changes folder
    argv, path = sys.argv, sys.path[:]
    sys.argv = [str(script), *args]
    sys.path[:] = _search_path(script.resolve().parent)
    try:
        runpy.run_path(str(script), run_name='__main__')
    finally:
        sys.argv, sys.path[:] = argv, path


def _search_path(folder: Path) -> list[str]:
    """Return `sys.path` for a script in `folder`: Python puts the folder first, in the launcher's place.

    It goes last in a checkout of timm: spawned processes would import the timm that lies there, while this one has
    imported the installed one, and the two exchange pickles.
    """
    if getattr(sys.flags, 'safe_path', False):  # python -P (3.11) puts neither the launcher's folder nor this one there
        return sys.path[:]
    beside = PathFinder.find_spec('timm', [str(folder)])
    if beside is not None and beside.origin != timm.__file__:
        return [*sys.path[1:], str(folder)]
    return [str(folder), *sys.path[1:]]
