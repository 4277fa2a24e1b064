#!/usr/bin/env python3
"""Puts releases into this repository: weights of models into the package, cards into hub_cards/.

A release is what `timm-p2be publish RUN --half --dry-run FOLDER` writes. Its config.json and results.json go to
hub_cards/NAME/, where its card is written anew: there is no repository to name. The weights of a model go to
timm_p2be/models/weights/, listed in shipped.json with sha256 and provenance; a table of codes is small, and stays with
its card. Without arguments all cards in hub_cards/ and their pictures are made again, from what is there.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from timm_p2be.files import file_sha256, write_json
from timm_p2be.hub.card import write_card
from timm_p2be.hub.find_table import find_table
from timm_p2be.hub.repository import RELEASE_FILES, read_contents, verify
from timm_p2be.hub.training_record import part_of
from timm_p2be.models import weights
from timm_p2be.models.tables import TABLES

_CARDS = Path(__file__).parent
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
    make_card(folder, str(release))


def make_card(folder: Path, source: str | None = None) -> None:
    """Write the card of a folder of hub_cards/, with pictures of the codes in `source`, by default what is shipped."""
    found, tags = read_contents(folder), {name: tag for tag, name in TABLES.items()}
    is_table = found.kind == 'embedding'
    source = source or (str(folder) if is_table else folder.name)
    codes = None if found.encoding == 'rgb' else find_table(source).file.codes
    tag, network = tags.get(folder.name), part_of(found.provenance, 'model')
    write_card(folder, codes, shipped=(tag and f'{network}.{tag}') if is_table else folder.name)


def main(argv: Sequence[str] | None = None) -> int:
    """Ship one release and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('release', nargs='?', type=Path, metavar='FOLDER', help='release')
    parser.add_argument('name', nargs='?', default='', metavar='NAME', help='ARCHITECTURE.TAG, or any name of a table')
    args = parser.parse_args(argv)
    try:
        if args.release is not None:
            ship(args.release, args.name)
            return 0
        for config in sorted(_CARDS.glob('*/config.json')):
            make_card(config.parent)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == '__main__':
    sys.exit(main())
