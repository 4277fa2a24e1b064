"""The report of attack benchmarks, as Markdown and as a page of HTML, from the contents of result files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from timm_p2be.robustness.evaluation.attack_checks import run_checks, suspected, verdict
from timm_p2be.robustness.evaluation.html import line_chart, page, paragraph, table

Table = tuple[list[str], list[list[str]]]  # header, rows
Content = Mapping[str, Any]

_TITLE = 'Adversarial robustness'
_LIMITS = (
    'Every figure is an upper bound on the true robust accuracy: a better attack may fell more. The interval covers '
    'the choice of images only, not the choice of attacks, and not training runs with other seeds.',
    'An image stands if the model is right on it as it is and after the attack: the attacker may leave it alone.',
    'The worst case runs the attacks in the order of the table, each on the images that stand; "felled" counts the '
    'images that fell to it first. Where the two sets of images overlap, the result alone is taken over. The budget '
    'is the most an image can cost in calls of the model, without and with a backward pass.',
    'Accuracy under corruptions is another question, measured by `timm-p2be benchmark corruptions`.',
)


def threat_model(content: Content) -> str:
    """Return the threat model in a sentence."""
    eps = content['settings']['eps']
    known = (
        'the weights and the normalization' if content['model']['encoding'] == 'rgb' else 'the weights and the codes'
    )
    return (
        f'Threat model: L-infinity, eps = {eps} levels ({eps}/255) on uint8 images, untargeted. The attacker knows '
        f"everything: {known}; the model has no secret and no randomness. The model's own answer to the uint8 image "
        'alone decides.'
    )


def markdown(contents: Sequence[Content]) -> str:
    """Return one report of all models as Markdown.

    Args:
        contents: of result files, complete or not.
    """
    parts = [f'# {_TITLE}', _markdown_table(_summary(contents))]
    for content in contents:
        parts += [f'## {content["model"]["name"]}', *(f'> {warning}' for warning in warnings(content))]
        parts += [f'**{_verdict(content)}**', threat_model(content)]
        for heading, rows in _tables(content):
            parts += [f'### {heading}', _markdown_table(rows)]
    return '\n\n'.join([*parts, '## Limits', *(f'- {limit}' for limit in _LIMITS)]) + '\n'


def html(contents: Sequence[Content]) -> str:
    """Return one report of all models as a page of HTML with curves, without links to anything.

    Args:
        contents: of result files, complete or not.
    """
    sections = [('Summary', table(*_summary(contents)))]
    for content in contents:
        name = content['model']['name']
        notes = ''.join(paragraph(warning, note=True) for warning in warnings(content))
        about = paragraph(_verdict(content), note=True) + notes + paragraph(threat_model(content))
        tables = [(f'{name}: {heading}', table(*rows)) for heading, rows in _tables(content)]
        sections += [(name, about), tables[0]]
        sections += [
            (f'{name}: accuracy over {axis}', line_chart(series, axis, 'images that stand, in %'))
            for axis, series in _curves(content)
        ]
        sections += tables[1:]
    return page(_TITLE, [*sections, ('Limits', ''.join(map(paragraph, _LIMITS)))])


def warnings(content: Content) -> list[str]:
    """Return what a reader of the figures must know."""
    found = []
    done = sum('accuracy' in entry for entry in content['alone'].values())
    worst = content['worst_case']
    if done < len(content['attacks']) or (worst and not worst.get('complete')):
        total = len(content['attacks'])
        found.append(f'Not finished: {done} of {total} attacks ran alone. Run the same command to go on.')
    if not worst:
        found.append('The worst case over all attacks was not measured.')
    elif content['settings']['worst_case'] < 1000:
        found.append(f'The worst case covers {content["settings"]["worst_case"]} images; 1,000 are usual.')
    if not {'score', 'decision'} & {attack['kind'] for attack in content['attacks']}:
        found.append('No attack by queries alone was run; they do not depend on gradients that may mislead.')
    return found


def _verdict(content: Content) -> str:
    return verdict(run_checks(dict(content)))


def _summary(contents: Sequence[Content]) -> Table:
    header = ['model', 'encoding', 'eps', 'clean', 'worst case', '95 % interval', 'images', 'gradient masking']
    rows = []
    for content in contents:
        worst, clean = content['worst_case'], content['clean'] or {}
        masking = 'suspected' if suspected(run_checks(dict(content))) else 'no sign'
        rows.append(
            [
                content['model']['name'],
                content['model']['encoding'],
                str(content['settings']['eps']),
                _share(clean.get('worst_case') or clean.get('alone')),
                _share(worst),
                _interval(worst),
                str(worst.get('count', '-')),
                masking,
            ]
        )
    return header, rows


def _tables(content: Content) -> Iterator[tuple[str, Table]]:
    yield 'attacks', _attacks(content)
    yield 'checks', _checks(content)
    for axis, series in _curves(content):
        xs = sorted({x for points in series.values() for x, _ in points})
        rows = [[name, *(_point(points, x) for x in xs)] for name, points in series.items()]
        yield f'images that stand, in %, over {axis}', ([axis, *(f'{x:g}' for x in xs)], rows)
    yield 'settings', _settings(content)


def _attacks(content: Content) -> Table:
    settings, worst = content['settings'], content['worst_case']
    alone = f'stand alone (first {settings["alone"]})'
    header = ['attack', 'kind', alone, '95 % interval', 'felled in the worst case', 'seconds', 'budget']
    clean = (content['clean'] or {}).get('alone')
    rows = [['none', 'clean', _share(clean), _interval(clean), '-', '-', '1 + 0']]
    for attack in content['attacks']:
        entry = content['alone'].get(attack['name'])
        new = worst.get('attacks', {}).get(attack['name'], {})
        seconds = (entry or {}).get('seconds', 0.0) + new.get('seconds', 0.0)
        felled = f'{new["number"]} of {new["faced"]}' if new else '-'
        budget = f'{attack["forwards"]} + {attack["backwards"]}'
        row = [attack['name'], attack['kind'], _share(entry), _interval(entry), felled, f'{seconds:.1f}', budget]
        rows.append(row)
    if worst:
        count = settings['worst_case']
        row = [f'worst case (first {count})', 'all', _share(worst), _interval(worst), '-', '-', '-']
        rows.append(row)
    return header, rows


def _checks(content: Content) -> Table:
    rows = [[c.name, c.result, c.figure, c.explanation] for c in run_checks(dict(content))]
    return ['check', 'result', 'measured', 'why it matters'], rows


def _curves(content: Content) -> Iterator[tuple[str, dict[str, list[tuple[float, float]]]]]:
    curves = content.get('probes', {}).get('curves', {})
    for axis, label in (('eps', 'eps in levels'), ('steps', 'steps')):
        series = {name: [(p['x'], 100 * p['accuracy']) for p in curve[axis]] for name, curve in curves.items()}
        series = {name: points for name, points in series.items() if points}
        if series:
            yield label, series


def _settings(content: Content) -> Table:
    settings, data, model = content['settings'], content['data'], content['model']
    versions = content['environment']['versions']
    probes = content.get('probes', {})
    rows = [
        ['model', f'{model["architecture"]}, {model["encoding"]}, {model["parameters"]:,} parameters'],
        ['weights', f'SHA-256 {model["weights_sha256"]}'],
        ['mean and std', f'{model["mean"]} and {model["std"]}'],
        ['data', f'{data["name"]}, {data["images"]} images ({data["subset"]}), transform {data["transform"]}'],
        ['data fingerprint', data['fingerprint']],
        ['alone', f'first {settings["alone"]} images'],
        ['worst case', f'first {settings["worst_case"]} images'],
        ['curves, gradients, binarization', probes.get('subset', 'not run')],
        ['seed', str(settings['seed'])],
        ['batch size', str(settings['batch_size'])],
        ['versions', ', '.join(f'{name} {version}' for name, version in versions.items() if version)],
        ['machine', f'{content["environment"]["machine"]}, {content["environment"]["threads"]} threads'],
    ]
    return ['setting', 'value'], rows


def _share(entry: Mapping[str, Any] | None) -> str:
    return f'{100 * entry["accuracy"]:.1f} %' if entry and 'accuracy' in entry else '-'


def _interval(entry: Mapping[str, Any] | None) -> str:
    return f'{100 * entry["low"]:.1f} to {100 * entry["high"]:.1f} %' if entry and 'low' in entry else '-'


def _point(points: Sequence[tuple[float, float]], x: float) -> str:
    return next((f'{y:.1f}' for at, y in points if at == x), '-')


def _markdown_table(rows: Table) -> str:
    header, body = rows
    lines = [header, ['---'] * len(header), *body]
    return '\n'.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |' for line in lines)
