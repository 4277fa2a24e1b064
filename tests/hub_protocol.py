"""What the real client asks a Hub, endpoint by endpoint, what it gets back, and what is kept: huggingface_hub 2.4."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import yaml

if TYPE_CHECKING:
    from hub_server import HubServer


class HubError(Exception):
    """An answer that is no success; the client reads X-Error-Code and X-Error-Message (utils/_http.py)."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {'X-Error-Message': message} | ({'X-Error-Code': code} if code else {})


@dataclass
class Answer:
    """A response before it is sent; a dict or list becomes JSON."""

    body: Any = b''
    status: int = 200
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class File:
    """One version of a file."""

    content: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        """The name of the file in the client's cache: SHA-256 for LFS, Git's SHA-1 otherwise."""
        git = hashlib.sha1(f'blob {len(self.content)}\0'.encode() + self.content).hexdigest()
        return self.sha256 if self.lfs else git


@dataclass(frozen=True)
class Commit:
    """All files of a repository at one time."""

    sha: str
    title: str
    files: Mapping[str, File]


@dataclass
class Repository:
    """A model repository with the branch main; commit names depend on nothing but the content and its history."""

    name: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.add_commit({'.gitattributes': File(b'*.safetensors filter=lfs\n')}, 'initial commit')

    @property
    def head(self) -> Commit:
        return [*self.commits.values()][-1]

    def add_commit(self, files: Mapping[str, File], title: str) -> Commit:
        listing = [*self.commits, title, *(f'{path} {file.etag}' for path, file in sorted(files.items()))]
        sha = hashlib.sha1('\n'.join(listing).encode()).hexdigest()
        self.commits[sha] = Commit(sha, title, dict(files))
        return self.head

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a full commit name means."""
        sha = self.head.sha if revision == 'main' else self.tags.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
        return self.commits[sha]

    def card(self, commit: Commit) -> dict[str, Any]:
        """The metadata block of README.md."""
        text = commit.files['README.md'].content.decode() if 'README.md' in commit.files else ''
        data = yaml.safe_load(text.split('---\n')[1]) if text.startswith('---\n') else {}
        return data if isinstance(data, dict) else {}


class Endpoints:
    """One request: who asks, with what, and the answer."""

    def __init__(self, hub: 'HubServer', method: str, headers: Mapping[str, str], query: dict[str, Any], body: bytes):
        self.hub, self.method, self.headers, self.query, self.body = hub, method, headers, query, body
        self.token = (headers.get('Authorization') or '').removeprefix('Bearer ') or None

    def answer(self, path: str) -> Answer:
        for method, pattern, endpoint in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.method.replace('HEAD', 'GET'):
                if self.token not in (None, self.hub.token):
                    raise HubError(401, None, 'Invalid credentials in Authorization header')
                if method != 'GET' and self.token is None and not path.startswith(('/lfs/', '/api/validate-yaml')):
                    raise HubError(401, None, 'Invalid username or password.')
                return endpoint(self, **{key: unquote(value) for key, value in match.groupdict().items()})
        raise HubError(404, None, f'this Hub has no {self.method} {path}')

    def _repo(self, name: str) -> Repository:
        """A repository that may be seen. Without a token 401 stands for 'missing' too (utils/_http.py)."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.token is None):
            raise HubError(401 if self.token is None else 404, 'RepoNotFound', 'Repository not found')
        return repo

    def _info(self, repo: Repository, commit: Commit) -> dict[str, Any]:
        """`ModelInfo` in hf_api.py; with ?blobs=true the sizes are told."""
        siblings = [{'rfilename': path} | ({'size': len(file.content)} if 'blobs' in self.query else {})
                    for path, file in sorted(commit.files.items())]  # fmt: skip
        card = repo.card(commit)
        return {
            'id': repo.name,
            'author': repo.name.split('/')[0],
            'sha': commit.sha,
            'private': repo.private,
            'tags': card.get('tags', []),
            'cardData': card,
            'siblings': siblings,
        }

    def validate_yaml(self) -> Answer:
        return Answer({'errors': [], 'warnings': []})  # refusals are faults on demand

    def create(self) -> Answer:
        payload = json.loads(self.body)
        name = f'{payload["organization"] or self.hub.user}/{payload["name"]}'
        answer = Answer({'url': f'{self.hub.url}/{name}', 'name': name})
        if name in self.hub.repos:
            return Answer({'error': 'You already created this model repo', **answer.body}, 409)
        self.hub.repos[name] = Repository(name, private=payload.get('visibility') == 'private')
        return answer

    def list_models(self) -> Answer:
        infos = [self._info(repo, repo.head) for _, repo in sorted(self.hub.repos.items())
                 if self.token is not None or not repo.private]  # fmt: skip
        found = [info for info in infos if [info['author']] == self.query['author']
                 and {*self.query.get('filter', [])} <= {*info['tags']}]  # fmt: skip
        return Answer(found[: int(self.query['limit'][0])])

    def model_info(self, repo: str, revision: str = 'main') -> Answer:
        found = self._repo(repo)
        return Answer(self._info(found, found.at(revision)))

    def refs(self, repo: str) -> Answer:
        tags = [{'name': name, 'ref': f'refs/tags/{name}', 'targetCommit': sha}
                for name, sha in self._repo(repo).tags.items()]  # fmt: skip
        return Answer({'branches': [], 'converts': [], 'tags': tags})

    def create_tag(self, repo: str, revision: str) -> Answer:
        found, tag = self._repo(repo), json.loads(self.body)['tag']
        if tag in found.tags:
            raise HubError(409, None, f'Tag reference exists already: {tag}')
        found.tags[tag] = found.at(revision).sha
        return Answer()

    def preupload(self, repo: str, revision: str) -> Answer:
        """`oid` lets the client leave out what has not changed (`_fetch_upload_modes` in _commit_api.py)."""
        there = self._repo(repo).at(revision).files
        names = [entry['path'] for entry in json.loads(self.body)['files']]
        modes = {name: 'lfs' if name.endswith('.safetensors') else 'regular' for name in names}
        oids = {name: there[name].etag if name in there else None for name in names}
        common = {'shouldIgnore': False}
        files = [{'path': name, 'uploadMode': modes[name], 'oid': oids[name], **common} for name in names]
        return Answer({'files': files})

    def lfs_batch(self, repo: str) -> Answer:
        """No actions for what is stored already (`post_lfs_batch_info` in lfs.py)."""
        self._repo(repo)
        objects = json.loads(self.body)['objects']
        for wanted in (entry for entry in objects if entry['oid'] not in self.hub.lfs):
            wanted['actions'] = {'upload': {'href': f'{self.hub.url}/lfs/{wanted["oid"]}'}}
        return Answer({'transfer': 'basic', 'objects': objects})

    def lfs_put(self, oid: str) -> Answer:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, None, 'the content does not have the announced SHA-256')
        self.hub.lfs[oid] = self.body
        return Answer()

    def commit(self, repo: str, revision: str) -> Answer:
        """One line of JSON for each operation, all of them or none (`_send_commit` in _commit_api.py)."""
        found = self._repo(repo)
        files, title = dict(found.at(revision).files), ''
        for line in self.body.splitlines():
            key, value = (operation := json.loads(line))['key'], operation['value']
            path = value.get('path', '')
            if key == 'header':
                title = value['summary']
                if not found.head.sha.startswith(value.get('parentCommit', '')):
                    raise HubError(412, None, 'A commit has happened since. Please refresh and try again.')
            elif key == 'file':
                files[path] = File(base64.b64decode(value['content']))
            elif key == 'lfsFile' and value['oid'] in self.hub.lfs:
                files[path] = File(self.hub.lfs[value['oid']], lfs=True)
            elif key == 'deletedFile' and path in files:
                del files[path]
            else:
                raise HubError(400, None, f'{key} {path} names a file that is not there')
        sha = found.add_commit(files, title).sha
        return Answer({'success': True, 'commitOid': sha, 'commitUrl': f'{self.hub.url}/{repo}/commit/{sha}'})

    def resolve(self, repo: str, revision: str, path: str) -> Answer:
        """HEAD tells the metadata, GET resumes with Range (file_download.py). Large files come from here, too."""
        commit = self._repo(repo).at(revision)
        if path not in commit.files:
            error = HubError(404, 'EntryNotFound', 'Entry not found')
            error.headers['X-Repo-Commit'] = commit.sha
            raise error
        file, size = commit.files[path], len(commit.files[path].content)
        headers = {'X-Repo-Commit': commit.sha, 'ETag': f'"{file.etag}"', 'Accept-Ranges': 'bytes'}
        if self.method == 'HEAD':
            return Answer(b'', headers={**headers, 'Content-Length': str(size)})
        first = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        if first is None:
            return Answer(file.content, headers=headers)
        start = int(first[1])
        return Answer(file.content[start:], 206, {**headers, 'Content-Range': f'bytes {start}-{size - 1}/{size}'})


_REPO, _REVISION = r'(?P<repo>[^/]+/[^/]+)', r'(?P<revision>[^/]+)'  # quoted by the client
_API = f'/api/models/{_REPO}'
ROUTES: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    ('POST', '/api/validate-yaml', Endpoints.validate_yaml),
    ('POST', '/api/repos/create', Endpoints.create),
    ('GET', '/api/models', Endpoints.list_models),
    ('GET', _API, Endpoints.model_info),
    ('GET', f'{_API}/revision/{_REVISION}', Endpoints.model_info),
    ('GET', f'{_API}/refs', Endpoints.refs),
    ('POST', f'{_API}/tag/{_REVISION}', Endpoints.create_tag),
    ('POST', f'{_API}/preupload/{_REVISION}', Endpoints.preupload),
    ('POST', f'{_API}/commit/{_REVISION}', Endpoints.commit),
    ('POST', rf'/{_REPO}\.git/info/lfs/objects/batch', Endpoints.lfs_batch),
    ('PUT', '/lfs/(?P<oid>[0-9a-f]{64})', Endpoints.lfs_put),
    ('GET', f'/{_REPO}/resolve/{_REVISION}/(?P<path>.+)', Endpoints.resolve),
)
