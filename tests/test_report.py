"""Reports of both benchmarks say what their result files hold, as Markdown and as a page; nothing there is trusted."""

import base64
import copy
import io
import itertools
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from planted import Push, planted_images, planted_model

from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS
from timm_p2be.robustness.evaluation.attack_benchmark import benchmark_attacks
from timm_p2be.robustness.evaluation.attack_checks import conclude
from timm_p2be.robustness.evaluation.attack_probes import probe_curves, probe_examples
from timm_p2be.robustness.evaluation.attack_report import attack_report, threat_model
from timm_p2be.robustness.evaluation.attack_report import warnings as attack_warnings
from timm_p2be.robustness.evaluation.corruption_benchmark import CLEAN, CorruptionResults, figures_of
from timm_p2be.robustness.evaluation.corruption_report import corruption_report, warnings
from timm_p2be.robustness.evaluation.report import Attacked, Curves, Report, Section, Table
from timm_p2be.robustness.evaluation.results import pack_bits, read_json, unpack_bits
from timm_p2be.robustness.pixel_model import PixelModel

RESULTS = Path(__file__).parents[1] / 'benchmarks' / 'results'
MODELS = ('p2be', 'rgb <b>|')
NASTY = '<script>&"\'|[x](http://y)\n$\\frac$'


class Checker(HTMLParser):
    """Checks that tags are balanced, and collects them, the text and the figures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.figures: list[str] = []
        self.pictures: list[np.ndarray] = []
        self.text = ''
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == 'img':
            scheme, data = str(dict(attrs)['src']).split(',')
            assert scheme in ('data:image/svg+xml;base64', 'data:image/png;base64')
            if 'svg' in scheme:
                self.figures.append(base64.b64decode(data).decode())
            else:
                self.pictures.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))))
        elif tag != 'meta':
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def corruptions(
    names: tuple[str, ...] = CORRUPTIONS, severities: tuple[int, ...] = (1, 2, 3, 4, 5), **data: Any
) -> dict[str, Any]:
    """A result file's content; the first model is wrong on 10 * severity of 100 images, the second on 5 more."""
    model = {'architecture': 'wrn', 'encoding': 'rgb', 'num_classes': 10, 'parameters': 7, 'weights_sha256': 64 * 'a'}
    config = {
        'models': [{'name': name, 'mean': [0.5] * 3, 'std': [0.25] * 3} | model for name in MODELS],
        'data': {
            'label': 'ImageNet-C', 'suite': 'imagenet', 'source': 'stored', 'official': True, 'images': 100,
            'subset': 'all', 'transform': 'none', 'seed': None, 'fingerprint': 'f',
        } | data,
        'clean': {'name': 'cifar10', 'images': 100, 'subset': 'all', 'transform': 'none'},
        'corruptions': names,
        'severities': severities,
        'precision': 'float32',
    }  # fmt: skip
    results = CorruptionResults.open(
        None, {'config': config}, {'clean': {}, 'results': {}, 'summary': {}, 'complete': False}
    )
    for name, severity in [(CLEAN, 0), *itertools.product(names, severities)]:
        wrong = 10 * severity if severity else 2
        results.add(
            name,
            severity,
            {
                model: figures_of(np.arange(100) >= wrong + 5 * number, np.full(100, 0.9, np.float32))
                for number, model in enumerate(MODELS)
            },
        )
    return results.content


@pytest.fixture
def attacks() -> dict[str, Any]:
    """Results of a model with a name that must be escaped, as read back from the file."""
    model, data = PixelModel(planted_model().model, name='<b>th|1'), planted_images(20, wrong=(19,))
    pushes = [Push('noise', 1, kind='noise'), Push('fgsm', 5, kind='one-step'), Push('pgd', 3)]
    results = benchmark_attacks(model, data, pushes, alone=10, worst_case=20, probed=10)
    probe_curves(model, data, results, {'pgd': lambda model, eps, steps: Push('pgd', min(eps, steps), eps=eps)})
    probe_examples(model, data, results, pushes[1])
    conclude(results)
    return json.loads(json.dumps(results.content))


def test_every_figure_of_the_corruptions_is_there() -> None:
    text = corruption_report(corruptions()).markdown()
    assert '| model | clean error | mean corruption error (unnormalized) | mCE (AlexNet) |' in text
    assert '| p2be | 2.0 (0.6 to 7.0) | 30.0 (22.9 to 37.1) | 38.8 |' in text  # 100 * mean of 0.3 / AlexNet's error
    assert '| rgb &lt;b>\\| | 7.0 (3.4 to 13.7) | 35.0 (27.5 to 42.5) |' in text
    assert '| 2.4 to 7.4 |' in text  # paired: 5 images of every 100 more, each at one severity
    assert '| 0.5 0.5 0.5 | 0.25 0.25 0.25 | aaaaaaaaaaaaaaaa |' in text
    for line in ('fog', 'mean of blur', 'mCE (AlexNet)', 'transform', 'seed of the corruptions', 'environment'):
        assert re.search(rf'^\| {re.escape(line)} \|', text, re.MULTILINE)


