"""Who may import whom. The table is the architecture; a new module needs a row here."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import timm

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'timm_p2be'

# layer -> the layers of timm_p2be it may import; a layer is a top-level module or sub-package, '' is __init__.py
ALLOWED: dict[str, set[str]] = {
    'files': set(),
    'checkpoints': set(),
    'encodings': {'hub', 'files'},
    'lookup': set(),
    'losses': set(),
    'optim': {'encodings'},
    'data': set(),
    'stem': {'encodings', 'lookup'},
    'models': {'encodings', 'hub', 'stem', 'files'},
    'task': {'encodings', 'losses', 'stem'},
    'robustness': {'checkpoints', 'encodings', 'stem', 'files'},
    '': {'encodings', 'lookup', 'losses', 'stem', 'optim', 'models', 'robustness'},  # registers and re-exports
    'hub': {'checkpoints', 'encodings', 'models', 'robustness', 'stem', 'files', ''},
    'training': {
        'checkpoints',
        'cli',
        'data',
        'encodings',
        'hub',
        'optim',
        'robustness',
        'stem',
        'task',
        'files',
        '',
    },
    'cli': {'encodings', 'hub', 'robustness', 'files', ''},
}
TORCH_ONLY = ('lookup', 'losses')  # they need torch, and llvmlite for the kernels
FORBIDDEN_NAMES = {'utils', 'helpers', 'common', 'base'}


def _modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    names = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        parts = path.relative_to(ROOT).with_suffix('').parts
        names['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return names


MODULES = _modules()


def _layer(module: str) -> str:
    return module.split('.')[1] if '.' in module else ''


def _resolve(name: str) -> str:
    """The module of ours that a dotted name lies in: `timm_p2be.stem.convert` -> `timm_p2be.stem`."""
    while name not in MODULES and '.' in name:
        name = name.rpartition('.')[0]
    return name


def _imports(module: str) -> Iterator[str]:
    """Every module that `module` imports, anywhere in the file, as absolute dotted names."""
    path = MODULES[module]
    package = module if path.name == '__init__.py' else module.rpartition('.')[0]
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                parent = package.split('.')[: len(package.split('.')) - node.level + 1]
                base = '.'.join([*parent, base] if base else parent)
            yield from (f'{base}.{alias.name}' if base in MODULES else base for alias in node.names)


def _own_imports(module: str) -> set[str]:
    return {_resolve(name) for name in _imports(module) if name.split('.')[0] == 'timm_p2be'} - {module}


@pytest.mark.parametrize('module', MODULES)
def test_imports_follow_the_layers(module: str) -> None:
    layer = _layer(module)
    assert layer in ALLOWED, f'{module} is a new layer; add it to ALLOWED and to the design'
    for imported in _own_imports(module):
        target = _layer(imported)
        assert target == layer or target in ALLOWED[layer], f'{module} must not import {imported}'


@pytest.mark.parametrize('module', MODULES)
def test_scripts_and_tests_are_never_imported(module: str) -> None:
    roots = {name.split('.')[0] for name in _imports(module)}
    assert not roots & {'train_scripts', 'benchmarks', 'tests'}


@pytest.mark.parametrize('layer', TORCH_ONLY)
def test_the_core_needs_only_torch(layer: str) -> None:
    third_party = {'timm', 'torchvision', 'huggingface_hub', 'datasets', 'numpy', 'PIL', 'yaml', 'skimage', 'sklearn'}
    for module in (name for name in MODULES if _layer(name) == layer):
        assert not {name.split('.')[0] for name in _imports(module)} & third_party


def test_there_are_no_import_cycles() -> None:
    graph = {module: _own_imports(module) for module in MODULES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError and names the cycle


@pytest.mark.parametrize('module', MODULES)
def test_file_names_say_what_is_inside(module: str) -> None:
    assert MODULES[module].stem.lstrip('_') not in FORBIDDEN_NAMES


def test_model_files_do_not_merge_into_timm_modules() -> None:
    """timm files a model under the last part of its module's name, so `resnet.py` would join timm's resnet list."""
    files = {path.stem for path in (PACKAGE / 'models').glob('*.py')} - {'__init__'}
    assert not files & {path.stem for path in Path(timm.__file__).parent.joinpath('models').glob('*.py')}
