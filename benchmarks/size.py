#!/usr/bin/env python3
"""Print the size of the code, room by room: lines, files, docstring share, longest file and function.

python benchmarks/size.py [REVISION ...]     (default: the files as they lie here)
"""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class File:
    """What is counted of one file: lines, lines of docstrings, and (lines, name) of its longest function."""

    name: str
    lines: int
    docstrings: int
    longest: tuple[int, str]


def measure(name: str, text: str) -> File:
    """Return the counts of one Python file."""
    docstrings, functions = 0, [(0, '-')]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            docstrings += node.body[0].end_lineno - node.body[0].lineno + 1  # type: ignore[operator]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.append((node.end_lineno - node.lineno + 1, f'{name}:{node.name}'))  # type: ignore[operator]
    return File(name, text.count('\n'), docstrings, max(functions))


def files(revision: str | None) -> Iterator[File]:
    """Return the Python files of package, scripts and tests, here or at a revision."""
    git = ['git', '-C', str(ROOT)]
    listing = [*git, 'ls-tree', '-r', '--name-only', revision] if revision else [*git, 'ls-files']
    for name in subprocess.check_output(listing, text=True).splitlines():
        if name.endswith('.py') and name.split('/')[0] in ('timm_p2be', 'train_scripts', 'tests'):
            shown = [*git, 'show', f'{revision}:{name}']
            path = ROOT / name
            if revision or path.is_file():
                yield measure(name, subprocess.check_output(shown, text=True) if revision else path.read_text())


def report(revision: str | None) -> None:
    """Print one table."""
    rooms: dict[str, list[File]] = defaultdict(list)
    for file in files(revision):
        parts = file.name.split('/')
        rooms['tests' if parts[0] == 'tests' else 'package and scripts'].append(file)
        if parts[0] != 'tests':
            rooms['  ' + '/'.join(parts[:2] if parts[0] == 'timm_p2be' and len(parts) > 2 else parts[:1])].append(file)
    print(
        f'{revision or "working tree":24} {"lines":>6} {"files":>6} {"docstrings":>10}  longest file; longest function'
    )
    for room in sorted(rooms, key=lambda name: (name.startswith('  '), name)):
        counted = rooms[room]
        lines = sum(file.lines for file in counted)
        share = sum(file.docstrings for file in counted) / max(lines, 1)
        longest, function = max(counted, key=lambda file: file.lines), max(file.longest for file in counted)
        print(
            f'{room:24} {lines:6} {len(counted):6} {share:10.1%}  {longest.name.split("/")[-1]} {longest.lines}; '
            f'{function[1].split("/")[-1]} {function[0]}'
        )


if __name__ == '__main__':
    for name in sys.argv[1:] or [None]:  # type: ignore[list-item]
        report(name)
