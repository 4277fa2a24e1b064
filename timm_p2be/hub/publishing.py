"""Uploads a release to the Hub: one commit, then a tag."""

from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard

import timm_p2be
from timm_p2be.hub.errors import FetchError, asking
from timm_p2be.hub.fetch import split_revision
from timm_p2be.hub.repository import RELEASE_FILES, verify


def publish(
    folder: Path, repo_id: str, tag: str | None = None, private: bool = False, token: str | None = None
) -> CommitInfo:
    """Upload a release in one commit and tag it; what an interrupted call left undone is done by the next.

    Args:
        folder: as `timm_p2be.hub.release.prepare` writes it; other files in it are never uploaded.
        repo_id: 'org/name'; created if it is not there.
        tag: name of the release, one that the repository does not have yet.
        private: create it private.
        token: of the Hub; None takes that of `hf auth login` or HF_TOKEN.
    """
    check_names(repo_id, tag)
    verify(folder)
    files = [name for name in RELEASE_FILES if (folder / name).is_file()]
    card = ModelCard.load(folder / 'README.md')
    api = HfApi(token=token, library_name='timm-p2be', library_version=timm_p2be.__version__)
    with asking(repo_id, token):
        card.validate()
        api.create_repo(repo_id, private=private or None, exist_ok=True)  # None: as the namespace has it
        info = api.model_info(repo_id)
        if private and not info.private:
            raise ValueError(f'{repo_id} exists and is public. Make it private on its page first, or omit --private.')
        if tag in {ref.name for ref in api.list_repo_refs(repo_id).tags}:
            raise ValueError(
                f'{repo_id} has the tag {tag!r} already, and releases are not changed. Choose another tag.'
            )
        there = {sibling.rfilename for sibling in info.siblings or ()}
        stale = [name for name in RELEASE_FILES if name in there and name not in files]
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, folder / name) for name in files),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=f'Release {tag}' if tag else 'Release',
            parent_commit=info.sha,
        )
        if tag is not None:
            api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit


def check_names(repo_id: str, tag: str | None) -> None:
    """Raise FetchError unless the Hub takes a repository and a tag of these names."""
    if split_revision(repo_id)[1] is not None:
        raise FetchError(f'Got {repo_id!r} with a revision; name the repository alone, and the release by --tag.')
    if tag is not None:
        split_revision(f'{repo_id}@{tag}')
        if tag == 'main':
            raise FetchError("Got the tag 'main', which is the name of the branch; choose another, such as v1.")
