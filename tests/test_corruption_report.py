"""The report of the corruption benchmark, and the page it is printed on."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS
from timm_p2be.robustness.evaluation.corruption_record import CLEAN, figures_of, store_figures
from timm_p2be.robustness.evaluation.corruption_report import html, markdown, warnings
from timm_p2be.robustness.evaluation.html import grid, heat_map, line_chart, page, paragraph, table

MODELS = ('p2be', 'rgb <b>|')


class Checker(HTMLParser):
    """Checks that tags are balanced, and collects them and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ''

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != 'meta':
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return checker


def results(
    names: tuple[str, ...] = CORRUPTIONS, severities: tuple[int, ...] = (1, 2, 3, 4, 5), done: int = 1000, **data: Any
) -> dict[str, Any]:
    """The content of a result file; the first model is wrong on 10 * severity of 100 images, the second on 5 more."""
    model = {'architecture': 'wrn', 'encoding': 'rgb', 'num_classes': 10, 'parameters': 7, 'checkpoint_sha256': None}
    content: dict[str, Any] = {
        'config': {
            'models': [{'name': name, 'mean': [0.5] * 3, 'std': [0.25] * 3} | model for name in MODELS],
            'data': {
                'label': 'CIFAR-10-C', 'suite': 'cifar', 'source': 'stored', 'official': True, 'images': 100,
                'subset': 'all', 'transform': 'none', 'seed': None,
            } | data,
            'clean': {'name': 'cifar10', 'images': 100, 'subset': 'all', 'transform': 'none'},
            'corruptions': list(names),
            'severities': list(severities),
            'precision': 'float32',
        },
        'environment': {'python': '3', 'machine': 'm', 'versions': {'torch': '2'}},
        'clean': {}, 'results': {}, 'summary': {}, 'complete': False,
    }  # fmt: skip

    def figures(wrong: int) -> dict[str, Any]:
        return {
            model: figures_of(np.arange(100) >= wrong + 5 * number, np.full(100, 0.9, np.float32))
            for number, model in enumerate(MODELS)
        }

    sets = [(name, severity) for name in names for severity in severities]
    for name, severity in [(CLEAN, 0), *sets[:done]]:
        store_figures(content, name, severity, figures(10 * severity if severity else 2), len(sets))
    return content


def test_both_means_stand_side_by_side() -> None:
    text = markdown(results())
    assert '| model | clean error | mean corruption error (unnormalized) | mCE (AlexNet) |' in text
    assert '| p2be | 2.0 | 30.0 | 38.8 |' in text  # 100 * mean of 0.3 / AlexNet's error
    assert '| rgb <b>\\| | 7.0 | 35.0 |' in text


def test_markdown_has_corruptions_categories_and_settings() -> None:
    text = markdown(results())
    for line in ('fog', 'mean of blur', 'mCE (AlexNet)', 'transform', 'seed of the corruptions', 'versions'):
        assert re.search(rf'^\| {re.escape(line)} \|', text, re.MULTILINE)
    assert '0.5 0.5 0.5' in text
    assert '0.25 0.25 0.25' in text
    for line in text.splitlines():
        assert not line.startswith('|') or line.endswith('|')


def test_complete_official_results_have_one_remark() -> None:
    (remark,) = warnings(results())
    assert 'CIFAR-C is reported as the mean corruption error' in remark
    assert warnings(results(suite='imagenet')) == []


def test_remarks() -> None:
    content = results(CORRUPTIONS[:3] + EXTRA_CORRUPTIONS[:1], (1, 2), done=3, official=False, subset='first 100 of 9')
    content['config']['clean']['images'] = 90
    assert 'The clean images are 90' in ' '.join(warnings(content))
    content['config'] |= {'clean': None, 'precision': 'bfloat16'}
    text = ' '.join(warnings(content))
    for part in (
        '3 of 8 sets measured',
        'not the published benchmark',
        'up to 5.0 points',
        'over 3 corruptions (3 of the 15) at severities 1, 2',
        'Extra corruptions',
        'bfloat16',
        'No clean images',
    ):
        assert part in text
    assert text in ' '.join(re.findall(r'^> (.*)$', markdown(content), re.MULTILINE))


@pytest.mark.parametrize('done', [0, 1, 7, 1000])
def test_page_of_any_state_is_well_formed_and_self_contained(done: int) -> None:
    checker = parsed(html(results((*CORRUPTIONS, 'saturate'), done=done)))
    assert 'rgb <b>|' in checker.text
    assert not {'script', 'link', 'img', 'b'} & set(checker.tags)
    assert 'http' not in html(results(done=done))


def test_page_shows_curves_and_heat_maps() -> None:
    text = html(results())
    assert text.count('<polyline') == 5 * len(MODELS)  # all, and the four categories
    assert text.count('class="heat"') == 15 * 5 * len(MODELS)
    assert '--heat: 75%' in text


def test_content_survives_json() -> None:
    content = results()
    assert markdown(json.loads(json.dumps(content))) == markdown(content)


def test_everything_is_escaped() -> None:
    nasty = '<script>&"\''
    text = page(
        nasty,
        [
            (
                nasty,
                paragraph(nasty, note=True)
                + table([nasty], [[nasty]])
                + heat_map([nasty], [nasty], [[1.0]])
                + grid({nasty: line_chart({nasty: [(0, 1)]}, nasty, nasty)}),
            )
        ],
    )
    checker = parsed(text)
    assert 'script' not in checker.tags
    assert checker.text.count(nasty) >= 11


@pytest.mark.parametrize(
    'points',
    [
        [],
        [(0, 0)],
        [(1, 5), (1, 5)],
        [(0, -3), (1, 2)],
        [(0, float('nan')), (1, 2)],
        [(0, 1e-9), (1000, 2e-9)],
        [(index, index**2) for index in range(40)],
    ],
)
def test_charts_of_odd_data(points: list[tuple[float, float]]) -> None:
    text = line_chart({'a': points}, 'x', 'y')
    parsed(text)
    assert 'nan' not in text
    for x, y in re.findall(r'cx="([^"]*)" cy="([^"]*)"', text):
        assert 0 <= float(x) <= 640
        assert 0 <= float(y) <= 320


def test_heat_maps_of_odd_data() -> None:
    assert '--heat: 0%' in heat_map(['a'], ['b'], [[0.0]])
    assert '<td class="number">-</td>' in heat_map(['a'], ['b'], [[None]])
    assert '--heat: 38%' in heat_map(['a'], ['b'], [[1.0]], top=2.0)
