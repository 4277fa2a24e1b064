"""Provenance: the one record, of an embedding or a model, of what it was trained on and what it scored."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

_Field = tuple[str, Callable[[Any], bool]]  # what is allowed, and the test of it; null always is

_TEXT_LENGTH = 1000
_MAX_DEPTH = 20


def _is_text(value: Any) -> bool:
    # one printable line: texts reach terminals and the YAML of model cards
    return isinstance(value, str) and len(value) <= _TEXT_LENGTH and value.isprintable()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    # as a float: an integer of JSON may be too large to become one
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


_TEXT: _Field = (f'one line of printable text, at most {_TEXT_LENGTH} characters', _is_text)
_FILE_NAME: _Field = ('a file name without its folder', lambda value: _is_text(value) and not set(value) & set('/\\'))
_COUNT: _Field = ('an integer of at least 0', _is_count)
_NUMBER: _Field = ('a finite number of at least 0', _is_number)
_PERCENT: _Field = ('a percentage in 0..100', lambda value: _is_number(value) and value <= 100)
_OBJECT: _Field = ('an object', lambda value: isinstance(value, dict))
_LIST: _Field = ('a list', lambda value: isinstance(value, list))

_PROVENANCE = {
    'dataset': _OBJECT,
    'model': _TEXT,
    'recipe': _FILE_NAME,
    'flags': _OBJECT,
    'seed': _COUNT,
    'epochs': _COUNT,
    'smoothness': _NUMBER,
    'reduction': ("'mean' or 'sum'", lambda value: value in ('mean', 'sum')),
    'base_model': _TEXT,
    'results': _OBJECT,
}
_DATASET = {'name': _TEXT, 'id': _TEXT, 'split': _TEXT, 'note': _TEXT}
_RESULTS = {'clean': _OBJECT, 'corruptions': _OBJECT, 'attacks': _LIST}
_CLEAN = {'error': _PERCENT, 'images': _COUNT, 'split': _TEXT, 'weights': _TEXT, 'source': _TEXT}
_CORRUPTIONS = {'label': _TEXT, 'images': _COUNT, 'mean_corruption_error': _PERCENT, 'mce': _NUMBER}
_ATTACK = {'name': _TEXT, 'eps': _NUMBER, 'images': _COUNT, 'accuracy': _PERCENT}


def check_provenance(provenance: Any) -> None:
    """Raise unless `provenance` is a record as written into every config.json of this package, or None.

    Args:
        provenance: values as JSON has them. Every key is there and None where unknown: `dataset` (name, id, split and
            note), `model`, `recipe` (a file name), `flags` (any keys), `seed`, `epochs`, `smoothness` (lambda),
            `reduction` ('mean' or 'sum'), `base_model` and `results`, which holds `clean`, `corruptions` and `attacks`
            with errors and accuracies in percent, and whatever else was measured.

    Raises:
        ValueError: a missing, unknown or wrongly typed key; the message names it, what it holds and what it may hold.

    Example:
        >>> check_provenance({'model': 'wrn40_2_p2be'})
        Traceback (most recent call last):
        ...
        ValueError: provenance lacks ['base_model', 'dataset', 'epochs', 'flags', 'recipe', 'reduction', 'results', \
'seed', 'smoothness']; every key has to be there, null where unknown.
    """
    if provenance is None:
        return
    _check_depth(provenance)
    _check(provenance, _PROVENANCE, 'provenance')
    if provenance['dataset'] is not None:
        _check(provenance['dataset'], _DATASET, 'provenance.dataset')
    results = provenance['results']
    if results is None:
        return
    _check(results, _RESULTS, 'provenance.results', extra=True)
    for name, fields in (('clean', _CLEAN), ('corruptions', _CORRUPTIONS)):
        if results[name] is not None:
            _check(results[name], fields, f'provenance.results.{name}', extra=True)
    for index, attack in enumerate(results['attacks'] or ()):
        _check(attack, _ATTACK, f'provenance.results.attacks[{index}]', extra=True)


def _check_depth(provenance: Any) -> None:
    """Raise if values are nested deeper than any of ours: deep ones exhaust the stack of whoever walks them."""
    layer = [provenance]
    for _ in range(_MAX_DEPTH):
        layer = [part for parts in layer for part in _parts(parts)]
        if not layer:
            return
    raise ValueError(f'provenance is nested more than {_MAX_DEPTH} deep; allowed is a flat record, as ours are.')


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _check(record: Any, fields: dict[str, _Field], where: str, extra: bool = False) -> None:
    """Raise unless `record` is an object with all `fields`, each null or as it may be; `extra` allows further keys."""
    if not isinstance(record, dict):
        raise ValueError(f'{where} is {_shown(record)}; allowed is an object or null.')
    missing, unknown = sorted(fields.keys() - record.keys()), sorted(map(str, record.keys() - fields.keys()))
    if missing:
        raise ValueError(f'{where} lacks {missing}; every key has to be there, null where unknown.')
    if unknown and not extra:
        raise ValueError(f'{where} has the unknown keys {_shown(unknown)}; allowed are {sorted(fields)}.')
    for name, (allowed, is_allowed) in fields.items():
        if record[name] is not None and not is_allowed(record[name]):
            raise ValueError(f'{where}.{name} is {_shown(record[name])}; allowed is {allowed}, or null.')


def _shown(value: Any) -> str:
    """Return `value` for a message; a hostile file may hold a megabyte of it."""
    text = repr(value)
    return text if len(text) <= 100 else f'{text[:100]}...'
