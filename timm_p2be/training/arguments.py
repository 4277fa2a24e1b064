"""Command line of train.py: recipe, then command line, then a check that every flag given has an effect."""

import argparse
import difflib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml

from timm_p2be.training.conflicts import settle_conflicts
from timm_p2be.training.flags import add_flags

# flags of the table that timm's train.py has as an argument of 'sgdp2be' and 'adamwp2be', or of the model
_AS_KWARGS = {
    '--p2be-lr': ('--opt-kwargs', 'embedding_lr'),
    '--p2be-betas': ('--opt-kwargs', 'embedding_betas'),
    '--p2be-weight-decay': ('--opt-kwargs', 'embedding_weight_decay'),
    '--p2be-embedding': ('--model-kwargs', 'embedding'),
    '--p2be-freeze': ('--model-kwargs', 'freeze_embedding'),
}


class _Parser(argparse.ArgumentParser):
    """Explains what to do about a flag that this script does not take."""

    source = ''  # file that the flags come from, empty for the command line
    words: Sequence[str] = ()  # the whole run as one command line

    def error(self, message: str) -> NoReturn:
        prefix = 'unrecognized arguments: '
        if message.startswith(prefix):
            message = self._explain(message.removeprefix(prefix))
        super().error(f'{self.source}: {message}' if self.source else message)

    def _explain(self, unknown: str) -> str:
        unknown_flags = [word.split('=')[0] for word in unknown.split() if word.startswith('-')]
        own = [option for action in self._actions for option in action.option_strings]
        close = {flag: difflib.get_close_matches(flag, own, n=1, cutoff=0.85) for flag in unknown_flags}
        hints = ''.join(f' Did you mean {match[0]} for {flag}?' for flag, match in close.items() if match)
        return (
            f"unrecognized arguments: {unknown}.{hints}\nThis script takes the subset of timm's flags that --help "
            f"lists. With any other flag of timm, start the same run by timm's own train.py:\n"
            f'  {timm_command(self.words)}'
        )


@dataclass
class Arguments:
    """A parsed command line.

    Attributes:
        args: value of every flag.
        explicit: names of the flags given on the command line itself, which win over a recipe's.
        notes: what of the recipe the command line made void, for the log.
    """

    args: argparse.Namespace
    explicit: set[str]
    notes: list[str]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of train.py."""
    parser = _Parser(
        prog='train.py',
        usage='train.py [-c RECIPE] [--data-dir DIR] [--model NAME] [flag ...]   (train.py --help lists the flags)',
        description='Train any timm model, encoded or not, by the objective of the P2BE paper.',
        epilog='Example: train.py -c train_scripts/recipes/cifar100.yaml --data-dir data --model wrn40_2_thermometer',
        allow_abbrev=False,
    )
    parser.add_argument('-c', '--config', default='', metavar='FILE', help='YAML of flags: a recipe or an args.yaml')
    add_flags(parser)
    return parser


def parse_args(argv: Sequence[str]) -> Arguments:
    """Parse a command line.

    Raises:
        SystemExit: (code 2) bad flags, an unreadable recipe, or flags that have no effect in this combination.
    """
    parser = build_parser()
    assert isinstance(parser, _Parser)
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument('-c', '--config', default='')
    path = config_parser.parse_known_args(argv)[0].config
    recipe = _read_recipe(parser, path) if path else {}
    recipe_words = _command_line(recipe)
    parser.source, parser.words = path, recipe_words
    parser.parse_args(recipe_words)  # an error in here is the recipe's
    parser.source, parser.words = '', [*recipe_words, *argv]
    args = parser.parse_args([*recipe_words, *argv])
    unset = object()
    given = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), unset)))
    explicit = {name for name, value in vars(given).items() if value is not unset}
    notes = settle_conflicts(parser, args, explicit, set(recipe))
    return Arguments(args, explicit, notes)


def _read_recipe(parser: _Parser, path: str) -> dict[str, Any]:
    """Return the flags that a YAML file sets; null leaves the default."""
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        parser.error(f'cannot read the recipe {path}: {error}')
    if not isinstance(recipe, dict):
        parser.error(f'{path} holds no flags: expected lines such as "epochs: 200"')
    switches = {action.dest for action in parser._actions if isinstance(action, argparse._StoreTrueAction)}
    if unknown := [key for key in recipe if key not in {action.dest for action in parser._actions}]:
        parser.error(f'{path} sets {unknown}, which are no flags of this script; see --help')
    for key, value in recipe.items():
        if (key in switches) != isinstance(value, bool) and value is not None and key != 'torchcompile':
            parser.error(f'{path}: {key}: {value!r} is {"not true or false" if key in switches else "no value for it"}')
    recipe.pop('config', None)  # an args.yaml names the recipe it came from, and holds its values
    return {key: value for key, value in recipe.items() if value is not None}


def _command_line(recipe: dict[str, Any]) -> list[str]:
    """Return a recipe as words of a command line, so that argparse checks its types and choices."""
    words: list[str] = []
    for key, value in recipe.items():
        flag = '--' + key.replace('_', '-')
        if isinstance(value, dict):
            words += [flag, *(f'{name}={entry!r}' for name, entry in value.items())]
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        elif value is not False:
            words.append(flag if value is True else f'{flag}={value}')
    return words


def flag_groups(words: Sequence[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Split a command line into (flag, values, words) for each flag."""
    group: list[str] = []
    for word in [*words, '--']:
        is_flag = word.startswith('-') and not word[1:2].isdigit() and not word[1:2] == '.'
        if is_flag and group:
            flag, equals, value = group[0].partition('=')
            yield flag, [value] * bool(equals) + group[1:], group
            group = []
        group.append(word)


def timm_command(words: Sequence[str]) -> str:
    """Return the shell command that starts the run `words` by timm's own train.py, and a note on what that lacks."""
    kept: list[str] = []
    groups = [group for group in flag_groups(words) if group[0] not in ('-c', '--config')]
    ours = {flag for flag, _, _ in groups if flag.startswith('--p2be-')}
    if '--p2be-augmix' in ours:  # timm would take its views from --aa
        ours |= {'--aug-splits', '--jsd-loss'} & {flag for flag, _, _ in groups}
    kwargs: dict[str, list[str]] = {'--model-kwargs': [], '--opt-kwargs': []}
    table: dict[str, str] = {}
    for flag, values, group in groups:
        if flag in _AS_KWARGS and (values or flag == '--p2be-freeze'):
            value = ','.join(values) or 'True'
            table[flag] = f'{_AS_KWARGS[flag][1]}=' + (f'({value})' if len(values) > 1 else value)
        elif flag in kwargs:
            kwargs[flag] = values
        elif flag not in ours:
            kept += group
    for flag, entry in table.items():
        kwargs[_AS_KWARGS[flag][0]].append(entry)
    if '--device' not in {flag for flag, _, _ in groups} and not torch.cuda.is_available():
        kept += ['--device', 'cpu']
    for flag, entries in kwargs.items():
        kept += [flag, *entries] if entries else []
    command = ['python', 'train.py', '--device-modules', 'timm_p2be', *kept]
    lost = sorted(ours - table.keys())
    return shlex.join(command) + (f'\n(which has no counterpart of {", ".join(lost)})' if lost else '')
