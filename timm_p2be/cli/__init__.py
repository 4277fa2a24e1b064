"""The `timm-p2be` command; `python -m timm_p2be.cli` is the same.

`_COMMANDS` lists the subcommands; each is a file of `timm_p2be.cli` whose `declare` adds the flags to a parser and
returns what runs on the parsed arguments. Wrong usage exits with 2.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import timm_p2be  # registers the models and optimizers, which is what `run` is for


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: what follows the command's name; the arguments of this process when None.

    Returns:
        Exit code: 0, 1 when nobody reads the output any more, or 2 when no subcommand was named.

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
    groups: dict[str, argparse._SubParsersAction[argparse.ArgumentParser]] = {'': commands}
    argv = sys.argv[1:] if argv is None else [*argv]
    for words, summary in _COMMANDS.items():
        group, _, name = words.rpartition(' ')
        if group not in groups:
            parent = commands.add_parser(group, help=_GROUPS[group], description=_GROUPS[group], allow_abbrev=False)
            groups[group] = parent.add_subparsers(title='commands', metavar='COMMAND', required=True)
        command = groups[group].add_parser(
            name,
            help=summary,
            description=summary,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if argv[: len(words.split())] == words.split():  # only the command at hand is imported: some take seconds
            module = import_module(f'timm_p2be.cli.{words.replace(" ", "_")}')
            command.set_defaults(command=module.declare(command))
    args = parser.parse_args(argv)
    if not hasattr(args, 'command'):
        parser.print_help(sys.stderr)
        return 2
    try:
        code = args.command(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `head` has seen enough; as https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


_GROUPS = {'benchmark': 'Measure the robustness of models: corruptions, or attacks.'}

# words of a command, which name its file -> its line of help
_COMMANDS = {
    'run': "Run a Python script, such as timm's validate.py, with the models of timm-p2be registered.",
    'corrupt': 'Write corrupted copies of images, or of a whole data set in the layout of CIFAR-C or ImageNet-C.',
    'benchmark corruptions': 'Measure models under the corruptions of CIFAR-C or ImageNet-C.',
    'benchmark attacks': 'Attack models within a bound and report the worst case.',
    'publish': 'Publish what a run of train.py trained: model, or learned table, with results and card.',
    'pull': 'Download a model or an embedding from the Hub, at one commit and verified.',
    'list': 'List shipped weights and what is in the Hub cache, or what a namespace of the Hub offers.',
    'show': 'Show a table of codes: figures, a picture, and where it comes from.',
}
