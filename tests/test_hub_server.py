"""The Hub of the tests, asked by the real client."""

from pathlib import Path

import huggingface_hub
import pytest
from hub_server import HubServer
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

NAME = 'someone/table'
WEIGHTS = bytes(range(256)) * 40
CARD = b'---\nlibrary_name: timm-p2be\nlicense: apache-2.0\ntags:\n- p2be\n---\n# A table\n'
FILES = {'model.safetensors': WEIGHTS, 'config.json': b'{}', 'README.md': CARD}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    where = tmp_path / 'folder'
    where.mkdir()
    for name, content in FILES.items():
        (where / name).write_bytes(content)
    return where


def test_client_is_pointed_here_and_nowhere_else(hub: HubServer) -> None:
    assert huggingface_hub.constants.ENDPOINT == hub.url
    assert HfApi().whoami()['name'] == hub.user
    assert hub.requests == [('GET', '/api/whoami-v2')]


def test_folder_is_uploaded_as_one_commit_and_comes_back(hub: HubServer, folder: Path) -> None:
    api = HfApi()
    assert api.create_repo(NAME, exist_ok=True).repo_id == NAME
    first = hub.repos[NAME].head.sha
    commit = api.upload_folder(repo_id=NAME, folder_path=folder, commit_message='a table')
    assert hub.repos[NAME].head.sha == commit.oid
    assert hub.repos[NAME].head.parent == first
    assert [c.title for c in api.list_repo_commits(NAME)] == ['a table', 'initial commit']
    assert hub.count('POST .*/commit/main') == 1
    assert hub.count('PUT /lfs/') == 1
    snapshot = Path(snapshot_download(NAME, revision=commit.oid))
    assert {name: (snapshot / name).read_bytes() for name in FILES} == FILES


def test_same_content_twice_makes_no_commit(hub: HubServer, folder: Path) -> None:
    api = HfApi()
    api.create_repo(NAME)
    head = api.upload_folder(repo_id=NAME, folder_path=folder).oid
    assert api.upload_folder(repo_id=NAME, folder_path=folder).oid == head
    assert hub.count('PUT /lfs/') == 1
    assert hub.count('POST .*/commit/main') == 1


def test_commit_on_an_old_parent_is_refused_and_changes_nothing(hub: HubServer) -> None:
    old = hub.put(NAME, FILES)
    head = hub.put(NAME, {'config.json': b'{"a": 1}'})
    operations = [CommitOperationAdd('config.json', b'{"b": 1}')]
    with pytest.raises(HfHubHTTPError, match='412'):
        HfApi().create_commit(NAME, operations, commit_message='late', parent_commit=old)
    assert hub.repos[NAME].head.sha == head


def test_commit_of_a_large_file_that_was_not_uploaded_changes_nothing(hub: HubServer, folder: Path) -> None:
    hub.put(NAME, {'config.json': b'{}'})
    head = hub.repos[NAME].head.sha
    hub.fail('PUT /lfs/', 403)
    with pytest.raises(RuntimeError, match='Error while uploading'):  # the client wraps it
        HfApi().upload_folder(repo_id=NAME, folder_path=folder)
    assert hub.repos[NAME].head.sha == head


def test_existing_repository(hub: HubServer) -> None:
    HfApi().create_repo(NAME, private=True)
    assert HfApi().create_repo(NAME, exist_ok=True).repo_id == NAME
    with pytest.raises(HfHubHTTPError, match='409'):
        HfApi().create_repo(NAME)
    assert HfApi().model_info(NAME).private is True
    HfApi().delete_repo(NAME)
    assert not hub.repos


def test_tags(hub: HubServer) -> None:
    api, first = HfApi(), hub.put(NAME, {'config.json': b'1'})
    api.create_tag(NAME, tag='v1')
    second = hub.put(NAME, {'config.json': b'2'}, tag='v2')
    api.create_tag(NAME, tag='v1', exist_ok=True)
    assert {ref.name: ref.target_commit for ref in api.list_repo_refs(NAME).tags} == {'v1': first, 'v2': second}
    assert api.list_repo_refs(NAME).branches[0].target_commit == second
    for revision, content in (('v1', b'1'), ('v2', b'2'), (first, b'1'), ('main', b'2')):
        assert Path(hf_hub_download(NAME, 'config.json', revision=revision)).read_bytes() == content
    api.delete_tag(NAME, tag='v1')
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(NAME, tag='v1')


