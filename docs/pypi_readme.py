"""The README and addresses of the package's page on PyPI: links made absolute, badges, project urls.

The repository's address comes from GITHUB_REPOSITORY and GITHUB_REF_NAME, which a GitHub job sets; built anywhere else,
the package keeps the README as it is and has no urls. See https://hatch.pypa.io/latest/plugins/metadata-hook/custom/.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def for_pypi(text: str, repository: str, ref: str) -> str:
    """Return a README with badges under its title and links that lead from anywhere to `repository` at `ref`."""
    home = f'https://github.com/{repository}'
    raw = f'https://raw.githubusercontent.com/{repository}/{ref}'
    text = re.sub(r'(!\[[^]]*\]\()(?!https?://|#)', rf'\g<1>{raw}/', text)
    text = re.sub(r'((?<!!)\[[^]]*\]\()(?!https?://|#)', rf'\g<1>{home}/blob/{ref}/', text)
    badges = (
        f'[![ci]({home}/actions/workflows/ci.yml/badge.svg)]({home}/actions/workflows/ci.yml)',
        '![PyPI](https://img.shields.io/pypi/v/timm-p2be)',
        '![Python](https://img.shields.io/pypi/pyversions/timm-p2be)',
        '![License](https://img.shields.io/pypi/l/timm-p2be)',
    )
    return re.sub(r'\A(# .*\n)', rf'\1\n{" ".join(badges)}\n', text)


class ReadmeHook(MetadataHookInterface):
    """Sets `readme` and `urls` of pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / 'README.md').read_text(encoding='utf-8')
        if repository := os.environ.get('GITHUB_REPOSITORY'):
            ref = os.environ.get('GITHUB_REF_NAME') or 'main'
            text = for_pypi(text, repository, ref)
            home = f'https://github.com/{repository}'
            metadata['urls'] = {
                'Repository': home,
                'Documentation': f'{home}/blob/{ref}/docs/index.md',
                'Changelog': f'{home}/blob/{ref}/CHANGELOG.md',
                'Issues': f'{home}/issues',
            }
        metadata['readme'] = {'content-type': 'text/markdown', 'text': text}
