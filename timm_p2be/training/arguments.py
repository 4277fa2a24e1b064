"""Command line of train.py: recipe, then command line, then a check that what was given has an effect."""

import argparse
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from timm_p2be.files import read_yaml
from timm_p2be.training.conflicts import flag_name, settle_conflicts
from timm_p2be.training.flags import add_flags

_SHIPPED = Path(__file__).with_name('recipes')  # in an installed wheel
RECIPES = _SHIPPED if _SHIPPED.is_dir() else Path(__file__).parents[2] / 'train_scripts' / 'recipes'


class _Parser(argparse.ArgumentParser):
    """Names the file that wrong flags come from, and explains what to do about unknown ones."""

    source = ''  # empty for the command line

    def error(self, message: str) -> NoReturn:
        prefix = 'unrecognized arguments: '
        if message.startswith(prefix):
            own = list(self._option_string_actions)
            unknown = [word.split('=')[0] for word in message.removeprefix(prefix).split() if word.startswith('-')]
            close = {flag: difflib.get_close_matches(flag, own, n=1, cutoff=0.85) for flag in unknown}
            message += ''.join(f'; did you mean {match[0]} for {flag}?' for flag, match in close.items() if match)
            message += (
                "\nOf timm's flags this command takes those that --help lists. The others are those of timm's own "
                'train.py: timm-p2be run train.py --opt sgdp2be ... (README, Train)'
            )
        super().error(f'{self.source}: {message}' if self.source else message)


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


def build_parser(prog: str = 'train.py') -> argparse.ArgumentParser:
    """Return the parser of the command that the user knows as `prog`."""
    parser = _Parser(
        prog=prog,
        usage=f'{prog} [-c RECIPE] [--data-dir DIR] [--model NAME] [flag ...]   ({prog} --help lists the flags)',
        description='Train any timm model, encoded or not, by the objective of the P2BE paper.',
        epilog=f'Example: {prog} -c cifar100 --data-dir data --model wrn40_2_thermometer --experiment a --resume auto '
        '(the same command goes on after a kill). Files, locks and exit codes: docs/training.md, Runs that survive.',
        allow_abbrev=False,
    )
    names = ', '.join(sorted(path.stem for path in RECIPES.glob('*.yaml')))
    parser.add_argument(
        '-c', '--config', default='', metavar='RECIPE', help=f'YAML of flags: a file (an args.yaml is one), or {names}'
    )
    add_flags(parser)
    return parser


def parse_args(argv: Sequence[str], prog: str = 'train.py') -> Arguments:
    """Parse a command line.

    Raises:
        SystemExit: (code 2) bad flags, an unreadable recipe, or flags that have no effect in this combination.
    """
    parser = build_parser(prog)
    assert isinstance(parser, _Parser)
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument('-c', '--config', default='')
    name = config_parser.parse_known_args(argv)[0].config
    recipe = _read_recipe(parser, name) if name else {}
    recipe_words = command_line(recipe)
    parser.source = name
    parser.parse_args(recipe_words)  # an error in here is the recipe's
    parser.source = ''
    args = parser.parse_args([*recipe_words, *argv])
    unset = object()
    given = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), unset)))
    explicit = {name for name, value in vars(given).items() if value is not unset}
    if name and not Path(name).is_file():
        args.config = f'{name}.yaml'  # what args.yaml and cards say of a recipe given by name
    try:
        notes = settle_conflicts(parser, args, explicit, set(recipe))
    except (ValueError, OSError, RuntimeError, AssertionError) as error:  # the config of a saved model
        parser.error(f'--model {args.model}: {error}')
    return Arguments(args, explicit, notes)


def _read_recipe(parser: argparse.ArgumentParser, name: str) -> dict[str, Any]:
    """Return the flags that a YAML file, given by path or as a recipe's name, sets; null leaves the default."""
    path = Path(name) if Path(name).is_file() else RECIPES / f'{name}.yaml'
    if not path.is_file():
        known = sorted(path.stem for path in RECIPES.glob('*.yaml'))
        close = ''.join(f' Did you mean {match}?' for match in difflib.get_close_matches(name, known, n=1))
        words = f'no such file, and no recipe of that name.{close} Recipes: {", ".join(known)}'
        parser.error(f'cannot read the recipe {name}: {words}')
    try:
        recipe = read_yaml(path)
    except ValueError as error:
        parser.error(str(error))
    if not isinstance(recipe, dict):
        parser.error(f'{path} holds no flags: expected lines such as "epochs: 200"')
    switches = {action.dest for action in parser._actions if isinstance(action, argparse._StoreTrueAction)}
    if unknown := [key for key in recipe if key not in {action.dest for action in parser._actions}]:
        parser.error(f'{path} sets {unknown}, which are no flags of this command; see --help')
    for key, value in recipe.items():
        if (key in switches) != isinstance(value, bool) and value is not None and key != 'torchcompile':
            parser.error(f'{path}: {key}: {value!r} is {"not true or false" if key in switches else "no value for it"}')
    recipe.pop('config', None)  # an args.yaml names the recipe it came from, and holds its values
    return {key: value for key, value in recipe.items() if value is not None}


def command_line(recipe: dict[str, Any]) -> list[str]:
    """Return a recipe as words of a command line, so that argparse checks its types and choices."""
    words: list[str] = []
    for key, value in recipe.items():
        flag = flag_name(key)
        if isinstance(value, dict):
            words += [flag, *(f'{name}={entry!r}' for name, entry in value.items())]
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        elif value is not False:
            words.append(flag if value is True else f'{flag}={value}')
    return words


def flag_groups(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Split a command line into (flag, all its words)."""
    group: list[str] = []
    for word in [*words, '--']:
        is_flag = word.startswith('-') and not word[1:2].isdigit() and not word[1:2] == '.'
        if is_flag and group:
            yield group[0].partition('=')[0], group
            group = []
        group.append(word)
