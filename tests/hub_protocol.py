"""What the real client asks a Hub, endpoint by endpoint, and what it gets back.

The file of huggingface_hub 2.4 that asks is named at each endpoint.
"""

import base64
import json
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import unquote

import yaml
from hub_store import Commit, File, HubError, Repository
from hub_transport import Answer, Transport

BAD_TOKEN = 'Invalid credentials in Authorization header'
REPO = r'(?P<repo>[^/]+/[^/]+)'
REVISION = r'(?P<revision>[^/]+)'  # quoted by the client: 'refs/pr/1' arrives as 'refs%2Fpr%2F1'


class Handler(Transport):
    """The endpoints."""

    def answer(self, path: str) -> Answer:
        for method, pattern, endpoint in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command.replace('HEAD', 'GET'):
                self._check_token(writing=method != 'GET' and not path.startswith('/lfs/'))
                return endpoint(self, **{key: unquote(value) for key, value in match.groupdict().items()})
        raise HubError(404, None, f'this Hub has no {self.command} {path}')

    @property
    def _sent_token(self) -> str | None:
        return (self.headers.get('Authorization') or '').removeprefix('Bearer ') or None

    def _check_token(self, writing: bool) -> None:
        if self._sent_token not in (None, self.hub.token):
            raise HubError(401, None, BAD_TOKEN)
        if writing and self._sent_token is None and not self.path.startswith('/api/validate-yaml'):
            raise HubError(401, None, 'Invalid username or password.')

    def _repo(self, name: str, content: bool = True) -> Repository:
        """A repository that may be seen. Without a token 401 stands for 'missing' too (utils/_http.py)."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self._sent_token is None):
            raise HubError(401 if self._sent_token is None else 404, 'RepoNotFound', 'Repository not found')
        if repo.gated and content and self._sent_token is None:
            raise HubError(401, 'GatedRepo', f'Access to model {name} is restricted.')
        return repo

    def _info(self, repo: Repository, commit: Commit, with_sizes: bool) -> dict[str, Any]:
        """`ModelInfo` in hf_api.py."""
        siblings = [file.sibling(path, with_sizes) for path, file in sorted(commit.files.items())]
        card, labels = repo.card(commit), repo.labels(commit)
        return {
            'id': repo.name,
            'author': repo.name.split('/')[0],
            'sha': commit.sha,
            'private': repo.private,
            'gated': 'auto' if repo.gated else False,
            'lastModified': commit.date,
            'tags': labels,
            'library_name': card.get('library_name'),
            'pipeline_tag': card.get('pipeline_tag'),
            'cardData': card,
            'siblings': siblings,
        }

    def whoami(self) -> Answer:
        """`whoami` in hf_api.py."""
        if self._sent_token is None:
            raise HubError(401, None, BAD_TOKEN)
        role = {'type': 'access_token', 'accessToken': {'displayName': 'test', 'role': 'write'}}
        return Answer({'type': 'user', 'name': self.hub.user, 'orgs': [], 'auth': role})

    def validate_yaml(self) -> Answer:
        """`RepoCard.validate` in repocard.py and `_validate_yaml` in hf_api.py."""
        content = json.loads(self.body)['content']
        try:
            data = yaml.safe_load(content.split('---\n')[1]) if content.startswith('---\n') else {}
        except yaml.YAMLError as error:
            return Answer({'errors': [{'message': str(error)}], 'warnings': []}, 400)
        messages = [] if isinstance(data, dict) else [{'message': 'the metadata is no mapping'}]
        return Answer({'errors': messages, 'warnings': []}, 400 if messages else 200)

    def create(self) -> Answer:
        """`create_repo` in hf_api.py; an existing repository is 409 with its address."""
        payload = json.loads(self.body)
        name = f'{payload["organization"] or self.hub.user}/{payload["name"]}'
        answer = Answer({'url': f'{self.hub.url}/{name}', 'name': name})
        if name in self.hub.repos:
            return Answer({'error': 'You already created this model repo', **answer.body}, 409)
        private = payload.get('visibility') == 'private' or bool(payload.get('private'))  # older clients
        self.hub.repos[name] = Repository(name, private=private)
        return answer

    def delete(self) -> Answer:
        """`delete_repo` in hf_api.py."""
        payload = json.loads(self.body)
        name = f'{payload["organization"] or self.hub.user}/{payload["name"]}'
        del self.hub.repos[self._repo(name).name]
        return Answer()

    def list_models(self) -> Answer:
        """`list_models` in hf_api.py: ?author= and ?filter=, which all have to hold."""
        found = []
        for name, repo in sorted(self.hub.repos.items()):
            info = self._info(repo, repo.head, with_sizes=False)
            hidden = repo.private and self._sent_token is None
            author = self.query.get('author', [info['author']])
            searched = self.query.get('search', [''])[0] in name
            if (
                not hidden
                and searched
                and info['author'] in author
                and {*self.query.get('filter', [])} <= {*info['tags']}
            ):
                left_out = {
                    'cardData': 'cardData' not in self.query,
                    'siblings': 'full' not in self.query,
                    'sha': 'full' not in self.query,
                }
                found.append({key: value for key, value in info.items() if not left_out.get(key)})
        return Answer(found[: int(self.query.get('limit', [len(found)])[0])])

    def model_info(self, repo: str, revision: str = 'main') -> Answer:
        """`model_info` in hf_api.py; with ?blobs=true the sizes are told."""
        found = self._repo(repo, content=False)
        return Answer(self._info(found, found.at(revision), with_sizes='blobs' in self.query))

    def tree(self, repo: str, revision: str, folder: str = '') -> Answer:
        """`list_repo_tree` in hf_api.py, always recursive and on one page."""
        files = self._repo(repo).at(revision).files
        return Answer([file.tree_entry(path) for path, file in sorted(files.items()) if path.startswith(folder)])

    def refs(self, repo: str) -> Answer:
        """`list_repo_refs` in hf_api.py."""
        found = self._repo(repo)

        def entries(kind: str, names: Mapping[str, str]) -> list[dict[str, str]]:
            return [{'name': n, 'ref': f'refs/{kind}/{n}', 'targetCommit': sha} for n, sha in sorted(names.items())]

        return Answer(
            {'branches': entries('heads', found.branches), 'converts': [], 'tags': entries('tags', found.tags)}
        )

    def commits(self, repo: str, revision: str) -> Answer:
        """`list_repo_commits` in hf_api.py, the newest first."""
        found = self._repo(repo)
        commit: Commit | None = found.at(revision)
        history = []
        while commit is not None:
            history.append({'id': commit.sha, 'title': commit.title, 'message': '', 'date': commit.date, 'authors': []})
            commit = found.commits[commit.parent] if commit.parent else None
        return Answer(history)

    def create_tag(self, repo: str, revision: str) -> Answer:
        """`create_tag` in hf_api.py; a tag that is there already is 409."""
        found, tag = self._repo(repo), json.loads(self.body)['tag']
        if tag in found.tags:
            raise HubError(409, None, f'Tag reference exists already: {tag}')
        found.tags[tag] = found.at(revision).sha
        return Answer()

    def delete_tag(self, repo: str, revision: str) -> Answer:
        """`delete_tag` in hf_api.py."""
        if self._repo(repo).tags.pop(revision, None) is None:
            raise HubError(404, 'RevisionNotFound', f'no tag {revision}')
        return Answer()

    def preupload(self, repo: str, revision: str) -> Answer:
        """`_fetch_upload_modes` in _commit_api.py; `oid` lets the client leave out what has not changed."""
        there = self._repo(repo).at(revision).files
        files = []
        for name in (entry['path'] for entry in json.loads(self.body)['files']):
            mode = 'lfs' if name.endswith('.safetensors') else 'regular'
            oid = there[name].etag if name in there else None
            files.append({'path': name, 'uploadMode': mode, 'shouldIgnore': False, 'oid': oid})
        return Answer({'files': files})

    def lfs_batch(self, repo: str) -> Answer:
        """`post_lfs_batch_info` in lfs.py: no actions for what is stored already."""
        self._repo(repo)
        objects = []
        for wanted in json.loads(self.body)['objects']:
            entry = {'oid': wanted['oid'], 'size': wanted['size']}
            if wanted['oid'] not in self.hub.lfs:
                verify = {'href': f'{self.hub.url}/{repo}.git/info/lfs/objects/verify'}
                entry['actions'] = {'upload': {'href': f'{self.hub.url}/lfs/{wanted["oid"]}'}, 'verify': verify}
            objects.append(entry)
        return Answer({'transfer': 'basic', 'objects': objects})

    def lfs_put(self, oid: str) -> Answer:
        """`_upload_single_part` in lfs.py. Like a signed storage address it asks for no token."""
        if sha256(self.body).hexdigest() != oid:
            raise HubError(400, None, 'the content does not have the announced SHA-256')
        self.hub.lfs[oid] = self.body
        return Answer()

    def lfs_verify(self, repo: str) -> Answer:
        """`lfs_upload` in lfs.py, its last step."""
        payload = json.loads(self.body)
        if len(self.hub.lfs.get(payload['oid'], b'')) != payload['size']:
            raise HubError(404, None, 'no such object')
        return Answer()

    def commit(self, repo: str, revision: str) -> Answer:
        """`_send_commit` in _commit_api.py: one line of JSON for each operation, all of them or none."""
        found = self._repo(repo)
        if revision not in found.branches:
            raise HubError(404, 'RevisionNotFound', f'Invalid branch: {revision}')
        files, title = dict(found.head.files), ''
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
            elif key == 'deletedFolder' and any(name.startswith(path) for name in files):
                files = {name: file for name, file in files.items() if not name.startswith(path)}
            else:
                raise HubError(400, None, f'{key} {path} names a file that is not there')
        sha = found.add_commit(files, title).sha
        return Answer({'success': True, 'commitOid': sha, 'commitUrl': f'{self.hub.url}/{repo}/commit/{sha}'})

    def resolve(self, repo: str, revision: str, path: str) -> Answer:
        """`get_hf_file_metadata` (HEAD) and `http_get` (GET, resumed with Range) in file_download.py.

        A large file is sent from here, as mirrors do, instead of from another host.
        """
        commit = self._repo(repo).at(revision)
        if path not in commit.files:
            error = HubError(404, 'EntryNotFound', 'Entry not found')
            error.headers['X-Repo-Commit'] = commit.sha
            raise error
        file = commit.files[path]
        headers = {'X-Repo-Commit': commit.sha, 'ETag': f'"{file.etag}"', 'Accept-Ranges': 'bytes'}
        if file.lfs:
            headers |= {'X-Linked-Size': str(len(file.content)), 'X-Linked-Etag': f'"{file.etag}"'}
        if self.command == 'HEAD':
            return Answer(b'', headers={**headers, 'Content-Length': str(len(file.content))})
        first = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        if first is None:
            return Answer(file.content, headers=headers)
        start, size = int(first[1]), len(file.content)
        return Answer(file.content[start:], 206, {**headers, 'Content-Range': f'bytes {start}-{size - 1}/{size}'})


API = f'/api/models/{REPO}'
ROUTES: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    ('GET', '/api/whoami-v2', Handler.whoami),
    ('POST', '/api/validate-yaml', Handler.validate_yaml),
    ('POST', '/api/repos/create', Handler.create),
    ('DELETE', '/api/repos/delete', Handler.delete),
    ('GET', '/api/models', Handler.list_models),
    ('GET', API, Handler.model_info),
    ('GET', f'{API}/revision/{REVISION}', Handler.model_info),
    ('GET', f'{API}/tree/{REVISION}', Handler.tree),
    ('GET', f'{API}/tree/{REVISION}/(?P<folder>.+)', Handler.tree),
    ('GET', f'{API}/refs', Handler.refs),
    ('GET', f'{API}/commits/{REVISION}', Handler.commits),
    ('POST', f'{API}/tag/{REVISION}', Handler.create_tag),
    ('DELETE', f'{API}/tag/{REVISION}', Handler.delete_tag),
    ('POST', f'{API}/preupload/{REVISION}', Handler.preupload),
    ('POST', f'{API}/commit/{REVISION}', Handler.commit),
    ('POST', rf'/{REPO}\.git/info/lfs/objects/batch', Handler.lfs_batch),
    ('POST', rf'/{REPO}\.git/info/lfs/objects/verify', Handler.lfs_verify),
    ('PUT', '/lfs/(?P<oid>[0-9a-f]{64})', Handler.lfs_put),
    ('GET', f'/{REPO}/resolve/{REVISION}/(?P<path>.+)', Handler.resolve),
)
