"""What the report of attack benchmarks says, from the contents of result files."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from timm_p2be.files import content_of
from timm_p2be.robustness.evaluation.attack_checks import Check, Evidence, outcomes, run_checks, suspected, verdict
from timm_p2be.robustness.evaluation.entries import compared
from timm_p2be.robustness.evaluation.report import Attacked, Curves, Report, Section, Table, surroundings

Content = Mapping[str, Any]
_AXES = {'eps': 'eps in levels', 'steps': 'steps'}
ROUGH = 1.0  # bits that flip from a level to the next; a thermometer code has M / 255

_LIMITS = (
    'Every figure is an upper bound on the true robust accuracy: a better attack may fell more. The interval covers '
    'the choice of images only, not the choice of attacks, and not training runs with other seeds.',
    'An image stands if the model is right on it as it is and after the attack: the attacker may leave it alone.',
    'The worst case runs the attacks in the order of the table, each on the images that stand; "felled" counts the '
    'images that fell to it first. "By it only" counts images of the first set that no other attack felled. Where the '
    'two sets of images overlap, the result alone is taken over. The budget is the most an image can cost in calls of '
    'the model, without and with a backward pass.',
    'Accuracy under corruptions is another question, measured by `timm-p2be benchmark corruptions`.',
)


@content_of('The result file')
def attack_report(contents: Sequence[Content]) -> Report:
    """Return one report of all models, from the contents of their finished result files."""
    contents = [_so_far(content) for content in contents]
    sections = [Section('Summary', table=_summary(contents), figures=_overview(contents))]
    for content in contents:
        name, checks = content['model']['name'], run_checks(content)
        sections += [
            Section(name, notes=[verdict(checks), *warnings(content)], texts=[threat_model(content)]),
            Section(f'{name}: attacks', 3, table=_attacks(content)),
            Section(f'{name}: checks', 3, table=_checks(checks)),
            *_examples(content),
        ]
        for axis, label in _AXES.items():
            heading = f'{name}: images that stand, in %, over {label}'
            sections += [Section(heading, 3, table=table) for table in _points(content, axis, label)]
        sections.append(Section(f'{name}: settings', 3, table=_settings(content)))
    stopped = ' (incomplete)' if any('verdict' not in content for content in contents) else ''
    return Report(f'Adversarial robustness{stopped}', [*sections, Section('Limits', texts=_LIMITS)])


def _so_far(content: Content) -> Content:
    """Return what a run that was stopped has done; an attack is done once it faced all images alone."""
    if 'verdict' in content:
        return content
    done = [attack for attack in content['attacks'] if 'accuracy' in content['alone'].get(attack['name'], {})]
    worst = content['worst_case'] if 'accuracy' in content['worst_case'] else {}
    return {**content, 'attacks': done, 'worst_case': worst}


def threat_model(content: Content) -> str:
    """Return the threat model in a sentence."""
    eps, rgb = content['settings']['eps'], content['model']['encoding'] == 'rgb'
    return (
        f'Threat model: L-infinity, eps = {eps} levels ({eps}/255) on uint8 images, untargeted. The attacker knows '
        f'everything: the weights and the {"normalization" if rgb else "codes"}; the model has no secret and no '
        "randomness. The model's own answer to the uint8 image alone decides."
    )


def warnings(content: Content) -> Iterator[str]:
    """Yield what a reader of the figures must know."""
    if 'verdict' not in content:
        yield (
            'Incomplete: the run was stopped. Here are the attacks that were done and the worst case so far; the same '
            'command again goes on from there.'
        )
    if not content['worst_case']:
        yield 'The worst case over all attacks was not measured.'
    elif content['settings']['worst_case'] < 1000:
        yield f'The worst case covers {content["settings"]["worst_case"]} images; 1,000 are usual.'
    flipped = content['model']['neighbor_distance']
    if flipped is not None and flipped >= ROUGH:
        yield (
            f'The table is rough: {flipped:.2f} bits flip from a level to the next. Accuracy under noise of one level '
            "says nothing of it, and gradients through a 'kernel' wider than the bound hide what DGA and LS-PGA find."
        )
    if not {'score', 'decision'} & {attack['kind'] for attack in content['attacks']}:
        yield 'No attack by queries alone was run; they do not depend on gradients that may mislead.'


def _summary(contents: Sequence[Content]) -> Table:
    header = ['model', 'encoding', 'bits flip per level', 'eps', 'clean', 'worst case', '95 % interval', 'images']
    header.append('gradient masking')
    differences = compared(contents) if len(contents) > 1 and all('verdict' in content for content in contents) else []
    header += [f'error above that of {contents[0]["model"]["name"]}, paired 95 % interval'] if differences else []
    rows = []
    for place, content in enumerate(contents):
        model, worst, clean = content['model'], content['worst_case'], content['clean']
        flipped = model['neighbor_distance']
        row = [model['name'], model['encoding'], '-' if flipped is None else f'{flipped:.2f}']
        row.append(content['settings']['eps'])
        row += [_share(clean.get('worst_case', clean['alone'])), _share(worst), _interval(worst)]
        row += [worst.get('count', '-'), 'suspected' if suspected(run_checks(content)) else 'no sign']
        rows.append([str(cell) for cell in (*row, *differences[place : place + 1])])
    return Table(header, rows)


def _overview(contents: Sequence[Content]) -> list[Curves]:
    """Return, over each axis of the curves, what is left of every model."""
    curves = []
    for axis, label in _AXES.items():
        series = {}
        for content in contents:
            if points := Evidence([], content.get('probes', {})).lowest(axis):
                series[content['model']['name']] = [(point['x'], 100 * point['accuracy']) for point in points]
        if series:
            title = f'Under the attack that leaves least, over {label}'
            curves.append(Curves(title, series, label, 'images that stand, in %', log=True))
    return curves


def _examples(content: Content) -> Iterator[Section]:
    """Yield the images that fell, if there are any."""
    found = content.get('probes', {}).get('examples', {})
    rows, figures = [], []
    for image in found.get('images', ()):
        said = [f'{image[which]["class"]}, {100 * image[which]["confidence"]:.1f} %' for which in ('clean', 'attacked')]
        rows.append([str(image['index']), str(image['label']), *said])
        shown = [
            np.frombuffer(base64.b64decode(image[which]['levels']), np.uint8).reshape(image['shape'])
            for which in ('clean', 'attacked')
        ]
        figures.append(Attacked(f'image {image["index"]}: {said[0]}; attacked: {said[1]}', *shown))
    if rows:
        text = (
            f'The first images that the model gets right and {found["attack"]} alone fells, attacked once more: as '
            'they are, attacked, and gray plus 16 times the difference, with what the model says of them.'
        )
        table = Table(['image', 'label', 'prediction', 'prediction after the attack'], rows)
        yield Section(f'{content["model"]["name"]}: images that fell', 3, texts=[text], table=table, figures=figures)


def _attacks(content: Content) -> Table:
    settings, worst = content['settings'], content['worst_case']
    alone = f'stand alone (first {settings["alone"]})'
    header = ['attack', 'kind', alone, '95 % interval', 'felled by it only', 'felled in the worst case', 'seconds']
    header.append('budget')
    clean = content['clean']['alone']
    rows = [['none', 'clean', _share(clean), _interval(clean), '-', '-', '-', '1 + 0']]
    felled_by = {outcome.name: outcome.felled for outcome in outcomes(content)}
    times = sum(bits.astype(int) for bits in felled_by.values())
    for attack in content['attacks']:
        entry = content['alone'][attack['name']]
        new = worst.get('attacks', {}).get(attack['name'], {})
        seconds = entry['seconds'] + new.get('seconds', 0.0)
        felled = f'{new["number"]} of {new["faced"]}' if new else '-'
        only = int((felled_by[attack['name']] & (times == 1)).sum())
        row = [attack['name'], attack['kind'], _share(entry), _interval(entry), str(only), felled, f'{seconds:.1f}']
        rows.append([*row, f'{attack["forwards"]} + {attack["backwards"]}'])
    if worst:
        title = f'worst case (first {settings["worst_case"]})'
        rows.append([title, 'all', _share(worst), _interval(worst), '-', '-', '-', '-'])
    return Table(header, rows)


def _checks(checks: Sequence[Check]) -> Table:
    rows = [[check.name, check.result, check.figure, check.explanation] for check in checks]
    return Table(['check', 'result', 'measured', 'why it matters'], rows)


def _points(content: Content, axis: str, label: str) -> list[Table]:
    """Return the points of all curves over an axis, as far as a run came that was stopped."""
    curves = content.get('probes', {}).get('curves', {})
    columns = [*zip(*(curve[axis] for curve in curves.values()), strict=False)]
    rows = [[name, *(f'{100 * p[row]["accuracy"]:.1f}' for p in columns)] for row, name in enumerate(curves)]
    return [Table([label, *(f'{points[0]["x"]:g}' for points in columns)], rows)] if columns else []


def _settings(content: Content) -> Table:
    settings, data, model = content['settings'], content['data'], content['model']
    mean, std = (' '.join(f'{value:g}' for value in model[key]) for key in ('mean', 'std'))
    rows = {
        'model': f'{model["architecture"]}, {model["encoding"]}, {model["parameters"]:,} parameters',
        'weights': f'SHA-256 {model["weights_sha256"]}',
        'mean and std': f'{mean} and {std}',
        'data': f'{data["name"]}, {data["images"]} images ({data["subset"]}), transform {data["transform"]}',
        'data fingerprint': data['fingerprint'],
        'alone': f'first {settings["alone"]} images',
        'worst case': f'first {settings["worst_case"]} images',
        'curves, gradients, binarization': content.get('probes', {}).get('subset', 'not run'),
        'seed': str(settings['seed']),
        'batch size': str(settings['batch_size']),
        'environment': surroundings(content['environment']),
    }
    return Table(['setting', 'value'], [[*row] for row in rows.items()])


def _share(entry: Content) -> str:
    return f'{100 * entry["accuracy"]:.1f} %' if entry else '-'


def _interval(entry: Content) -> str:
    return f'{100 * entry["low"]:.1f} to {100 * entry["high"]:.1f} %' if entry else '-'
