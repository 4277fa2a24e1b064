"""`timm-p2be list`: shipped weights, the cache of the real client, and a Hub on loopback."""

import json
from pathlib import Path
from typing import Any

import published
import pytest
import timm
from hub_server import HubServer
from huggingface_hub import snapshot_download

from timm_p2be.cli import main
from timm_p2be.commands import list as list_command
from timm_p2be.hub import browsing
from timm_p2be.hub.pulling import pull


def _listed(capsys: pytest.CaptureFixture[str], *args: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(['list', *args, '--json']) == 0
    return json.loads(capsys.readouterr().out)


def _refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(['list', *args])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert not said.out
    assert HubServer.token not in said.err
    return said.err


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


def test_remote(hub: HubServer, namespace: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    entries = {entry['name']: entry for entry in _listed(capsys, '--remote', 'tester')}
    assert list(entries) == ['tester/bare', 'tester/net', 'tester/newer', 'tester/rgb', 'tester/table']
    net, rgb, table = (entries[f'tester/{name}'] for name in ('net', 'rgb', 'table'))
    assert net | {'tags': []} == {
        'where': 'hub',
        'name': 'tester/net',
        'kind': 'model',
        'encoding': 'p2be',
        'num_bits': 8,
        'dataset': 'CIFAR-10',
        'clean_error': 8.4,
        'commit': namespace['net'],
        'revisions': [],
        'size': None,
        'tags': [],
        'problem': None,
    }
    assert {'timm-p2be', 'p2be'} <= set(net['tags'])
    assert (rgb['encoding'], rgb['num_bits'], rgb['dataset']) == ('rgb', None, None)
    assert (table['kind'], table['num_bits'], table['commit']) == ('embedding', 16, namespace['table'])
    assert "no file 'config.json'" in entries['tester/bare']['problem']
    assert entries['tester/newer']['problem'].startswith('config.json has format version 9')
    assert not hub.count('safetensors'), 'browsing downloads no weights'

    assert main(['list', '--remote', 'tester']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == 'WHERE NAME KIND ENCODING M DATA SET ERROR REVISION TAGS'.split()
    row = next(line for line in lines if 'tester/net ' in line)
    assert row.split()[:7] == ['hub', 'tester/net', 'model', 'p2be', '8', 'CIFAR-10', '8.40']
    for head in (' M ', ' ERROR '):  # figures are aligned at the right
        end = lines[0].index(head) + len(head) - 1
        assert row[end - 1].isdigit()
        assert row[end] == ' '


def test_remote_stops_at_its_bound(
    namespace: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browsing, 'MAX_REMOTE', 2)
    assert len(_listed(capsys, '--remote', 'tester')) == 2


def test_private_repositories_need_the_token(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put('tester/secret', published.embedding(tmp_path / 'a'), private=True)
    assert [entry['name'] for entry in _listed(capsys, '--remote', 'tester')] == ['tester/secret']
    monkeypatch.delenv('HF_TOKEN')
    assert main(['list', '--remote', 'tester']) == 0
    assert 'Nothing found: tester has no repository with the tag timm-p2be' in capsys.readouterr().out


def test_remote_without_anything(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['list', '--remote', 'nobody']) == 0
    assert 'Check the spelling' in capsys.readouterr().out
    assert _listed(capsys, '--remote', 'nobody') == []


@pytest.mark.parametrize(
    ('status', 'said'), [(401, 'hf auth login'), (404, '404'), (429, 'Too many requests'), (503, 'out of order')]
)
def test_refusals_of_the_hub(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, status: int, said: str
) -> None:
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # the client tries again five times
    hub.fail('/api/models', status)
    assert said in _refused(capsys, '--remote', 'tester')


def test_offline(hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    assert 'HF_HUB_OFFLINE=1' in _refused(capsys, '--remote', 'tester')


@pytest.mark.parametrize(
    'args', [['--remote', '../x'], ['--remote', 'org/name'], ['--remote', ''], ['--remote'], ['x']]
)
def test_misuse(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert 'timm-p2be' in _refused(capsys, *args)


def test_the_cache(
    hub: HubServer, namespace: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pull('tester/net@v1')
    pull('tester/table')
    newer = hub.put('tester/table', published.embedding(tmp_path / 'b', seed=1))
    pull(f'tester/table@{newer}')
    snapshot_download('tester/untagged')  # a tag is a matter of the card; what it holds is ours
    hub.put('tester/strange', {'config.json': b'{"architecture": "bert"}', 'model.safetensors': b'x'})
    snapshot_download('tester/strange')
    _listed(capsys, '--remote', 'tester')  # leaves a config.json of each in the cache
    cached = [entry for entry in _listed(capsys) if entry['where'] == 'cache']
    assert {(entry['name'], entry['commit']) for entry in cached} == {
        ('tester/net', namespace['net']),
        ('tester/table', namespace['table']),
        ('tester/table', newer),
        ('tester/untagged', namespace['untagged']),
    }
    net = next(entry for entry in cached if entry['name'] == 'tester/net')
    assert net['revisions'] == ['v1']
    assert net['size'] > 1_000_000
    assert net['clean_error'] == 8.4
    hub.fail('.', 503)
    assert main(['list']) == 0
    out = capsys.readouterr().out
    assert '1.2 MB' in out
    assert f'{namespace["net"][:12]} v1' in out


def test_nothing_at_all(hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_command, 'shipped_entries', list)
    assert main(['list']) == 0
    assert 'timm-p2be list --remote NAMESPACE' in capsys.readouterr().out
    assert _listed(capsys) == []


def test_shipped_models_are_those_of_this_package_with_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {entry.name: entry for entry in browsing.shipped_entries()}
    pretrained = set(timm.list_pretrained())
    expected = {name for name in pretrained if timm.model_entrypoint(name.split('.')[0]).__module__[:5] == 'timm_'}
    assert set(ours) == expected
    assert 'resnet18.a1_in1k' in pretrained
    for name, entry in ours.items():
        assert entry.size is not None
        assert entry.size > 1000
        assert entry.tags == (name.partition('.')[2],)
        assert (entry.num_bits is None) == (entry.encoding == 'rgb')


def test_what_strangers_write_cannot_move_the_cursor(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = '---\ntags:\n- timm-p2be\n- "\\e[2Jgone"\n---\n'
    hub.put('tester/table', published.embedding(tmp_path / 'a') | {'README.md': card.encode()})
    assert main(['list', '--remote', 'tester']) == 0
    out = capsys.readouterr().out
    assert '?[2Jgone' in out
    assert '\x1b' not in out
