"""The `timm-p2be` command, beside the package so that help, version and usage errors need not import torch.

`COMMANDS` lists the subcommands; each is a file of `timm_p2be.cli` whose `declare` adds the flags to a parser and
returns what runs on the parsed arguments. Wrong usage exits with 2.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

GROUPS = {'benchmark': 'Measure the robustness of models: corruptions, or attacks.'}

# words of a command, which name its file -> its line of help
COMMANDS = {
    'train': 'Train a model by a recipe: timm-p2be train -c cifar10 --data-dir DIR.',
    'reproduce': 'Reproduce a table or figure of the paper: train, measure, and hold it against the claims.',
    'run': "Run a Python script, such as timm's validate.py, with the models of timm-p2be registered.",
    'status': 'Say where a run of train.py stands: epochs, figures, newest checkpoint.',
    'corrupt': 'Write corrupted copies of images, or of a whole data set in the layout of CIFAR-C or ImageNet-C.',
    'benchmark corruptions': 'Measure models under the corruptions of CIFAR-C or ImageNet-C.',
    'benchmark attacks': 'Attack models within a bound and report the worst case.',
    'benchmark leaderboard': 'Rank the models of many result files, on one page.',
    'publish': 'Publish what a run of train.py trained: model, or learned table, with results and card.',
    'pull': 'Download a model or an embedding from the Hub, at one commit and verified.',
    'list': 'List shipped weights and what is in the Hub cache, or what a namespace of the Hub offers.',
    'show': 'Show a table of codes: figures, a picture, and where it comes from.',
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default that of this process.

    Returns:
        Exit code: the subcommand's, 1 when nobody reads the output any more, or 2 when no subcommand was named.

    Example:
        >>> main([])  # prints the help
        2
    """
    argv = sys.argv[1:] if argv is None else [*argv]
    if argv[:1] == ['train']:  # all words are its own: its parser reads a recipe first
        train: int = import_module('timm_p2be.training.run').main(argv[1:], prog='timm-p2be train')
        return train
    parser, commands = _parsers()
    try:
        for words, command in commands.items():
            if argv[: len(words.split())] == words.split():  # only the command at hand is imported: they need torch
                module = import_module(f'timm_p2be.cli.{words.replace(" ", "_")}')
                command.set_defaults(command=module.declare(command))
        args = parser.parse_args(argv)
        if not hasattr(args, 'command'):
            parser.print_help(sys.stderr)
            return 2
        code: int = args.command(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `head` has seen enough; as https://docs.python.org/3/library/signal.html#note-on-sigpipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        if not isinstance(error, ValueError):  # timm_p2be.extras.MissingExtra is both
            raise
        parser.error(str(error))
    return code


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser and those of the commands, which have no flags yet."""
    parser = argparse.ArgumentParser(
        prog='timm-p2be', description='Binary pixel codes (P2BE, one-hot, thermometer) for timm.', allow_abbrev=False
    )
    parser.add_argument('--version', action='version', version=f'%(prog)s {_version()}')
    groups = {'': parser.add_subparsers(title='commands', metavar='COMMAND')}
    commands = {}
    for words, summary in COMMANDS.items():
        group, _, name = words.rpartition(' ')
        if group not in groups:
            parent = groups[''].add_parser(group, help=GROUPS[group], description=GROUPS[group], allow_abbrev=False)
            groups[group] = parent.add_subparsers(title='commands', metavar='COMMAND', required=True)
        commands[words] = groups[group].add_parser(
            name,
            help=summary,
            description=summary,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    return parser, commands


def _version() -> str:
    """Return the package's version from its text: importing it would import torch."""
    text = (Path(__file__).parent / 'timm_p2be' / '__init__.py').read_text(encoding='utf-8')
    return text.partition("__version__ = '")[2].partition("'")[0]
