"""What the result files of both benchmarks have to hold, before anything in them is used."""

import base64
from typing import Any

from timm_p2be.files import Field, Shape


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _is_base64(value: Any) -> bool:
    try:
        return isinstance(value, str) and base64.b64decode(value, validate=True) is not None
    except ValueError:
        return False


_TEXT: Field = ('a text', lambda value: isinstance(value, str))
_COUNT: Field = ('an integer from 0 on', lambda value: type(value) is int and 0 <= value < 2**53)
_SHARE: Field = ('a number in 0..1', lambda value: _is_number(value) and 0 <= value <= 1)
_FACTOR: Field = ('a number from 0 on', lambda value: _is_number(value) and value >= 0)
_BOOL: Field = ('true or false', lambda value: isinstance(value, bool))
_BITS: Field = ('bits in base64', _is_base64)

_FIGURES: Shape = {'examples': _COUNT, 'error': _SHARE, 'ece': _SHARE, 'correct': _BITS}
CORRUPTIONS: Shape = {
    'config': {
        'models': [{'name': _TEXT}],
        'data': {'label': _TEXT, 'images': _COUNT},
        'corruptions': [_TEXT],
        'severities': [_COUNT],
    },
    'environment': {},
    'clean': {'*': _FIGURES},
    'results': {'*': {'*': {'*': _FIGURES}}},
    'summary': {
        '*': {
            'corruptions': {'*': _SHARE},
            'ce': {'*': _FACTOR},
            'categories': {'*?': _SHARE},
            'mean_over': [_TEXT],
            'mean_ece': _SHARE,
            'mean_corruption_error?': _SHARE,
            'mce_alexnet?': _FACTOR,
        }
    },
    'complete': _BOOL,
}

_PROPORTION = {**dict.fromkeys(('number', 'count'), _COUNT), **dict.fromkeys(('accuracy', 'low', 'high'), _SHARE)}
_MAYBE = {f'{name}?': field for name, field in _PROPORTION.items()}
_POINTS = [{'x': _COUNT, **_PROPORTION}]
ATTACKS: Shape = {
    'settings': dict.fromkeys(('eps', 'alone', 'worst_case', 'probed', 'batch_size', 'seed'), _COUNT),
    'attacks': [{'name': _TEXT, 'kind': _TEXT, **dict.fromkeys(('eps', 'forwards', 'backwards'), _COUNT)}],
    'model': {'name': _TEXT},
    'data': {'name': _TEXT},
    'environment': {},
    'clean?': {'correct': _BITS, 'alone': _PROPORTION, 'worst_case?': _PROPORTION},
    'alone': {'*': {'done': _COUNT, 'seconds': _FACTOR, 'success': _BITS, **_MAYBE}},
    'worst_case': {
        **_MAYBE,
        'attacks?': {
            '*': {
                'seconds': _FACTOR,
                'felled': _BITS,
                **dict.fromkeys(('done', 'faced', 'taken_over', 'number'), _COUNT),
            }
        },
        'complete?': _BOOL,
    },
    'probes?': {
        'gradients?': {'*': dict.fromkeys(('zero', 'nonfinite', 'no_gradient'), _SHARE)},
        'curves?': {'*': {'eps': _POINTS, 'steps': _POINTS}},
        'binarization?': dict.fromkeys(('tried?', 'separable?', 'solved?', 'random?'), _COUNT),
    },
    'gradient_masking_suspected?': _BOOL,
}
