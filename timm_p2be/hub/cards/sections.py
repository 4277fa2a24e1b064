"""The sections of a card: how it was trained, what it scored, what it is not for."""

from typing import Any

from timm_p2be.hub.cards.markdown import code, escaped, of, table

_PAPER_EPOCHS = 180  # the shorter of its two trainings, on ImageNet (docs/protocol.md)
_HARDLY = 0.05  # a table with fewer bits of its own, as a share of all


def use(*lines: str) -> str:
    """Return the usage block."""
    return '\n'.join(['```python', 'import timm_p2be', 'import timm', '', *lines, '```'])


def training(provenance: dict[str, Any] | None) -> str | None:
    """Return the table of how it was trained, without rows that are unknown; None if nothing is known."""
    if provenance is None:
        return None
    split = of(provenance, 'dataset', 'split')
    rows = {
        'data set': escaped(of(provenance, 'dataset', 'name')) + (f' ({escaped(split)})' if split else ''),
        'network': code(provenance['model']),
        'started from': code(provenance['base_model']),
        'recipe': code(provenance['recipe']),
        'seed': code(provenance['seed']),
        'epochs': code(provenance['epochs']),
        'smoothness (lambda)': code(provenance['smoothness']),
        'its reduction': code(provenance['reduction']),
        **{code(flag): code(value) for flag, value in (provenance['flags'] or {}).items()},
    }
    return table(('', ''), [row for row in rows.items() if row[1]])


def results(measured: dict[str, Any] | None) -> str | None:
    """Return the table of clean and corruption errors; None if there are none."""
    clean, corruptions = of(measured, 'clean'), of(measured, 'corruptions')
    rows = []
    if of(clean, 'error') is not None:
        what = f'clean error, %, {escaped(clean["split"] or "split unknown")}'
        rows.append((what, f'{clean["error"]:.2f}', code(clean['images']), escaped(clean['weights'])))
    for key, title in (('mean_corruption_error', 'mean corruption error, %'), ('mce', 'mCE relative to AlexNet, %')):
        if of(corruptions, key) is not None:
            what = f'{title}, {escaped(corruptions["label"] or "corrupted images")}'
            rows.append(
                (what, f'{corruptions[key]:.2f}', code(corruptions['images']), _words(corruptions.get('weights')))
            )
    if learned := _learned(measured):
        distinct, bits, unlike = learned
        rows.append(('distinct codes of 256', code(distinct), '', ''))
        rows.append(('bits unlike the thermometer code', f'{code(unlike)} of {code(bits)}', '', ''))
    return table(('measured', 'value', 'images', 'weights'), rows)


def attacks(measured: dict[str, Any] | None) -> str | None:
    """Return the table of attacks and what follows from it; None if there are none."""
    done = [attack for attack in of(measured, 'attacks') or () if attack['accuracy'] is not None]
    rows = [
        (
            code(attack['name']),
            code(attack['eps']),
            code(attack['images']),
            f'{attack["accuracy"]:.2f}',
            _interval(attack.get('low'), attack.get('high')),
        )
        for attack in done
    ]
    shown = table(('attack', 'bound, levels of 255', 'images', 'still right, %', '95 % interval'), rows)
    if shown is None:
        return None
    lowest = min(attack['accuracy'] for attack in done)
    states = sorted({_words(attack.get('weights')) for attack in done} - {''})
    measured_on = f'Measured on the weights {", ".join(states)}. ' if states else ''
    return (
        f'{shown}\n\n{measured_on}The strongest leaves {lowest:.2f} % of the images right, and a stronger one may '
        'leave fewer. No adversarial robustness is claimed.'
    )


def _learned(measured: dict[str, Any] | None) -> tuple[int, int, int] | None:
    """Return distinct codes, bits, and bits unlike the thermometer code of a learned table, if they are known."""
    counts = [of(measured, 'codes', key) for key in ('distinct', 'bits', 'unlike_thermometer')]
    if any(type(count) is not int or count < 0 for count in counts):  # further keys may hold anything
        return None
    return counts[0], counts[1], counts[2]


def _interval(low: Any, high: Any) -> str:
    numbers = all(isinstance(bound, int | float) for bound in (low, high))  # further keys may hold anything
    return f'{low:.2f} to {high:.2f}' if numbers else ''


def _words(value: Any) -> str:
    return escaped(value) if isinstance(value, str) else ''


def limits(provenance: dict[str, Any] | None) -> str:
    """Return the list of what it is not, and not for."""
    points = []
    if provenance is None:
        points.append('How it came about is not recorded.')
    elif provenance['epochs'] and provenance['epochs'] < _PAPER_EPOCHS:
        points.append(f"Trained for {provenance['epochs']} epochs, fewer than the paper: not a result of the paper's.")
    note = of(provenance, 'dataset', 'note')
    if note:
        points.append(f'The data: {escaped(note)}')
    learned = _learned(of(provenance, 'results'))
    if learned and learned[2] < _HARDLY * learned[1]:
        points.append('The learned table is hardly more than the thermometer code, see the last line of the results.')
    if not of(provenance, 'results', 'attacks'):
        points.append('Not tested against attacks; no adversarial robustness is claimed.')
    else:
        points.append('Not for use where somebody may choose the image to mislead it, see the attacks above.')
    return '\n'.join(f'- {point}' for point in points)
