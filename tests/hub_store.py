"""What a Hub keeps: repositories with commits, one branch, tags, and files stored in Git or in LFS."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml


class HubError(Exception):
    """An answer of the Hub that is no success.

    The client reads the headers X-Error-Code and X-Error-Message (`hf_raise_for_status` in utils/_http.py).
    """

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {'X-Error-Message': message} | ({'X-Error-Code': code} if code else {})


def git_sha(kind: str, content: bytes) -> str:
    """Return Git's name of an object, 40 hexadecimal digits."""
    return hashlib.sha1(f'{kind} {len(content)}\0'.encode() + content).hexdigest()


@dataclass(frozen=True)
class File:
    """One version of a file. In Git lies the content, or for LFS a pointer to it."""

    content: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md#the-pointer"""
        spec = 'https://git-lfs.github.com/spec/v1'
        return f'version {spec}\noid sha256:{self.sha256}\nsize {len(self.content)}\n'.encode()

    @property
    def blob_id(self) -> str:
        return git_sha('blob', self.pointer if self.lfs else self.content)

    @property
    def etag(self) -> str:
        """The name of the file in the client's cache: SHA-256 for LFS, Git's SHA-1 otherwise (`hf_hub_url`)."""
        return self.sha256 if self.lfs else self.blob_id

    def sibling(self, path: str, with_size: bool) -> dict[str, Any]:
        """An entry of `siblings` (`ModelInfo` in hf_api.py)."""
        entry: dict[str, Any] = {'rfilename': path}
        if with_size:
            entry |= {'size': len(self.content), 'blobId': self.blob_id}
            if self.lfs:
                entry['lfs'] = {'sha256': self.sha256, 'size': len(self.content), 'pointerSize': len(self.pointer)}
        return entry

    def tree_entry(self, path: str) -> dict[str, Any]:
        """An entry of a tree listing (`RepoFile` in hf_api.py)."""
        entry: dict[str, Any] = {'type': 'file', 'path': path, 'size': len(self.content), 'oid': self.blob_id}
        if self.lfs:
            entry['lfs'] = {'oid': self.sha256, 'size': len(self.content), 'pointerSize': len(self.pointer)}
        return entry


@dataclass(frozen=True)
class Commit:
    """All files of a repository at one time."""

    sha: str
    parent: str | None
    title: str
    date: str
    files: Mapping[str, File]


@dataclass
class Repository:
    """A model repository with the branch main; commit names depend on nothing but the content and its history."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.add_commit(
            {'.gitattributes': File(b'*.safetensors filter=lfs diff=lfs merge=lfs -text\n')}, 'initial commit'
        )

    @property
    def head(self) -> Commit:
        return self.commits[self.branches['main']]

    def add_commit(self, files: Mapping[str, File], title: str) -> Commit:
        parent = self.branches.get('main')
        listing = ''.join(f'{path} {file.blob_id}\n' for path, file in sorted(files.items()))
        sha = git_sha('commit', f'{parent}\n{title}\n{listing}'.encode())
        date = f'2025-01-01T00:00:{len(self.commits) % 60:02}.000Z'
        self.commits[sha] = Commit(sha, parent, title, date, dict(files))
        self.branches['main'] = sha
        return self.commits[sha]

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a full commit name means."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
        return self.commits[sha]

    def card(self, commit: Commit) -> dict[str, Any]:
        """The metadata block of README.md."""
        text = commit.files['README.md'].content.decode() if 'README.md' in commit.files else ''
        data = yaml.safe_load(text.split('---\n')[1]) if text.startswith('---\n') else {}
        return data if isinstance(data, dict) else {}

    def labels(self, commit: Commit) -> list[str]:
        """The tags a listing is filtered by: those of the card, its library, license and data sets."""
        card = self.card(commit)
        several = [card.get('datasets', []), card.get('base_model', [])]
        datasets, bases = ([value] if isinstance(value, str) else value for value in several)
        return [
            *card.get('tags', []),
            *([card['library_name']] if 'library_name' in card else []),
            *([f'license:{card["license"]}'] if 'license' in card else []),
            *(f'dataset:{name}' for name in datasets),
            *(f'base_model:{name}' for name in bases),
            *(['safetensors'] if any(path.endswith('.safetensors') for path in commit.files) else []),
        ]
