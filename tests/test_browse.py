"""`timm-p2be list`: shipped weights, the cache of the real client, and a Hub on loopback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import pytest
import timm
from hub_server import HubServer

from timm_p2be.hub.fetch import fetch
from timm_p2be.hub.pulling import pull
from timm_p2be.hub.repository import FILES
from timm_p2be.models.tables import TABLES
from timm_p2be.models.weights import shipped_weights

Said = Callable[..., str]
Listed = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def listed(printed: Said) -> Listed:
    return lambda *args: json.loads(printed('list', *args, '--json'))


@pytest.fixture
def namespace(hub: HubServer, tmp_path: Path) -> dict[str, str]:
    """Five repositories of tester's, and others' that are not to be listed; name -> commit."""
    files = published.model(tmp_path / 'net')
    return {
        'net': hub.put('tester/net', files, tag='v1'),
        'rgb': hub.put('tester/rgb', published.model(tmp_path / 'rgb', name='wrn10_2', provenance=None)),
        'table': hub.put('tester/table', published.embedding(tmp_path / 'table'), tag='v2'),
        'newer': hub.put('tester/newer', published.model(tmp_path / 'newer', format_version=9)),
        'bare': hub.put('tester/bare', {'README.md': published.CARD}),
        'untagged': hub.put('tester/untagged', {**files, 'README.md': b'# no tag'}),
        'other': hub.put('other/net', files),
    }


def test_remote(hub, namespace, printed, listed):
    entries = {entry['name']: entry for entry in listed('--remote', 'tester')}
    assert list(entries) == ['tester/bare', 'tester/net', 'tester/newer', 'tester/rgb', 'tester/table']
    net, rgb, table = (entries[f'tester/{name}'] for name in ('net', 'rgb', 'table'))
    assert net | {'tags': []} == {
        'where': 'hub',
        'name': 'tester/net',
        'contents': {
            'kind': 'model',
            'architecture': 'wrn10_2_p2be',
            'encoding': 'p2be',
            'num_bits': 8,
            'num_classes': 10,
            'weights_sha256': hub.repos['tester/net'].head.files['model.safetensors'].sha256,
            'codes_sha256': None,
            'provenance': published.PROVENANCE,
            'is_ours': True,
        },
        'commit': namespace['net'],
        'revisions': [],
        'size': None,
        'tags': [],
        'problem': None,
    }
    assert {'timm-p2be', 'p2be'} <= set(net['tags'])
    assert rgb['contents']['encoding'] == 'rgb'
    assert rgb['contents']['num_bits'] is rgb['contents']['provenance'] is None
    assert (table['contents']['kind'], table['contents']['num_bits'], table['commit']) == (
        'embedding',
        16,
        namespace['table'],
    )
    assert "no file 'config.json'" in entries['tester/bare']['problem']
    assert entries['tester/bare']['contents'] is None
    assert entries['tester/newer']['problem'].startswith('config.json: timm_p2be: format_version is 9')
    assert not hub.count('safetensors'), 'browsing downloads no weights'

    lines = printed('list', '--remote', 'tester').splitlines()
    assert lines[0].split() == 'WHERE NAME KIND ENCODING M DATA SET ERROR REVISION TAGS'.split()
    row = next(line for line in lines if 'tester/net ' in line)
    assert row.split()[:7] == ['hub', 'tester/net', 'model', 'p2be', '8', 'CIFAR-10', '8.40']
    for head in (' M ', ' ERROR '):  # figures are aligned at the right
        end = lines[0].index(head) + len(head) - 1
        assert row[end - 1].isdigit()
        assert row[end] == ' '


def test_private_repositories_need_the_token(hub, tmp_path, printed, listed, monkeypatch):
    hub.put('tester/secret', published.embedding(tmp_path / 'a'), private=True)
    assert [entry['name'] for entry in listed('--remote', 'tester')] == ['tester/secret']
    monkeypatch.delenv('HF_TOKEN')
    assert listed('--remote', 'tester') == []
    assert 'Nothing found: tester has no repository with the tag timm-p2be' in printed('list', '--remote', 'tester')


def test_a_hub_that_does_not_answer(hub, refused, monkeypatch):
    hub.fail('.', 200, body=b'<html>')
    assert 'does not answer as a Hub' in refused('list', '--remote', 'tester')
    hub.heal()
    hub.fail('/api/models', 429)
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # the client tries again five times
    assert 'Too many requests' in refused('list', '--remote', 'tester')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    assert 'HF_HUB_OFFLINE=1' in refused('list', '--remote', 'tester')
    assert "Got the namespace '../x'" in refused('list', '--remote', '../x')


def test_the_cache(hub, namespace, tmp_path, printed, listed):
    pull('tester/net@v1')
    pull('tester/table')
    newer = hub.put('tester/table', published.embedding(tmp_path / 'b', seed=1))
    pull(f'tester/table@{newer}')
    fetch('tester/untagged', FILES)  # a tag is a matter of the card; what it holds is ours
    hub.put('tester/strange', {'config.json': b'{"architecture": "bert"}', 'model.safetensors': b'x'})
    fetch('tester/strange', FILES)
    listed('--remote', 'tester')  # leaves a config.json of each in the cache
    cached = [entry for entry in listed() if entry['where'] == 'cache']
    assert {(entry['name'], entry['commit']) for entry in cached} == {
        ('tester/net', namespace['net']),
        ('tester/table', namespace['table']),
        ('tester/table', newer),
        ('tester/untagged', namespace['untagged']),
    }
    net = next(entry for entry in cached if entry['name'] == 'tester/net')
    assert net['revisions'] == ['v1']
    assert net['size'] > 1_000_000
    assert net['contents']['provenance'] == published.PROVENANCE
    hub.fail('.', 503)
    out = printed('list')
    assert f'{net["size"] / 1e6:.2f} MB' in out
    assert f'{namespace["net"][:12]} v1' in out


def test_what_is_shipped_and_an_empty_cache(hub, listed, printed):
    entries = listed()
    tables = [entry for entry in entries if entry['contents']['kind'] == 'embedding']
    assert [entry['name'] for entry in tables] == [f'*_p2be.{tag}' for tag in TABLES]
    assert all(timm.list_pretrained(entry['name']) and entry['size'] > 60_000 for entry in tables)
    models = [entry for entry in entries if entry not in tables]
    assert {entry['name'] for entry in models} == set(shipped_weights())
    for entry in models:
        assert entry['size'] > 1000
        assert entry['tags'] == [entry['name'].partition('.')[2]]
        assert entry['contents']['architecture'] == entry['name'].partition('.')[0]
        assert (entry['contents']['num_bits'] is None) == (entry['contents']['encoding'] == 'rgb')
    lines = printed('list').splitlines()
    assert [line.split()[-7:-3] for line in lines if ' wrn16_2_p2be.' in line] == [['13.57', '192', '50.3', '%']]


def test_what_strangers_write_cannot_move_the_cursor(hub, tmp_path, printed):
    card = '---\ntags:\n- timm-p2be\n- "\\e[2Jgone"\n---\n'
    hub.put('tester/table', published.embedding(tmp_path / 'a') | {'README.md': card.encode()})
    out = printed('list', '--remote', 'tester')
    assert '?[2Jgone' in out
    assert '\x1b' not in out
