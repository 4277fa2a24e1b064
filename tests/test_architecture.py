"""Who may import whom. The table is the architecture; a new module needs a row here."""

import ast
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'timm_p2be'

# layer -> the layers of timm_p2be it may import; a layer is a top-level module or sub-package, '' is __init__.py
ALLOWED: dict[str, set[str]] = {
    'files': set(),
    'locks': set(),
    'extras': set(),
    'checkpoints': {'files'},
    'lookup': set(),
    'losses': {'lookup'},
    'encodings': {'files'},
    'optim': {'encodings', 'losses'},
    'stem': {'encodings', 'lookup'},
    'data': {'extras', 'files'},
    'timm_script': {'data'},  # opt-in: timm's own train.py or `timm-p2be run` imports it
    'models': {'encodings', 'files', 'hub', 'stem'},
    'task': {'encodings', 'losses', 'robustness', 'stem'},
    'robustness': {'checkpoints', 'data', 'encodings', 'extras', 'files', 'lookup', 'stem'},
    'hub': {'checkpoints', 'encodings', 'extras', 'files', 'models', 'robustness', 'stem', ''},
    '': {'encodings', 'lookup', 'losses', 'models', 'optim', 'robustness', 'stem'},  # registers and re-exports
}
ALLOWED['training'] = {'cli', 'data', 'locks', 'optim', 'task', *ALLOWED['hub'], 'hub'}
ALLOWED['reproduce'] = {'cli', 'encodings', 'extras', 'files', 'hub', 'robustness', 'training', ''}
ALLOWED['cli'] = {*ALLOWED}
LATE = {'encodings': {'hub'}}  # inside functions only: a table saves and publishes itself
# what the core needs beside the standard library
THIRD_PARTY = {
    'encodings': {'torch', 'safetensors', 'huggingface_hub'},
    'lookup': {'torch', 'llvmlite', 'triton'},
    'stem': {'torch', 'timm'},
    'losses': {'torch'},
    'optim': {'torch', 'timm'},
}
FORBIDDEN_MODULES = {'utils', 'helpers', 'common', 'base'}


def _modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    names = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        parts = path.relative_to(ROOT).with_suffix('').parts
        names['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return names


MODULES = _modules()
TREES = {module: ast.parse(path.read_text(encoding='utf-8')) for module, path in MODULES.items()}


def _layer(module: str) -> str:
    return module.split('.')[1] if '.' in module else ''


def _resolve(name: str) -> str:
    """The module of ours that a dotted name lies in: `timm_p2be.stem.convert` -> `timm_p2be.stem`."""
    while name not in MODULES and '.' in name:
        name = name.rpartition('.')[0]
    return name


@cache
def _imports(module: str) -> list[tuple[str, bool]]:
    """What `module` imports, as dotted names, and whether inside a function."""
    tree = TREES[module]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{module}: imports are absolute'
            name = node.module or ''
            names = [f'{name}.{alias.name}' if name in MODULES else name for alias in node.names]
        found += [(name, id(node) in inside) for name in names]
    return found


def _own_imports(module: str, late: bool) -> set[str]:
    names = {name for name, inside in _imports(module) if inside == late and name.split('.')[0] == 'timm_p2be'}
    return {_resolve(name) for name in names} - {module}


def test_imports_follow_the_layers() -> None:
    for module in MODULES:
        layer = _layer(module)
        assert layer in ALLOWED, f'{module} is a new layer; add it to ALLOWED and to the design'
        for late in (False, True):
            allowed = {layer, *ALLOWED[layer], *(LATE.get(layer, ()) if late else ())}
            for imported in _own_imports(module, late):
                assert _layer(imported) in allowed, f'{module} must not import {imported}'


def test_a_late_import_is_in_one_place() -> None:
    for layer, targets in LATE.items():
        modules = [m for m in MODULES if _layer(m) == layer]
        importing = [m for m in modules if {_layer(name) for name in _own_imports(m, late=True)} & targets]
        assert len(importing) <= 1, importing


def test_there_are_no_import_cycles() -> None:
    def imports(module: str) -> set[str]:
        late = {name for name in _own_imports(module, late=True) if _layer(name) in LATE.get(_layer(module), ())}
        return _own_imports(module, late=False) | (_own_imports(module, late=True) - late)

    list(TopologicalSorter({module: imports(module) for module in MODULES}).static_order())  # names the cycle


def test_the_core_needs_few_packages() -> None:
    """Nor does anything import scripts or tests."""
    for module in MODULES:
        roots = {name.split('.')[0] for name, _ in _imports(module)}
        assert not roots & {'train_scripts', 'benchmarks', 'tests'}, module
        if (layer := _layer(module)) in THIRD_PARTY:
            foreign = roots - sys.stdlib_module_names - THIRD_PARTY[layer] - {'timm_p2be'}
            assert not foreign, f'{module} must not import {foreign}'


def test_no_module_is_a_drawer() -> None:
    assert not FORBIDDEN_MODULES & {part.lstrip('_') for module in MODULES for part in module.split('.')}