def test_every_figure_of_the_attacks_is_there(attacks: dict[str, Any]) -> None:
    text = attack_report([attacks]).markdown()
    for line in (
        '| none | clean | 100.0 % | 72.2 to 100.0 % | - | - |',
        '| noise | noise | 90.0 % | 59.6 to 98.2 % | 0 | 1 of 19 |',
        '| fgsm | one-step | 50.0 % | 23.7 to 76.3 % | 2 | 4 of 18 |',
        '| pgd | white-box | 70.0 % | 39.7 to 89.2 % | 0 | 0 of 14 |',
        '| worst case (first 20) | all | 70.0 % | 48.1 to 85.5 % |',
        '| &lt;b>th\\|1 | rgb | - | 8 | 95.0 % | 70.0 % | 48.1 to 85.5 % | 20 |',
        '| eps in levels | 1 | 2 | 4 | 8 | 16 | 32 | 64 | 255 |\n| --- | ---: |',
        '| pgd | 90.0 | 80.0 | 60.0 | 20.0 | 0.0 |',
        '| seed | 0 |',
        'L-infinity, eps = 8 levels (8/255)',
        'The attacker knows everything: the weights and the normalization',
        'timm-p2be benchmark corruptions',
        attacks['model']['weights_sha256'],
    ):
        assert line in text
    assert text.index(attacks['verdict']) < text.index('| none |')
    attacks['model']['encoding'] = 'p2be'
    assert 'the weights and the codes' in threat_model(attacks)
    attacks['probes']['gradients'] = {'kernel': {'zero': 0.9, 'nonfinite': 0.0}}
    text = attack_report([attacks]).markdown()
    assert '> Gradient masking is suspected: these checks failed: ' in text
    assert 'suspected |' in text


def test_models_are_compared_and_images_that_fell_are_shown(attacks: dict[str, Any]) -> None:
    """The second model differs on 1 of the 20 images, or saw others."""
    other = copy.deepcopy(attacks)
    other['model']['name'] = 'other'
    other['worst_case']['standing'] = pack_bits(
        unpack_bits(attacks['worst_case']['standing'], 20) & (np.arange(20) < 18)
    )
    assert '| -7.9 to 17.0 |' in attack_report([attacks, other]).markdown()  # Agresti & Min: 1 and 0 of 20
    other['data']['fingerprint'] = 'others'
    report = attack_report([attacks, other])
    assert '-7.9 to' not in report.markdown()
    assert '| image | label | prediction | prediction after the attack |' in report.markdown()
    page = Checker(report.html())
    assert len(page.figures) == 2  # both models in each
    assert len(page.pictures) == 8
    first = [page.pictures[0][0, 136 * place].tolist() for place in range(3)]
    assert first == [[128, 0, 0], [123, 0, 0], [48, 128, 128]]  # 128 - 16 * 5


@pytest.mark.parametrize('stopped', ['clean', 'first attack', 'curves'])
def test_a_run_that_was_stopped_has_a_report(attacks: dict[str, Any], stopped: str) -> None:
    del attacks['verdict']
    if stopped == 'curves':
        del attacks['probes']['curves']['pgd']['eps'][3:]
        del attacks['probes']['curves']['pgd']['steps'][:]
    else:
        del attacks['probes']
        attacks['worst_case'] = {'subset': 'first 20 images', 'attacks': {}}
        attacks['alone'] = {'noise': attacks['alone']['noise']} if stopped == 'first attack' else {}
    text = attack_report([attacks]).markdown()
    assert text.startswith('# Adversarial robustness (incomplete)')
    assert '> Incomplete: ' in text
    assert ('| noise | noise | 90.0 % |' in text) == (stopped != 'clean')
    assert ('| eps in levels | 1 | 2 | 4 |\n' in text) == (stopped == 'curves')
    attack_report([attacks]).html()


def test_remarks_on_corruptions() -> None:
    assert not [*warnings(corruptions())]
    few = corruptions(CORRUPTIONS[:3] + EXTRA_CORRUPTIONS[:1], (1, 2), official=False, subset='first 100 of 9')
    few['config']['clean']['images'] = 90
    assert 'The clean images are 90' in ' '.join(warnings(few))
    few['config'] |= {'clean': None, 'precision': 'bfloat16'}
    text = ' '.join(warnings(few))
    parts = ('not the published benchmark', 'first 100 of 9; published', 'Extra corruptions')
    parts += ('over 3 corruptions (3 of the 15) at severities 1, 2', 'bfloat16', 'No clean images')
    assert not [part for part in parts if part not in text]
    assert text in ' '.join(re.findall(r'^> (.*)$', corruption_report(few).markdown(), re.MULTILINE))


