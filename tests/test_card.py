"""Model cards: complete metadata, examples that run, and no text of a config that becomes anything but text."""

import copy
import functools
import re
from collections.abc import Iterator
from typing import Any

import jinja2
import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from published import PROVENANCE

from timm_p2be.hub.card import render_card


@pytest.fixture(scope='module', autouse=True)
def compiled_once() -> Iterator[None]:
    """Compile the template once: that takes longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2, 'Template', functools.cache(jinja2.Template))
        yield


DIGEST = '0123456789abcdef' * 4
NAME = 'someone/net'


def table(provenance: Any = PROVENANCE, **changes: Any) -> dict[str, Any]:
    return {'encoding': 'p2be', 'num_bits': 64, 'codes_sha256': DIGEST, 'provenance': provenance, **changes}


def network(provenance: Any = PROVENANCE, architecture: str = 'wrn10_2_p2be', **changes: Any) -> dict[str, Any]:
    ours = {'encoding': 'p2be', 'num_bits': 64, 'weights_sha256': DIGEST, 'provenance': provenance, **changes}
    return {'architecture': architecture, 'timm_p2be': ours}


def changed(**changes: Any) -> dict[str, Any]:
    """Provenance with other values; `dataset_note=...` goes into `dataset`."""
    provenance = copy.deepcopy(PROVENANCE)
    for name, value in changes.items():
        group, _, key = name.partition('_')
        if key and group in ('dataset', 'results'):
            provenance[group][key] = value
        else:
            provenance[name] = value
    return provenance


def metadata(text: str) -> dict[str, Any]:
    return ModelCard(text).data.to_dict()


def sections(text: str) -> dict[str, str]:
    """Heading -> body of everything behind the metadata."""
    parts = re.split(r'^## (.+)$', ModelCard(text).text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))


def example(text: str) -> str:
    code = re.search(r'```python\n(.*?)```', text, re.DOTALL)
    assert code is not None
    return code[1]


def test_the_metadata_of_a_model() -> None:
    data = metadata(render_card(network(changed(base_model='timm/net@v2')), f'{NAME}@v1', license='cc-by-4.0'))
    assert data['library_name'] == 'timm-p2be'
    assert {'timm-p2be', 'timm', 'p2be', 'robustness'} <= set(data['tags'])
    assert data['pipeline_tag'] == 'image-classification'
    assert data['license'] == 'cc-by-4.0'
    assert data['datasets'] == ['uoft-cs/cifar10']
    assert data['base_model'] == 'timm/net'
    (index,) = data['model-index']
    (result,) = index['results']
    assert index['name'] == 'net'
    assert result['dataset'] == {'name': 'CIFAR-10', 'type': 'uoft-cs/cifar10', 'split': 'test'}
    assert [(metric['type'], metric['value'], metric['name']) for metric in result['metrics']] == [
        ('accuracy', 91.6, 'Clean accuracy, %'),
        ('mean_corruption_error', 34.4, 'Mean corruption error on CIFAR-10-C-style, %'),
        ('accuracy', 0.0, 'Accuracy under lspga-official, eps 8/255, %'),
    ]


def test_unknown_things_are_left_out() -> None:
    provenance = changed(dataset_id=None, base_model='wrn10_2', results=None)
    data = metadata(render_card(network(provenance), NAME))
    assert not {'datasets', 'base_model', 'metrics', 'model-index', 'model_name', 'eval_results'} & data.keys()
    for counts in ({}, {'distinct': '<b>', 'bits': 1, 'unlike_thermometer': 1}):
        shown = sections(render_card(table(changed(results_codes=counts))))
        assert 'thermometer code' not in shown['Results of the network it was trained in']


def test_no_section_is_empty_or_superfluous() -> None:
    every = sections(render_card(network(), NAME))
    assert [*every] == ['Results', 'Attacks', 'Use', 'Training', 'Limits', 'Integrity', 'License', 'Citation']
    results = {'clean': PROVENANCE['results']['clean'], 'corruptions': None, 'attacks': None}
    assert 'Attacks' not in sections(render_card(network(changed(results=results)), NAME))
    always = ['Use', 'Other tables, in timm-p2be', 'Limits', 'Integrity', 'License', 'Citation']
    assert [*sections(render_card(table(None)))] == always
    unknown = {**dict.fromkeys(PROVENANCE), 'results': {'clean': None, 'corruptions': None, 'attacks': []}}
    least = sections(render_card(table(unknown)))
    assert [*least] == always
    assert all(every.values())
    assert all(least.values())


def test_the_examples() -> None:
    code = example(render_card(network(), f'{NAME}@v1'))
    assert code.startswith('import timm\nimport timm_p2be')
    assert "timm.create_model('hf-hub:someone/net@v1', pretrained=True)" in code
    compile(code, 'card', 'exec')
    card = render_card(table(changed(base_model='timm/net@v2')), f'{NAME}@v1')
    assert metadata(card)['pipeline_tag'] == 'image-feature-extraction'
    assert metadata(card)['base_model'] == 'timm/net'
    code = example(card)
    assert code.startswith('import timm\nimport timm_p2be')
    assert "timm.create_model('wrn10_2_p2be', embedding='someone/net@v1', freeze_embedding=True)" in code
    assert "timm_p2be.PixelEmbedding.from_pretrained('someone/net@v1')" in code
    compile(code, 'card', 'exec')
    fixed = render_card(table(None, encoding='onehot'), NAME)
    assert 'create_model' not in fixed  # models build their own
    assert 'from_pretrained' in example(fixed)
    config = network(architecture='encoded') | {'model_args': {'backbone': 'resnet18'}}
    assert '`encoded` over `resnet18`' in render_card(config, NAME)
    assert "'local-dir:path/to/this/folder'" in example(render_card(network()))  # off the Hub
    assert metadata(render_card(table()))['model-index'][0]['name'] == 'P2BE table'


def test_an_error_on_training_images_is_no_result() -> None:
    """Nor is any where the data set has no id on the Hub, which its index asks for."""
    card = render_card(table(changed(dataset_split='test')))
    assert 'test, the training images | 8.40' in card
    assert 'says nothing about others' in sections(card)['Limits']
    names = [metric['name'] for metric in metadata(card)['model-index'][0]['results'][0]['metrics']]
    assert not [name for name in names if 'Clean' in name]
    assert 'model-index' not in metadata(render_card(table(changed(dataset_id=None))))


def test_limits() -> None:
    limits = sections(render_card(network(), NAME))['Limits']
    assert 'Trained for 15 epochs, fewer than the paper' in limits
    assert 'The data: compressed once' in limits
    untested = changed(results_attacks=None, epochs=200)
    limits = sections(render_card(network(untested), NAME))['Limits']
    assert 'epochs' not in limits
    assert 'Not tested against attacks; no adversarial robustness is claimed.' in limits


def test_attacks_say_what_follows() -> None:
    attacks = [
        {'name': 'a', 'eps': 8, 'images': 20, 'accuracy': 30.0, 'low': 12.5, 'high': 54.25, 'weights': 'as published'},
        {'name': 'b', 'eps': 2, 'images': 20, 'accuracy': 5.0, 'low': 'no number', 'high': None},
    ]
    text = sections(render_card(network(changed(results_attacks=attacks)), NAME))['Attacks']
    assert '| `a` | `8` | `20` | 30.00 | 12.50 to 54.25 |' in text
    assert '| `b` | `2` | `20` | 5.00 |  |' in text
    assert 'Measured on the weights as published. The strongest leaves 5.00 % of the images right' in text
    assert text.endswith('No adversarial robustness is claimed.')


HOSTILE = [
    '<script>alert(1)</script>',
    '[click](https://example.org) ![pixel](https://example.org/a.png)',
    '`code` | **bold** | _cell_ $$x$$ ~~gone~~',
    '# heading',
    '--- ',
    '```python',
    '\\` \\| \\<b>',
    "': !!python/object/apply:os.system ['true']",
    '{{ 7 * 7 }} %}',
    '&lt;b&gt; <!-- comment -->',
    '| --- | --- |',
    'a' * 1000,
]
TEXTS = st.text(st.characters(codec='utf-8'), max_size=80).filter(str.isprintable) | st.sampled_from(HOSTILE)


def _with_text(text: str) -> str:
    flags = {text: text, 'other': [text, {text: text}]}
    provenance = changed(dataset_note=text, dataset_name=text, dataset_split=text, reduction='mean', flags=flags)
    provenance['recipe'] = text.replace('/', '').replace('\\', '') or None
    provenance['results']['clean'] |= {'split': text, 'weights': text}
    provenance['results']['corruptions'] |= {'label': text, 'weights': text}
    provenance['results']['attacks'][0] |= {'name': text, 'weights': text}
    return render_card(network(provenance), NAME)


def _is_inert(line: str) -> bool:
    """Return whether no character of Markdown or HTML is left outside code and escapes."""
    line = re.sub(r'`[\w .,:+=/@()\[\]{}"\'%-]+`', '', line)
    line = re.sub(r'\\[\\`*_\[\]|~$!]|&(amp|lt|gt);', '', line)
    return not set(line) & set('<>&`*_[]~$!\\')


@settings(max_examples=25, deadline=None)
@given(TEXTS)
def test_any_text_stays_text(text: str) -> None:
    card = _with_text(text)
    data, shown = metadata(card), sections(card)
    (result,) = data['model-index'][0]['results']
    assert result['dataset']['name'] == (text or 'unknown')
    assert result['metrics'][-1]['name'] == f'Accuracy under {text}, eps 8/255, %'
    assert data['license'] == 'apache-2.0'
    plain = sections(_with_text('plain'))
    assert shown.keys() == plain.keys()
    for name in ('Results', 'Attacks', 'Limits'):
        lines, expected = shown[name].splitlines(), plain[name].splitlines()
        if text.strip():
            assert len(lines) == len(expected)
        assert all(map(_is_inert, lines)), lines
        rows = [line for line in lines if line.startswith('|')]
        assert len({len(re.findall(r'(?<!\\)(?:\\\\)*\|', row)) for row in rows}) <= 1
    for name in ('Use', 'Integrity', 'Citation'):
        assert shown[name] == plain[name]
    assert all(_is_inert(line) for line in shown['Training'].splitlines() if not re.match('</?details>', line))


@pytest.mark.parametrize(
    ('config', 'name', 'message'),
    [
        (network(architecture='wrn`; import os'), NAME, 'Got the architecture'),
        (network() | {'model_args': {'backbone': 'a b'}}, NAME, 'Got the architecture'),
        (network(), "x'); import os; ('", 'no id of the Hub'),
        (network(), 'a--b/c', 'no id of the Hub'),
        (network(changed(dataset_id='a/b/c')), NAME, 'no id of the Hub'),
        (network(changed(base_model='a/b c')), NAME, 'no id of the Hub'),
        (network(changed(dataset_note='two\nlines')), NAME, 'provenance.dataset: note'),
    ],
)
def test_malformed_configs_are_refused(config: dict[str, Any], name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        render_card(config, name)


@pytest.mark.parametrize(('unlike', 'hardly'), [(818, True), (820, False)])
def test_a_table_that_is_hardly_more_than_the_thermometer_says_so(unlike: int, hardly: bool) -> None:
    codes = {'distinct': 64, 'bits': 16384, 'unlike_thermometer': unlike}
    for text in (
        render_card(table(changed(results_codes=codes))),
        render_card(network(changed(results_codes=codes)), NAME),
    ):
        assert ('hardly more than the thermometer code' in sections(text)['Limits']) is hardly
        measured = next(part for head, part in sections(text).items() if head.startswith('Results'))
        assert f'bits unlike the thermometer code | `{unlike}` of `16384`' in measured
