"""The `timm-p2be` command; `python -m timm_p2be.cli` is the same.

A subcommand is one function: it declares the flags on a parser of its own and returns what runs on the parsed
arguments. `_COMMANDS` lists them. Wrong usage exits with 2.
"""

import argparse
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

import timm

import timm_p2be  # registers the models and optimizers, which is what `run` is for

Command = Callable[[argparse.Namespace], int]

_SCRIPTS = (
    "timm's own scripts (train.py, validate.py, inference.py, benchmark.py, onnx_export.py) are not in its wheel; take "
    'them from https://github.com/huggingface/pytorch-image-models'
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: what follows the command's name; the arguments of this process when None.

    Returns:
        Exit code: 0, or 2 when no subcommand was named.

    Raises:
        SystemExit: 2 for wrong usage, 0 for `--help` and `--version`, or what a script run by `run` exits with.

    Example:
        >>> main([])  # prints the help
        2
    """
    parser = argparse.ArgumentParser(
        prog='timm-p2be', description='Binary pixel codes (P2BE, one-hot, thermometer) for timm.', allow_abbrev=False
    )
    parser.add_argument('--version', action='version', version=f'%(prog)s {timm_p2be.__version__}')
    commands = parser.add_subparsers(title='commands', metavar='COMMAND')
    for name, (summary, declare) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.set_defaults(command=declare(command))
    args = parser.parse_args(argv)
    if not hasattr(args, 'command'):
        parser.print_help(sys.stderr)
        return 2
    return args.command(args)


def run_script(script: Path, args: Sequence[str]) -> None:
    """Run a Python script as `python script args` does, with this package's models and optimizers registered.

    Processes that the script spawns load it under the name `__mp_main__`, as they do after `python script`. They have
    not imported this package, unless they unpickle something of it: data loading does not need it.

    Args:
        script: the file that becomes `__main__`; its absolute path is `sys.argv[0]`, its folder leads `sys.path`.
        args: `sys.argv[1:]` of the script.

    Raises:
        SystemExit: the script exits.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     script = Path(folder) / 'hello.py'
        ...     _ = script.write_text('import sys; print(__name__, sys.argv[1:])')
        ...     run_script(script, ['--help'])
        __main__ ['--help']
    """
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


def _run(parser: argparse.ArgumentParser) -> Command:
    parser.usage = '%(prog)s [-h] SCRIPT [ARGS ...]'
    parser.epilog = f'{_SCRIPTS}. Example: timm-p2be run validate.py --model wrn40_2_p2be --data-dir DIR'
    parser.add_argument('script', nargs='?', metavar='SCRIPT', help='a Python script')
    parser.add_argument('args', nargs=argparse.REMAINDER, metavar='ARGS', help='its arguments, passed on as they are')

    def command(args: argparse.Namespace) -> int:
        if args.script is None or not Path(args.script).is_file():
            got = 'no SCRIPT' if args.script is None else f'SCRIPT {args.script!r}, which is not a file'
            parser.error(f'Got {got}; allowed is the path of a Python script. {_SCRIPTS}.')
        run_script(Path(args.script), args.args)
        return 0

    return command


# name -> its line of help, and the function that declares it
_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], Command]]] = {
    'run': ("Run a Python script, such as timm's validate.py, with the models of timm-p2be registered.", _run),
}

if __name__ == '__main__':
    sys.exit(main())
