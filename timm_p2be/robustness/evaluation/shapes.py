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
_NUMBER: Field = ('a number', _is_number)
_COUNT: Field = ('an integer from 0 on', lambda value: type(value) is int and 0 <= value < 2**53)
_SHARE: Field = ('a number in 0..1', lambda value: _is_number(value) and 0 <= value <= 1)
_FACTOR: Field = ('a number from 0 on', lambda value: _is_number(value) and value >= 0)
_BOOL: Field = ('true or false', lambda value: isinstance(value, bool))
_BITS: Field = ('bits in base64', _is_base64)

_ENVIRONMENT: Shape = {'python': _TEXT, 'machine': _TEXT, 'threads': _COUNT, 'versions': {'*?': _TEXT}}
_MODEL: Shape = {
    **dict.fromkeys(('name', 'architecture', 'encoding'), _TEXT),
    **dict.fromkeys(('num_classes', 'parameters'), _COUNT),
    'mean': [_NUMBER],
    'std': [_NUMBER],
    **dict.fromkeys(('checkpoint_sha256?', 'weights_sha256?'), _TEXT),
    'flipped_bits?': _FACTOR,
}
_IMAGES: Shape = {'images': _COUNT, **dict.fromkeys(('name', 'subset', 'transform', 'fingerprint'), _TEXT)}

_FIGURES: Shape = {'examples': _COUNT, 'error': _SHARE, 'ece': _SHARE, 'ece_gaps': [_NUMBER], 'correct': _BITS}
_SUMMARY: Shape = {
    'corruptions': {'*': _SHARE},
    'ce': {'*': _FACTOR},
    'categories': {'*?': _SHARE},
    'mean_over': [_TEXT],
    'mean_ece': _SHARE,
    **dict.fromkeys(('mean_corruption_error?', 'mce_alexnet?'), _FACTOR),
}
CORRUPTIONS: Shape = {
    'config': {
        'models': [_MODEL],
        'data': {
            **dict.fromkeys(('label', 'suite', 'source', 'subset', 'transform', 'fingerprint'), _TEXT),
            'official': _BOOL,
            'images': _COUNT,
            'seed?': _COUNT,
        },
        'clean?': _IMAGES,
        'corruptions': [_TEXT],
        'severities': [_COUNT],
        'precision': _TEXT,
    },
    'environment': _ENVIRONMENT,
    'clean': {'*': _FIGURES},
    'results': {'*': {'*': {'*': _FIGURES}}},
    'summary': {'*': _SUMMARY},
    'complete': _BOOL,
}

_PROPORTION = {**dict.fromkeys(('number', 'count'), _COUNT), **dict.fromkeys(('accuracy', 'low', 'high'), _SHARE)}
_OPTIONAL_PROPORTION = {f'{name}?': field for name, field in _PROPORTION.items()}
_WORK = {'done': _COUNT, 'seconds': _FACTOR}
_POINTS = [{'x': _COUNT, **_PROPORTION}]
_SETTINGS = ('eps', 'alone', 'worst_case', 'probed', 'batch_size', 'seed')
_TRIALS = ('steps', 'random_draws', 'tried', 'separable', 'solved', 'random')
ATTACKS: Shape = {
    'settings': {**dict.fromkeys(_SETTINGS, _COUNT), 'save_images': _BOOL},
    'attacks': [{'name': _TEXT, 'kind': _TEXT, **dict.fromkeys(('eps', 'forwards', 'backwards'), _COUNT)}],
    'model': _MODEL,
    'data': _IMAGES,
    'environment': _ENVIRONMENT,
    'clean?': {'correct': _BITS, 'alone': _PROPORTION, 'worst_case?': _PROPORTION},
    'alone': {'*': {**_WORK, 'success': _BITS, **_OPTIONAL_PROPORTION}},
    'worst_case': {
        **_OPTIONAL_PROPORTION,
        'attacks?': {'*': {**_WORK, 'felled': _BITS, **dict.fromkeys(('faced', 'taken_over', 'number'), _COUNT)}},
        'standing?': _BITS,
        'complete?': _BOOL,
    },
    'probes?': {
        'subset': _TEXT,
        'gradients?': {'*': dict.fromkeys(('zero', 'nonfinite', 'no_gradient'), _SHARE)},
        'curves?': {'*': {'eps': _POINTS, 'steps': _POINTS}},
        'binarization?': {'attack?': _TEXT, **{f'{name}?': _COUNT for name in _TRIALS}},
    },
    'gradient_masking_suspected?': _BOOL,
}
