"""Values of JSON as Markdown that shows them and does nothing else."""

import json
import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

_PLAIN_CODE = re.compile(r'(?! )[\w .,:+=/@()\[\]{}"\'%-]+(?<! )', re.ASCII)  # cannot end a code span or a cell


def escaped(words: str | None) -> str:
    """Return one line of Markdown that shows `words` and nothing else; '' for None."""
    line = ''.join(character if character.isprintable() else ' ' for character in words or '')
    line = line.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
    return re.sub(r'([\\`*_\[\]|~$!])', r'\\\1', line).strip()


def code(value: Any) -> str:
    """Return a JSON value as code, or escaped where it has characters that could end the code; '' for None."""
    if value is None:
        return ''
    shown = value if isinstance(value, str) else json.dumps(value)
    return f'`{shown}`' if _PLAIN_CODE.fullmatch(shown) else escaped(shown)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str | None:
    """Return a table of cells that are Markdown already; None without rows."""
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in lines) if rows else None


def of(record: Any, *keys: str) -> Any:
    """Return a nested entry, None as soon as one is missing."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def architecture(value: Any) -> str:
    """Return the name of an architecture.

    Raises:
        ValueError: no such name.
    """
    if not isinstance(value, str) or not re.fullmatch(r'\w[\w.-]{0,127}', value, re.ASCII):
        raise ValueError(f'Got the architecture {value!r}; allowed is a name of timm.list_models().')
    return value


def repo_id(value: str) -> str:
    """Return the id of a repository of the Hub, without a revision.

    Raises:
        ValueError: no such id.
    """
    repo = value.partition('@')[0]
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"Got {value!r}, which is no id of the Hub such as 'org/name': {error}") from error
    return repo


def literal(source: str) -> str:
    """Return the Python string of a repository or folder.

    Raises:
        ValueError: characters that neither has.
    """
    if not re.fullmatch(r'[\w./:@-]+', source, re.ASCII):
        raise ValueError(f"Got the name {source!r}; write 'org/name' or 'org/name@revision'.")
    return f"'{source}'"
