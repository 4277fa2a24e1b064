"""The configuration of an attack benchmark, and when an earlier result file may be continued."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm_p2be.checkpoints import weights_sha256
from timm_p2be.robustness.attacks.attack import KINDS, Attack
from timm_p2be.robustness.evaluation.results import SCHEMA_VERSION, environment
from timm_p2be.robustness.images import ImageSet
from timm_p2be.robustness.pixel_model import PixelModel

KIND = 'attacks'
_FIXED = ('settings', 'attacks', 'model', 'data')  # a run continues only a file that has these in common


def new_content(
    model: PixelModel, data: ImageSet, attacks: Sequence[Attack], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of a result file before the first result.

    Args:
        model: of the benchmark.
        data: of the benchmark; `alone`, `worst_case` and `probed` are cut to its length.
        attacks: in order.
        settings: eps, alone, worst_case, probed, batch_size, seed, save_images.

    Raises:
        ValueError: a setting out of range, no attacks, two of one name, or one that exceeds the bound.
    """
    cut = {name: min(settings[name], len(data)) for name in ('alone', 'worst_case', 'probed')}
    settings = {**settings, **cut}
    _check_settings(settings, attacks)
    return {
        'schema_version': SCHEMA_VERSION,
        'kind': KIND,
        'settings': settings,
        'attacks': [
            {'name': attack.name, 'kind': attack.kind, 'eps': attack.eps, **attack.cost()._asdict()}
            for attack in attacks
        ],
        'model': {**model.describe(), 'weights_sha256': weights_sha256(model.model.state_dict())},
        'data': data.describe(),
        'environment': environment(),
        'clean': None,
        'alone': {},
        'worst_case': {'subset': f'first {settings["worst_case"]} images', 'attacks': {}}
        if settings['worst_case']
        else {},
    }


def _check_settings(settings: dict[str, Any], attacks: Sequence[Attack]) -> None:
    if not 1 <= settings['eps'] <= 255:
        raise ValueError(f'Got eps={settings["eps"]}; allowed are 1 to 255 levels.')
    for name, least in (('alone', 1), ('worst_case', 0), ('probed', 1), ('batch_size', 1)):
        if settings[name] < least:
            raise ValueError(f'Got {name}={settings[name]}; allowed is at least {least}.')
    names = [attack.name for attack in attacks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f'Got attacks {names}; name at least one, and each once.')
    for attack in attacks:
        if attack.eps > settings['eps'] or attack.kind not in KINDS:
            raise ValueError(
                f'Attack {attack.name!r} has eps={attack.eps} and kind={attack.kind!r}; allowed here are at most '
                f'{settings["eps"]} levels and one of {list(KINDS)}.'
            )


def check_same(path: Path, earlier: dict[str, Any], new: dict[str, Any]) -> None:
    """Compare the configurations of two contents.

    Raises:
        ValueError: they differ, and where.
    """
    for part in _FIXED:
        if earlier[part] != new[part]:
            raise ValueError(
                f'{path} holds results with other {part}: {_difference(earlier[part], new[part])}. Choose another '
                'output folder, or drop the earlier results (--overwrite).'
            )
    if earlier['environment']['versions'] != new['environment']['versions']:
        before, now = earlier['environment']['versions'], new['environment']['versions']
        raise ValueError(
            f'{path} was written with other versions: {_difference(before, now)}. Choose another output folder, or '
            'drop the earlier results (--overwrite).'
        )


def _difference(earlier: Any, new: Any) -> str:
    """Return the first place where two JSON values differ."""
    if isinstance(earlier, list):
        names = [[entry['name'] for entry in entries] for entries in (earlier, new)]
        if names[0] != names[1]:
            return f'{", ".join(names[0])} there, {", ".join(names[1])} here'
        pairs = zip(earlier, new, strict=True)
        return next(f'{old} there, {now} here' for old, now in pairs if old != now)
    key = next(key for key in {**earlier, **new} if earlier.get(key) != new.get(key))
    return f'{key} is {earlier.get(key)!r} there, {new.get(key)!r} here'
