#!/usr/bin/env python3
"""Puts releases into this repository: weights of models into the package, cards into hub_cards/.

A release is what `timm-p2be publish RUN --half --dry-run FOLDER` writes. Its card, config.json and results.json go to
hub_cards/NAME/. The weights of a model go to timm_p2be/models/weights/, listed in shipped.json with sha256 and
provenance; a table of codes is small, and stays with its card.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from timm_p2be.files import file_sha256, write_json
from timm_p2be.hub.repository import RELEASE_FILES, verify
from timm_p2be.models import weights

_CARDS = Path(__file__).parents[1] / 'hub_cards'
_WEIGHTS = 'model.safetensors'


def ship(release: Path, name: str, cards: Path = _CARDS) -> None:
    """Put one release in its places, in place of an earlier one of that name.

    Args:
        release: folder of `timm-p2be publish --dry-run`.
        name: of a model its architecture and tag, 'wrn16_2.cifar10'; of a table what it may be called.
        cards: folder of the cards.

    Raises:
        ValueError: the release is not sound, or of another architecture than `name` says.
    """
    if not re.fullmatch(r'\w[\w-]*(\.[\w-]+)?', name, re.ASCII):
        raise ValueError(f'Got the name {name!r}; it becomes a folder: letters, digits, _, - and one dot.')
    found = verify(release)
    if found.kind == 'model' and found.architecture != name.partition('.')[0]:
        raise ValueError(f'{release} is a {found.describe()}; a name for it begins with {found.architecture}.')
    folder = cards / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in RELEASE_FILES:
        if (release / file).is_file() and not (found.kind == 'model' and file == _WEIGHTS):
            shutil.copyfile(release / file, folder / file)
    if found.kind == 'model':
        target = Path(weights.weights_path(name))
        shutil.copyfile(release / _WEIGHTS, target)
        path = target.with_name('shipped.json')
        listed = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
        listed[name] = {'sha256': file_sha256(target), 'provenance': found.provenance}
        write_json(path, dict(sorted(listed.items())))


def main(argv: Sequence[str] | None = None) -> int:
    """Ship one release and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('release', type=Path, metavar='FOLDER', help='release')
    parser.add_argument('name', metavar='NAME', help='ARCHITECTURE.TAG of a model, any name of a table')
    args = parser.parse_args(argv)
    try:
        ship(args.release, args.name)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == '__main__':
    sys.exit(main())
