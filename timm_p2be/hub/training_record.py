"""The training record of a table or a model: what it was trained on, what its run was told, and what it scored.

Every config.json of this package holds one under the key `provenance`, or null.
"""

import sys
from collections.abc import Callable
from typing import Any

from timm_p2be.files import Field, Schema, check_schema, leaves_of, shown

_TEXT_LENGTH = 1000


def _or_null(allowed: str, test: Callable[[Any], bool]) -> Field:
    return f'{allowed}, or null', lambda value: value is None or test(value)


def _is_text(value: Any) -> bool:
    # one printable line: texts reach terminals and the YAML of model cards
    return isinstance(value, str) and len(value) <= _TEXT_LENGTH and value.isprintable()


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    # as a float: an integer of JSON may be too large to become one
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


_TEXT = _or_null(f'one line of printable text, at most {_TEXT_LENGTH} characters', _is_text)
_FILE_NAME = _or_null('a file name without its folder', lambda value: _is_text(value) and not set(value) & set('/\\'))
_COUNT = _or_null('an integer of at least 0', _is_count)
_NUMBER = _or_null('a finite number of at least 0', _is_number)
_PERCENT = _or_null('a percentage in 0..100', lambda value: _is_number(value) and value <= 100)
_OBJECT = _or_null('an object', lambda value: isinstance(value, dict))
_LIST = _or_null('a list', lambda value: isinstance(value, list))

RECORD: Schema = {
    'dataset': _OBJECT,
    'model': _TEXT,
    'recipe': _FILE_NAME,
    'flags': _OBJECT,
    'seed': _COUNT,
    'epochs': _COUNT,
    'smoothness': _NUMBER,
    'reduction': _or_null("'mean' or 'sum'", lambda value: value in ('mean', 'sum')),
    'base_model': _TEXT,
    'results': _OBJECT,
}
_DATASET: Schema = {'name': _TEXT, 'id': _TEXT, 'split': _TEXT, 'note': _TEXT}
_RESULTS: Schema = {'clean': _OBJECT, 'corruptions': _OBJECT, 'attacks': _LIST}
_CLEAN: Schema = {'error': _PERCENT, 'images': _COUNT, 'split': _TEXT, 'weights': _TEXT, 'source': _TEXT}
_CORRUPTIONS: Schema = {'label': _TEXT, 'images': _COUNT, 'mean_corruption_error': _PERCENT, 'mce': _NUMBER}
_ATTACK: Schema = {'name': _TEXT, 'eps': _NUMBER, 'images': _COUNT, 'accuracy': _PERCENT}


def check_training_record(record: Any, where: str = 'provenance') -> None:
    """Raise unless `record` is a training record, or None.

    Every key of `RECORD` is there, and None where unknown; errors and accuracies are in percent, and `results` may
    hold whatever else was measured. Messages begin with `where`.
    """
    if record is None:
        return
    check_schema(record, RECORD, where)
    for value in leaves_of((record['flags'], record['results'])):
        if isinstance(value, str) and not _is_text(value):  # a terminal would obey it
            raise ValueError(f'{where}: flags or results hold {shown(value)}; allowed is printable text.')
    if record['dataset'] is not None:
        check_schema(record['dataset'], _DATASET, f'{where}.dataset')
    results = record['results']
    if results is None:
        return
    check_schema(results, _RESULTS, f'{where}.results', extra=True)
    for name, schema in (('clean', _CLEAN), ('corruptions', _CORRUPTIONS)):
        if results[name] is not None:
            check_schema(results[name], schema, f'{where}.results.{name}', extra=True)
    for index, attack in enumerate(results['attacks'] or ()):
        check_schema(attack, _ATTACK, f'{where}.results.attacks[{index}]', extra=True)


def part_of(record: Any, *keys: str) -> Any:
    """Return a nested entry, None as soon as one is missing."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def counts_of(counts: Any) -> dict[str, int] | None:
    """Return what is known of a learned table; further keys of results may hold anything."""
    names = ('distinct', 'bits', 'unlike_thermometer')
    known = {name: counts[name] for name in (*names, 'moved') if type(part_of(counts, name)) is int}
    return known if known.keys() >= {*names} else None


def is_on_training_images(record: Any) -> bool:
    """Return whether the clean error of a run is that of the images it was trained on."""
    split = part_of(record, 'results', 'clean', 'split')
    return bool(split) and split == part_of(record, 'dataset', 'split')