def test_remarks_on_attacks(attacks: dict[str, Any]) -> None:
    assert ['1,000 are usual' in remark or 'queries' in remark for remark in attack_warnings(attacks)] == [True] * 2
    for flipped, remarks in ((0.25, 0), (1.0, 1), (7.8, 1)):
        attacks['model']['neighbor_distance'] = flipped
        assert sum(f'table is rough: {flipped:.2f} bits' in remark for remark in attack_warnings(attacks)) == remarks
    assert '| rgb | 7.80 | 8 |' in attack_report([attacks]).markdown()
    attacks['worst_case'] = {}
    assert any('worst case over all attacks was not measured' in remark for remark in attack_warnings(attacks))
    assert '| - | - |' in attack_report([attacks]).markdown()
    assert '<td class="number">-</td>' in attack_report([attacks]).html()


@pytest.mark.parametrize('names', [(*CORRUPTIONS, 'saturate'), ('saturate',)])
def test_pages_are_well_formed_and_self_contained(names: tuple[str, ...]) -> None:
    page = corruption_report(corruptions(names)).html()
    checker = Checker(page)
    assert 'rgb <b>|' in checker.text
    assert not {'script', 'link', 'b', 'svg'} & set(checker.tags)
    assert 'http' not in page
    assert len(checker.figures) == (5 if len(names) > 1 else 1)  # of all and of four categories


def test_curves_over_eps_and_steps_are_logarithmic(attacks: dict[str, Any]) -> None:
    checker = Checker(attack_report([attacks]).html())
    assert '<b>th|1' in checker.text
    assert attacks['verdict'] in checker.text
    for figure, last in zip(checker.figures, (255, 100), strict=True):
        ticks = {int(n): float(x) for x, n in re.findall(r'translate\(([\d.]+) [\d.]+\)">(\d+)</text>', figure)}
        ticks |= {int(n): float(x) for x, n in re.findall(r'x="([\d.]+)"[^>]*>(\d+)</text>', figure)}
        assert ticks[2] - ticks[1] > (ticks[last] - ticks[1]) / 9  # on a linear axis a hundredth


def test_everything_is_escaped() -> None:
    figures = [
        Curves(NASTY, {NASTY: [(1, 1), (2, 3)]}, NASTY, NASTY, log=True),
        Attacked(NASTY, *np.zeros((2, 4, 4, 3), np.uint8)),
    ]
    report = Report(NASTY, [Section(NASTY, 3, [NASTY], [NASTY], Table([NASTY], [[NASTY]]), figures)])
    checker = Checker(report.html())
    assert not {'script', 'a'} & set(checker.tags)
    assert checker.text.count(NASTY) == 9
    assert not any('<script>' in figure for figure in checker.figures)
    assert report.html() == report.html()
    text = report.markdown()
    assert '<' not in text
    assert not re.search(r'(?<!\\)\[', text)
    assert [line for line in text.splitlines() if line.startswith('|')] == [
        text.splitlines()[-3],
        '| --- |',
        text.splitlines()[-1],
    ]


@pytest.mark.parametrize(
    'points', [[], [(0, 0)], [(1, 5), (1, 5)], [(0, 1), (3, float('nan'))], [(i, i) for i in range(40)]]
)
def test_figures_of_odd_data(points: list[tuple[float, float]]) -> None:
    for log in (False, True):
        assert Curves('t', {'a': points, 'b': []}, 'x', 'y', log).draw().startswith('data:image/svg+xml')


def _shipped_attacks(folder: str) -> Report:
    names = ('rgb', 'onehot', 'thermometer', 'p2be', 'p2be-rough')
    return attack_report([read_json(RESULTS / folder / f'{name}.attacks.json', 'attacks') for name in names])


SHIPPED: dict[str, Callable[[], Report]] = {
    'corruptions': lambda: corruption_report(read_json(RESULTS / 'corruptions' / 'results.json', 'corruptions')),
    'attacks': lambda: _shipped_attacks('attacks'),
    'attacks_eps1': lambda: _shipped_attacks('attacks_eps1'),
}


@pytest.mark.parametrize('kind', SHIPPED)
def test_shipped_results_give_the_shipped_report(kind: str) -> None:
    """Every row of the reports that were written when the figures were measured."""
    assert SHIPPED[kind]().markdown() == (RESULTS / kind / 'report.md').read_text()
    figures = Checker((RESULTS / kind / 'report.html').read_text()).figures
    assert len(figures) == {'corruptions': 5, 'attacks': 2, 'attacks_eps1': 0}[kind]  # measured without curves


def test_figures_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__('sys').modules, 'matplotlib', None)
    with pytest.raises(ValueError, match=r'timm-p2be\[robustness\]'):
        Curves('t', {}, 'x', 'y').draw()
