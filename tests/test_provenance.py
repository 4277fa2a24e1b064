"""The record of what a table or a model was trained on: every key there, every value of its type."""

import copy

import pytest

from timm_p2be.hub.provenance import check_provenance

PROVENANCE = {
    'dataset': {'name': 'CIFAR-10', 'id': 'uoft-cs/cifar10', 'split': 'train', 'note': None},
    'model': 'wrn40_2_p2be',
    'recipe': 'cifar10_plain_cpu.yaml',
    'flags': {'lr': 0.1, 'mean': [0, 0, 0], 'amp': True},
    'seed': 42,
    'epochs': 15,
    'smoothness': 1.0,
    'reduction': 'mean',
    'base_model': None,
    'results': {
        'clean': {'error': 8.4, 'images': 10000, 'split': 'test', 'weights': 'as published', 'source': 'run.json'},
        'corruptions': {'label': 'CIFAR-10-C-style', 'images': 2000, 'mean_corruption_error': 34.4, 'mce': 143.6},
        'attacks': [
            {'name': 'lspga-official', 'eps': 8, 'images': 200, 'accuracy': 0.0},
            {'name': 'worst case', 'eps': 8, 'images': 200, 'accuracy': 0.0, 'low': 0.0, 'high': 1.9},
        ],
        'seconds': 12.5,
    },
}


def test_every_part_may_be_unknown():
    check_provenance(None)
    check_provenance(PROVENANCE)
    check_provenance(dict.fromkeys(PROVENANCE))
    check_provenance({**PROVENANCE, 'dataset': dict.fromkeys(PROVENANCE['dataset'])})
    check_provenance({**PROVENANCE, 'results': {'clean': None, 'corruptions': None, 'attacks': None}})
    check_provenance({**PROVENANCE, 'flags': {'anything': {'at': ['all']}}, 'reduction': 'sum'})


@pytest.mark.parametrize(('path', 'value', 'message'), [
    ('model', 3, r'provenance\.model is 3; allowed is one line of printable text'),
    ('model', 'two\nlines', r"provenance\.model is 'two\\nlines'; allowed is one line"),
    ('model', '\x1b[2J', r'provenance\.model is .*; allowed is one line'),
    ('model', 'x' * 1001, r"provenance\.model is 'x{99}\.\.\.; allowed is one line"),
    ('recipe', '/home/someone/recipe.yaml', r'provenance\.recipe is .*; allowed is a file name without its folder'),
    ('recipe', '..\\recipe.yaml', r'provenance\.recipe is .*; allowed is a file name without its folder'),
    ('recipe', 3, r'provenance\.recipe is 3; allowed is a file name'),
    ('flags', [], r'provenance\.flags is \[\]; allowed is an object'),
    ('seed', 1.5, r'provenance\.seed is 1\.5; allowed is an integer'),
    ('seed', True, r'provenance\.seed is True; allowed is an integer'),
    ('epochs', -1, r'provenance\.epochs is -1; allowed is an integer of at least 0'),
    ('smoothness', '1', r"provenance\.smoothness is '1'; allowed is a finite number"),
    ('smoothness', float('inf'), r'provenance\.smoothness is inf; allowed is a finite number'),
    ('smoothness', float('nan'), r'provenance\.smoothness is nan; allowed is a finite number'),
    ('smoothness', 10**400, r'provenance\.smoothness is 10{98,}.*; allowed is a finite number'),
    ('reduction', 'max', r"provenance\.reduction is 'max'; allowed is 'mean' or 'sum'"),
    ('reduction', ['mean'], r"provenance\.reduction is \['mean'\]; allowed is 'mean' or 'sum'"),
    ('base_model', {}, r'provenance\.base_model is \{\}; allowed is one line'),
    ('host', 'a', r"provenance has the unknown keys \['host'\]; allowed are \['base_model'"),
    ('dataset', 'CIFAR-10', r"provenance\.dataset is 'CIFAR-10'; allowed is an object"),
    ('dataset.name', 10, r'provenance\.dataset\.name is 10; allowed is one line'),
    ('dataset.path', '/data', r"provenance\.dataset has the unknown keys \['path'\]"),
    ('results', [], r'provenance\.results is \[\]; allowed is an object'),
    ('results.clean', 8.4, r'provenance\.results\.clean is 8\.4; allowed is an object'),
    ('results.clean.error', 101, r'provenance\.results\.clean\.error is 101; allowed is a percentage in 0\.\.100'),
    ('results.clean.images', 2.5, r'provenance\.results\.clean\.images is 2\.5; allowed is an integer'),
    ('results.corruptions.mean_corruption_error', 'low', r'mean_corruption_error is .low.; allowed is a percentage'),
    ('results.attacks', {}, r'provenance\.results\.attacks is \{\}; allowed is a list'),
    ('results.attacks', [3], r'provenance\.results\.attacks\[0\] is 3; allowed is an object'),
    ('results.attacks', [{'name': 'pgd'}], r"attacks\[0\] lacks \['accuracy', 'eps', 'images'\]"),
])  # fmt: skip
def test_every_value_is_checked(path, value, message):
    provenance = copy.deepcopy(PROVENANCE)
    *parents, key = path.split('.')
    record = provenance
    for parent in parents:
        record = record[parent]
    record[key] = value
    with pytest.raises(ValueError, match=message):
        check_provenance(provenance)


@pytest.mark.parametrize('part', ['', 'dataset', 'results', 'results.clean', 'results.corruptions'])
def test_every_key_is_needed(part):
    names = part.split('.') if part else []
    record = PROVENANCE
    for name in names:
        record = record[name]
    for key in set(record) - {'seconds'}:
        damaged = copy.deepcopy(PROVENANCE)
        inner = damaged
        for name in names:
            inner = inner[name]
        del inner[key]
        with pytest.raises(ValueError, match=rf"{'.'.join(['provenance', *names])} lacks \['{key}'\]; every key"):
            check_provenance(damaged)


@pytest.mark.parametrize('where', ['flags', 'results'])
def test_deep_nesting_is_refused_before_anything_walks_it(where):
    deep = []
    for _ in range(5000):
        deep = [deep]
    provenance = copy.deepcopy(PROVENANCE)
    provenance[where]['further'] = deep
    with pytest.raises(ValueError, match='nested more than 20 deep'):
        check_provenance(provenance)
    provenance[where]['further'] = [[[{'a': [1]}]]]
    check_provenance(provenance)
