"""What there is: weights shipped with the package, repositories in the Hub cache, repositories on the Hub."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CacheNotFound, HfApi, ModelInfo, constants, scan_cache_dir

from timm_p2be.files import MAX_JSON_BYTES
from timm_p2be.hub.errors import asking
from timm_p2be.hub.fetch import fetch
from timm_p2be.hub.repository import DEFAULT_BITS, FILES, Contents, encoding_of, read_contents
from timm_p2be.models.tables import TABLES, table_path
from timm_p2be.models.weights import shipped_weights, weights_path

TAG = 'timm-p2be'  # of the cards of ours
MAX_REMOTE = 100  # repositories of a namespace that are looked into


@dataclass(frozen=True)
class Entry:
    """One thing that can be used, as far as known; None and () stand for unknown."""

    where: str  # 'package', 'cache' or 'hub'
    name: str  # of timm, or 'org/name'
    contents: Contents | None = None
    commit: str | None = None
    revisions: tuple[str, ...] = ()  # branches and tags that mean this commit
    size: int | None = None  # bytes
    tags: tuple[str, ...] = ()  # of a timm name what follows the dot, on the Hub those of the card
    problem: str | None = None  # why config.json could not be used


def shipped_entries() -> list[Entry]:
    """Return the models of this package that have weights without a download, by name, and its tables, by tag."""
    entries = []
    for name, shipped in shipped_weights().items():
        architecture, _, tag = name.partition('.')
        encoding = encoding_of(architecture, {})
        num_bits = None if encoding == 'rgb' else DEFAULT_BITS
        found = Contents('model', encoding, num_bits, shipped['provenance'], architecture, shipped['sha256'])
        entries.append(Entry('package', name, found, size=Path(weights_path(name)).stat().st_size, tags=(tag,)))
    for tag in TABLES:
        folder = table_path(tag)
        size = (folder / FILES[1]).stat().st_size
        entries.append(Entry('package', f'*_p2be.{tag}', read_contents(folder), size=size, tags=(tag,)))
    return entries


def cached_entries() -> list[Entry]:
    """Return what lies whole in the Hub cache and is of ours, by name; other repositories are passed over."""
    try:
        found = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return []
    entries = []
    for repo in sorted(found.repos, key=lambda repo: repo.repo_id):
        for revision in sorted(repo.revisions, key=lambda revision: -revision.last_modified):
            # browsing leaves snapshots without weights
            if repo.repo_type != 'model' or not all((revision.snapshot_path / name).is_file() for name in FILES):
                continue
            try:
                contents = read_contents(revision.snapshot_path)
            except ValueError:  # most caches are full of other people's models
                continue
            if contents.is_ours:
                refs = tuple(sorted(revision.refs))
                entries.append(
                    Entry('cache', repo.repo_id, contents, revision.commit_hash, refs, revision.size_on_disk)
                )
    return entries


def remote_entries(namespace: str) -> list[Entry]:
    """Return the repositories of a user or an organization that carry our tag; of them only config.json is read."""
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9_.-]{0,95}', namespace):
        raise ValueError(f"Got the namespace {namespace!r}; name a user or an organization, the 'org' of 'org/name'.")
    with asking(f'the models of {namespace}'):
        found = list(HfApi().list_models(author=namespace, filter=TAG, full=True, limit=MAX_REMOTE))
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(_remote_entry, sorted(found, key=lambda info: info.id)))


def _remote_entry(info: ModelInfo) -> Entry:
    entry = Entry('hub', info.id, commit=info.sha, tags=tuple(info.tags or ()))
    try:
        folder = fetch(f'hf-hub:{info.id}', FILES[:1], info.sha, max_bytes=MAX_JSON_BYTES)
        return replace(entry, contents=read_contents(folder))
    except ValueError as error:
        return replace(entry, problem=re.sub(r'\S*[/\\](?=config\.json)', '', str(error)))
