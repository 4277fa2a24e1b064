"""Downloads and folders: what is fetched, what is refused, and what every failure says; with the real client."""

import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from forks import forked
from hub_server import HubServer
from huggingface_hub import constants
from published import contents

from timm_p2be.hub.errors import FetchError
from timm_p2be.hub.fetch import fetch, resolved_commit, split_revision

NAME = 'someone/table'
WEIGHTS = bytes(range(256)) * 400
LIMIT = len(WEIGHTS) - 1
FILES = {'config.json': b'{"a": 1}', 'model.safetensors': WEIGHTS, 'README.md': b'# A table\n'}
WANTED = ('config.json', 'model.safetensors')


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's pauses between its attempts, noted instead of waited for."""
    noted: list[float] = []
    monkeypatch.setattr('time.sleep', noted.append)
    return noted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A local folder with FILES."""
    where = tmp_path / 'folder'
    where.mkdir()
    for name, content in FILES.items():
        (where / name).write_bytes(content)
    return where


def assert_nothing_usable(revision: str | None = None) -> None:
    with pytest.raises(FetchError, match='not completely'):
        fetch(NAME, WANTED, revision, local_files_only=True)


NAMES = ['', 'name', 'a/b/c', '../name', 'org/a..b', 'org/na me', 'org/name\n', '/etc/passwd', 'hf://org/name']
REVISIONS = ['', 'v1@v2', '../../x', '/main', 'a b', 'x.lock', 'a/.b', 'v1\n', 'a' * 255]


@pytest.mark.parametrize('name', NAMES + [f'org/name@{revision}' for revision in REVISIONS])
def test_malformed_names_are_refused(name):
    with pytest.raises(FetchError, match=r"^Got .*(write 'org/name'|name a branch)"):
        split_revision(name)


@pytest.mark.parametrize(('name', 'revision'), [('my_org/a.b-c', None), ('o/n', 'refs/pr/1'), ('o/n', 'v1.0+cpu')])
def test_well_formed_names(name, revision):
    assert split_revision(f'{name}@{revision}' if revision else name) == (name, revision)


def test_files_come_from_one_commit_into_one_folder(hub):
    first = hub.put(NAME, FILES, tag='v1')
    second = hub.put(NAME, {'config.json': b'{"a": 2}'})
    where = fetch(NAME, WANTED)
    assert resolved_commit(where) == second
    assert contents(where) == {'config.json': b'{"a": 2}', 'model.safetensors': WEIGHTS}
    for revision in ('v1', first):
        assert resolved_commit(fetch(f'{NAME}@{revision}', WANTED)) == first
        assert (fetch(NAME, WANTED, revision) / 'config.json').read_bytes() == FILES['config.json']
    assert resolved_commit(fetch(f'hf-hub:{NAME}@v1', WANTED, 'v1')) == first
    with pytest.raises(FetchError, match=r'two revisions.*leave one of them out'):
        fetch(f'{NAME}@v1', WANTED, 'main')


def test_nothing_is_fetched_twice(hub):
    sha = hub.put(NAME, FILES, tag='v1')
    fetch(NAME, WANTED)
    assert hub.count('/resolve/') == 4  # HEAD and GET of two files
    fetch(f'{NAME}@v1', WANTED)
    assert hub.count('/resolve/') == 4
    asked = len(hub.requests)
    fetch(f'{NAME}@{sha}', WANTED)
    assert len(hub.requests) == asked  # a commit cannot change: nothing is asked
    fetch(NAME, WANTED, force_download=True)
    assert hub.count('GET .*model.safetensors') == 2


def test_optional_files(hub, waits):
    sha = hub.put(NAME, FILES)
    found = contents(fetch(NAME, WANTED[:1], optional=('README.md', 'results.json')))
    assert sorted(found) == ['README.md', 'config.json']
    assert not hub.count('results.json')
    hub.fail('model.safetensors', 503)
    with pytest.raises(FetchError, match='503'):  # it is not left out
        fetch(NAME, WANTED[:1], sha, optional=WANTED[1:])


REFUSALS: list[tuple[int, dict[str, str], str]] = [
    (401, {}, r'refused .* \(401\).*private.*`hf auth login` or set HF_TOKEN'),
    (403, {'X-Error-Code': 'GatedRepo'}, r'is gated \(403\).* terms .*HF_TOKEN'),
    (404, {'X-Error-Code': 'RepoNotFound'}, r'no someone/table .* \(404\).*spelling'),
    (429, {'Retry-After': '40'}, r'\(429\). Wait 40 seconds'),
    (429, {'RateLimit': '"api";r=0;t=55'}, r'\(429\). Wait 55 seconds'),
    (503, {}, r'out of order .*\(503\).*status'),
]


@pytest.mark.parametrize('where', ['GET /api/models/', '(HEAD|GET) .*/resolve/.*model.safetensors'])
def test_refusals_are_clear_and_leave_nothing(hub, waits, where):
    sha = hub.put(NAME, FILES)
    for status, headers, message in REFUSALS:
        hub.fail(where, status, headers=headers)
        with pytest.raises(FetchError, match=message) as error:
            fetch(NAME, WANTED)
        assert hub.token not in ''.join(traceback.format_exception(error.value))
        assert_nothing_usable()
        assert_nothing_usable(sha)
        if where.startswith('GET /api'):
            assert not waits  # nobody waits before the first answer
        hub.heal()
    assert contents(fetch(NAME, WANTED)) == {name: FILES[name] for name in WANTED}


def test_what_does_not_exist(hub, monkeypatch):
    hub.put(NAME, FILES, private=True)
    for source, message in (('someone/nothing', r'no someone/nothing on .* \(404\)'), (f'{NAME}@v9', 'no such rev')):
        with pytest.raises(FetchError, match=message):
            fetch(source, WANTED)
    with pytest.raises(FetchError, match=r"no file 'x.json' \(404\). It has: .*README.md, config.json, model"):
        fetch(NAME, ['config.json', 'x.json'])
    assert not hub.count('resolve')
    monkeypatch.delenv('HF_TOKEN')
    with pytest.raises(FetchError, match=r'does not exist, or it is private.*`hf auth login`'):
        fetch('someone/nothing', WANTED)
    assert fetch(NAME, WANTED, token=hub.token)


@pytest.mark.parametrize('token', ['hf_secret\nX-Header: 1', 'hf_secrét'])
def test_impossible_tokens_are_refused_and_not_shown(hub, token):
    with pytest.raises(FetchError, match=r'The token contains .*; log in') as error:
        fetch(NAME, WANTED, token=token)
    assert 'hf_sec' not in str(error.value)
    assert not hub.requests


@pytest.mark.parametrize(
    ('limit', 'match', 'after'),
    [('HF_HUB_ETAG_TIMEOUT', 'GET /api/models/', None), ('HF_HUB_DOWNLOAD_TIMEOUT', 'GET .*model.safetensors', 1000)],
)
def test_timeouts(hub, waits, monkeypatch, limit, match, after):
    hub.put(NAME, FILES)
    hub.slow(match, 30, after=after)
    monkeypatch.setattr(constants, limit, 0.5)
    with pytest.raises(FetchError, match='did not answer in time for someone/table; try again'):
        fetch(NAME, WANTED)
    assert hub.count(match)
    assert_nothing_usable()


def test_what_is_no_hub(hub, monkeypatch):
    hub.fail('GET /api/models/', 200, body=b'<html>Please log in</html>')
    with pytest.raises(FetchError, match=r'does not answer as a Hub.*Check HF_ENDPOINT'):
        fetch(NAME, WANTED)
    with HubServer() as gone:
        monkeypatch.setattr(constants, 'ENDPOINT', gone.url)
    with pytest.raises(FetchError, match=r'cannot be reached for someone/table .*HF_ENDPOINT, and try again'):
        fetch(NAME, WANTED)


def test_offline(hub, monkeypatch):
    hub.put(NAME, FILES, tag='v1')
    with pytest.raises(FetchError, match=r'Run `timm-p2be pull someone/table` while online, or use a local folder'):
        fetch(NAME, WANTED, local_files_only=True)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(FetchError, match=r'HF_HUB_OFFLINE=1.*Run `timm-p2be pull someone/table@v1` while online'):
        fetch(f'{NAME}@v1', WANTED)
    assert not hub.requests
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    where = fetch(f'{NAME}@v1', WANTED)
    count = len(hub.requests)
    assert fetch(f'{NAME}@v1', WANTED, local_files_only=True) == where
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert fetch(f'{NAME}@v1', WANTED) == where
    assert fetch(NAME, WANTED, where.name) == where
    with pytest.raises(FetchError, match='cannot be downloaded again while offline'):
        fetch(f'{NAME}@v1', WANTED, force_download=True)
    with pytest.raises(FetchError, match='or not completely'):
        fetch(f'{NAME}@v1', [*WANTED, 'README.md'])
    assert len(hub.requests) == count


def test_a_hub_out_of_order_leaves_the_cache(hub, monkeypatch, caplog):
    hub.put(NAME, FILES)
    where = fetch(NAME, WANTED)
    hub.put(NAME, {'config.json': b'new'})
    hub.fail('GET /api/models/', 503)
    assert fetch(NAME, WANTED) == where
    assert '(503). Try again' in caplog.text
    assert f'Using the copy in the cache, commit {where.name}.' in caplog.text
    with pytest.raises(FetchError, match='503'):
        fetch(NAME, WANTED, force_download=True)
    hub.heal()
    hub.fail('GET /api/models/', 404, headers={'X-Error-Code': 'RepoNotFound'})
    with pytest.raises(FetchError, match='There is no someone/table'):  # an answer is not overruled
        fetch(NAME, WANTED)


def test_cut_downloads(hub, waits):
    hub.put(NAME, FILES)
    hub.truncate('GET .*model.safetensors', 1000, times=1)
    hub.truncate('GET .*model.safetensors', 0)
    with pytest.raises(FetchError, match=r'transfer of someone/table broke off .*nothing incomplete was kept. Run it'):
        fetch(NAME, WANTED)
    assert len(waits) < 10
    assert_nothing_usable()
    hub.heal()
    hub.truncate('GET .*model.safetensors', 1000, honest=True)  # a proxy that says 1000 bytes are all
    with pytest.raises(FetchError, match=r'broke off'):
        fetch(NAME, WANTED)
    assert_nothing_usable()
    hub.heal()
    hub.truncate('GET .*model.safetensors', 1000, times=2)
    assert (fetch(NAME, WANTED) / 'model.safetensors').read_bytes() == WEIGHTS  # resumed where it broke off


def test_large_files_are_refused_before_the_download(hub, folder):
    sha = hub.put(NAME, FILES)
    message = rf'has {len(WEIGHTS)} bytes; at most {LIMIT} are accepted'
    for names, optional in ((WANTED, ()), (WANTED[:1], WANTED)):
        with pytest.raises(FetchError, match=rf"'model.safetensors' of someone/table {message}"):
            fetch(NAME, names, optional=optional, max_bytes=LIMIT)
    assert not hub.count('resolve')
    fetch(NAME, WANTED)  # as of a Hub that tells no sizes
    for source in (f'{NAME}@{sha}', folder):
        with pytest.raises(FetchError, match=message):
            fetch(source, WANTED, max_bytes=LIMIT)


def test_the_cache(hub, tmp_path):
    hub.put(NAME, FILES)
    (tmp_path / 'file').touch()
    with pytest.raises(FetchError, match=r'someone/table: .*make room there, or name another cache with HF_HOME'):
        fetch(NAME, WANTED, cache_dir=tmp_path / 'file')
    assert fetch(NAME, WANTED, cache_dir=tmp_path / 'mine').is_relative_to(tmp_path / 'mine')
    assert fetch(NAME, WANTED, cache_dir=str(tmp_path / 'mine'), local_files_only=True)
    assert_nothing_usable()


def test_a_killed_download_is_never_taken_for_whole(hub, tmp_path):
    weights = bytes(22 * 2**20)  # the client writes pieces of 10 MiB
    sha = hub.put(NAME, {**FILES, 'model.safetensors': weights})
    hub.slow('GET .*model.safetensors', 60, after=12 * 2**20, times=1)
    with forked(lambda told: fetch(NAME, WANTED, cache_dir=tmp_path / 'hub')) as (process, _):
        while not any(path.stat().st_size > 2**20 for path in tmp_path.glob('hub/*/blobs/*.incomplete')):
            assert process.is_alive()
            time.sleep(0.01)
    for revision in (None, sha):
        with pytest.raises(FetchError, match='not completely'):
            fetch(NAME, WANTED, revision, cache_dir=tmp_path / 'hub', local_files_only=True)
    where = fetch(NAME, WANTED, cache_dir=tmp_path / 'hub')
    assert contents(where) == {'config.json': FILES['config.json'], 'model.safetensors': weights}


def test_local_folders(hub, folder, monkeypatch):
    for source in (folder, str(folder), f'local-dir:{folder}'):
        assert fetch(source, WANTED, optional=['results.json']) == folder
    assert resolved_commit(folder) is None
    monkeypatch.chdir(folder.parent)
    assert fetch('folder', WANTED) == Path('folder')
    monkeypatch.chdir(folder)
    assert fetch('.', WANTED) == Path()
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (folder, {'filenames': ['x.json']}, r"has no file 'x.json'. Is it the right folder"),
        (folder, {'revision': 'v1'}, r'folders have no revisions, leave it out'),
        ('local-dir:nowhere/at/all', {}, 'There is no folder nowhere.*check the path'),
        ('./nowhere', {}, 'no folder here and no repository'),
        ('', {}, r"write the path of a folder, or 'org/name'"),
        ('local-dir:', {}, r"write the path of a folder, or 'org/name'"),
    ]
    for source, options, message in refused:
        with pytest.raises(FetchError, match=message):
            fetch(source, **{'filenames': WANTED, **options})
    assert not hub.requests


def test_a_folder_goes_before_a_repository_if_it_has_a_config(hub, folder, monkeypatch):
    sha = hub.put(NAME, FILES)
    monkeypatch.chdir(folder.parent)
    Path('someone').mkdir()
    folder.rename(NAME)
    assert resolved_commit(fetch(NAME, WANTED)) is None
    assert resolved_commit(fetch(f'hf-hub:{NAME}', WANTED)) == sha
    (Path(NAME) / 'config.json').unlink()
    assert resolved_commit(fetch(NAME, WANTED)) == sha
    with pytest.raises(FetchError, match=r"has no file 'config.json'"):
        fetch(f'local-dir:{NAME}', WANTED)


def test_links_that_leave_a_folder_are_refused(hub, folder, tmp_path):
    secret = tmp_path / 'secret'
    secret.write_bytes(b'secret')
    config = folder / 'config.json'
    config.unlink()
    config.symlink_to(secret)
    with pytest.raises(FetchError, match='link that leads out of its folder'):
        fetch(folder, WANTED)
    config.unlink()
    config.symlink_to('README.md')  # stays inside
    assert fetch(folder, WANTED)
    config.unlink()
    config.mkdir()
    with pytest.raises(FetchError, match='is no regular file'):
        fetch(folder, WANTED)
    sha = hub.put(NAME, FILES)
    snapshot = fetch(NAME, WANTED)  # links to the blobs beside it, and to nothing else
    (tmp_path / 'alias').symlink_to(snapshot)
    assert fetch(tmp_path / 'alias', WANTED)
    (snapshot / 'config.json').unlink()
    (snapshot / 'config.json').symlink_to(secret)
    for source in (snapshot, NAME, f'{NAME}@{sha}'):
        with pytest.raises(FetchError, match='a link that leads out of its folder'):
            fetch(source, WANTED)