def test_model_info_tells_sizes_card_and_date(hub: HubServer) -> None:
    sha = hub.put(NAME, FILES, tag='v1')
    info = HfApi().model_info(NAME, revision='v1', files_metadata=True)
    assert (info.sha, info.author, info.library_name, info.private) == (sha, 'someone', 'timm-p2be', False)
    assert info.last_modified is not None
    assert info.card_data is not None
    assert info.card_data.license == 'apache-2.0'
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    assert sizes['model.safetensors'] == len(WEIGHTS)
    assert HfApi().model_info(NAME).siblings[0].size is None  # type: ignore[index]


def test_listing_a_namespace(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put(NAME, FILES)
    hub.put('someone/other', {'config.json': b'{}'})
    hub.put('someone/hidden', FILES, private=True)
    hub.put('somebody-else/table', FILES)

    def names(**query: object) -> list[str]:
        return [info.id for info in HfApi().list_models(**query)]

    assert names(author='someone') == ['someone/hidden', 'someone/other', NAME]
    assert names(author='someone', filter='p2be') == ['someone/hidden', NAME]
    assert names(author='someone', filter=['timm-p2be', 'onnx']) == []
    assert names(search='table', limit=1) == ['somebody-else/table']
    (info,) = HfApi().list_models(author='somebody-else', full=True, cardData=True)
    assert info.sha == hub.repos['somebody-else/table'].head.sha
    assert info.card_data is not None
    monkeypatch.delenv('HF_TOKEN')
    assert names(author='someone') == ['someone/other', NAME]


def test_card_is_validated(hub: HubServer) -> None:
    hub.put(NAME, FILES)
    ModelCard(CARD.decode()).push_to_hub(NAME, commit_message='same card')
    with pytest.raises(ValueError, match=r'Invalid metadata|no mapping|mapping values'):
        HfApi().upload_file(path_or_fileobj=b'---\na: b: c\n---\n', path_in_repo='README.md', repo_id=NAME)


def test_private_and_gated_repositories(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put(NAME, FILES, private=True)
    hub.put('someone/gated', FILES, gated=True)
    assert hf_hub_download(NAME, 'config.json')
    with pytest.raises(HfHubHTTPError, match='401'):
        HfApi(token='hf_wrong').model_info(NAME)
    monkeypatch.delenv('HF_TOKEN')
    with pytest.raises(RepositoryNotFoundError, match='401'):
        HfApi().model_info(NAME)
    with pytest.raises(GatedRepoError):
        hf_hub_download('someone/gated', 'config.json')
    with pytest.raises(HfHubHTTPError, match='401'):
        HfApi().create_repo('someone/new')


def test_what_is_missing(hub: HubServer) -> None:
    hub.put(NAME, FILES)
    with pytest.raises(RepositoryNotFoundError, match='404'):
        HfApi().model_info('someone/nothing')
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(NAME, 'config.json', revision='v9')
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(NAME, 'weights.bin')


def test_faults(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr('time.sleep', waits.append)
    hub.put(NAME, FILES)
    hub.fail('GET /api/models/', 503, times=1, headers={'Retry-After': '7'})
    with pytest.raises(HfHubHTTPError) as error:
        HfApi().model_info(NAME)
    assert error.value.response.headers['Retry-After'] == '7'
    assert HfApi().model_info(NAME).id == NAME
    hub.truncate('GET .*model.safetensors', 1000, times=1)
    assert Path(hf_hub_download(NAME, 'model.safetensors')).read_bytes() == WEIGHTS  # resumed
    assert hub.count('GET .*model.safetensors') == 2
    hub.slow('GET /api/models/', 30)
    with pytest.raises(Exception, match='timed out'):
        HfApi().model_info(NAME, timeout=0.1)
    hub.heal()
    assert HfApi().model_info(NAME).id == NAME
    assert waits == [1]


def test_cached_file_is_not_fetched_twice(hub: HubServer) -> None:
    sha = hub.put(NAME, FILES)
    for _ in range(2):
        hf_hub_download(NAME, 'model.safetensors', revision=sha)
    assert hub.count('resolve') == 2  # HEAD and GET of the first time


def test_two_servers_are_apart(hub: HubServer, tmp_path: Path) -> None:
    with HubServer() as other:
        other.put(NAME, FILES)
        assert other.url != hub.url
        assert HfApi(endpoint=other.url).model_info(NAME).id == NAME
        assert other.environment(tmp_path)['HF_ENDPOINT'] == other.url
    assert not hub.requests
