"""The report says what the result file holds, in Markdown and in HTML."""

import json
import re
from typing import Any

import pytest
from planted import Push, planted_images, planted_model

from timm_p2be.robustness.evaluation.attack_benchmark import benchmark_attacks
from timm_p2be.robustness.evaluation.attack_checks import conclude
from timm_p2be.robustness.evaluation.attack_probes import probe_curves
from timm_p2be.robustness.evaluation.attack_report import html, markdown, threat_model, warnings
from timm_p2be.robustness.pixel_model import PixelModel


@pytest.fixture
def content() -> dict[str, Any]:
    """Results of a model with a name that must be escaped, as read back from the file."""
    model = PixelModel(planted_model().model, name='<b>th|1')
    data = planted_images(20, wrong=(19,))
    attacks = [Push('noise', 1, kind='noise'), Push('fgsm', 5, kind='one-step'), Push('pgd', 3)]
    record = benchmark_attacks(model, data, attacks, alone=10, worst_case=20, probed=10)
    probe_curves(model, data, record, {'pgd': lambda model, eps, steps: Push('pgd', min(eps, steps), eps=eps)})
    conclude(record)
    return json.loads(json.dumps(record.content))


def test_markdown_has_every_figure(content: dict[str, Any]) -> None:
    text = markdown([content])
    assert '| none | clean | 100.0 % | 72.2 to 100.0 % |' in text
    assert '| noise | noise | 90.0 % | 59.6 to 98.2 % | 1 of 19 |' in text
    assert '| fgsm | one-step | 50.0 % | 23.7 to 76.3 % | 4 of 18 |' in text
    assert '| pgd | white-box | 70.0 % | 39.7 to 89.2 % | 0 of 14 |' in text
    assert '| worst case (first 20) | all | 70.0 % | 48.1 to 85.5 % |' in text
    assert '| <b>th\\|1 | rgb | 8 | 95.0 % | 70.0 % | 48.1 to 85.5 % | 20 |' in text
    assert '| eps in levels | 1 | 2 | 4 | 8 | 16 | 32 | 64 | 255 |\n| --- |' in text
    assert '| pgd | 90.0 | 80.0 | 60.0 | 20.0 | 0.0 |' in text
    assert content['verdict'] in text
    assert 'L-infinity, eps = 8 levels (8/255)' in text
    assert content['model']['weights_sha256'] in text
    assert '| seed | 0 |' in text
    assert 'timm-p2be benchmark corruptions' in text


def test_every_row_of_a_table_has_as_many_cells_as_its_header(content: dict[str, Any]) -> None:
    for block in markdown([content, content]).split('\n\n'):
        if block.startswith('|'):
            assert len({len(re.findall(r'(?<!\\)\|', line)) for line in block.splitlines()}) == 1


def test_html_is_escaped_and_has_curves(content: dict[str, Any]) -> None:
    text = html([content])
    assert '&lt;b&gt;th|1' in text
    assert '<b>' not in text
    assert text.count('role="img"') == 2
    assert '70.0 %' in text
    assert content['verdict'] in text


def test_warnings_say_what_is_missing(content: dict[str, Any]) -> None:
    assert any('1,000 are usual' in warning for warning in warnings(content))
    assert any('queries' in warning for warning in warnings(content))
    assert not any('Not finished' in warning for warning in warnings(content))
    del content['alone']['pgd']
    content['worst_case']['complete'] = False
    assert warnings(content)[0].startswith('Not finished: 2 of 3 attacks')
    content['worst_case'] = {}
    assert any('worst case over all attacks was not measured' in warning for warning in warnings(content))
    content['alone'], content['clean'], content['probes'] = {}, None, {}
    for write in (markdown, html):
        assert '| - | - |' in write([content]) or '<td class="number">-</td>' in write([content])


def test_masking_is_said_first(content: dict[str, Any]) -> None:
    content['probes']['gradients'] = {'kernel': {'zero': 0.9, 'nonfinite': 0.0}}
    assert '**Gradient masking is suspected: these checks failed: ' in markdown([content])
    assert 'suspected |' in markdown([content])


def test_the_threat_model_names_what_is_known(content: dict[str, Any]) -> None:
    assert 'the weights and the normalization' in threat_model(content)
    content['model']['encoding'] = 'p2be'
    assert 'the weights and the codes' in threat_model(content)
