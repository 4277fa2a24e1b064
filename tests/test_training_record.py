"""The training record of a table or a model: every key there, every value of its type."""

import copy
import re
from typing import Any

import pytest
from published import PROVENANCE

from timm_p2be.hub.training_record import check_training_record


def _refused(record: Any, *words: str) -> None:
    with pytest.raises(ValueError, match='.*'.join(map(re.escape, words))):
        check_training_record(record)


def test_every_part_may_be_unknown() -> None:
    check_training_record(None)
    check_training_record(PROVENANCE)
    check_training_record(dict.fromkeys(PROVENANCE))
    check_training_record({**PROVENANCE, 'dataset': dict.fromkeys(PROVENANCE['dataset'])})
    check_training_record({**PROVENANCE, 'results': {'clean': None, 'corruptions': None, 'attacks': None, 'more': 1}})
    check_training_record({**PROVENANCE, 'flags': {'anything': {'at': ['all']}}, 'reduction': 'sum'})


@pytest.mark.parametrize(
    ('path', 'value', 'allowed'),
    [
        ('model', 'two\nlines', 'one line of printable text'),
        ('model', 'x' * 1001, '...; allowed is one line'),
        ('recipe', '/home/someone/recipe.yaml', 'a file name without its folder'),
        ('seed', True, 'an integer'),
        ('epochs', -1, 'an integer of at least 0'),
        ('smoothness', float('nan'), 'a finite number'),
        ('smoothness', 10**400, 'a finite number'),
        ('reduction', ['mean'], "'mean' or 'sum'"),
        ('dataset', 'CIFAR-10', 'an object'),
        ('dataset.name', 10, 'one line'),
        ('results.clean.error', 101, 'a percentage in 0..100'),
        ('results.attacks', {}, 'a list'),
    ],
)
def test_every_value_is_checked(path: str, value: Any, allowed: str) -> None:
    record = copy.deepcopy(PROVENANCE)
    *parents, key = path.split('.')
    part = record
    for parent in parents:
        part = part[parent]
    part[key] = value
    _refused(record, '.'.join(['provenance', *parents]), f'{key} is', allowed)


def test_unknown_and_missing_keys_and_attacks() -> None:
    _refused({key: value for key, value in PROVENANCE.items() if key != 'seed'}, "provenance lacks ['seed']")
    _refused({**PROVENANCE, 'dataset': {'name': 'CIFAR-10'}}, "provenance.dataset lacks ['id', 'note', 'split']")
    _refused({**PROVENANCE, 'host': 'a'}, "unknown keys ['host']", 'base_model')
    _refused({**PROVENANCE, 'dataset': {**PROVENANCE['dataset'], 'path': '/data'}}, "unknown keys ['path']")
    _refused({**PROVENANCE, 'flags': {'a': [{'\x1b[2J': 1}]}}, r"flags or results hold '\x1b[2J'", 'printable')
    results = PROVENANCE['results']
    _refused({**PROVENANCE, 'results': {**results, 'attacks': [3]}}, 'attacks[0] is 3', 'an object')
    _refused({**PROVENANCE, 'results': {**results, 'attacks': [{'name': 'pgd'}]}}, 'attacks[0] lacks', 'accuracy')
