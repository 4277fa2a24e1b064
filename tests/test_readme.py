"""The README: its two commands come first, its examples run, and the flags and files it names exist."""

import importlib.util
import re
from pathlib import Path

import published
import pytest
import timm
from hub_server import HubServer

from timm_p2be.training.arguments import build_parser
from timm_p2be_cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
HUB = (ROOT / 'docs' / 'hub.md').read_text(encoding='utf-8')
TWO_COMMANDS = (
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[robustness]' "
    '&& .venv/bin/python train_scripts/quickstart.py',
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/python -m pytest",
)


def _blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```$', text, flags=re.MULTILINE | re.DOTALL)


def _shell_lines() -> list[str]:
    return [line for block in _blocks('bash') for line in block.splitlines()]


def test_the_two_commands_stand_alone_on_the_first_screen() -> None:
    first_screen = README.splitlines()[:25]
    assert [line for line in first_screen if line.startswith('python3 ')] == list(TWO_COMMANDS)
    assert '```python' in first_screen, 'the example starts on the first screen'
    assert len(README.splitlines()) <= 165


@pytest.mark.parametrize(
    'code', [pytest.param(block, id=str(i)) for i, block in enumerate(_blocks('python') + _blocks('python', HUB))]
)
@pytest.mark.filterwarnings('ignore')
def test_python_block_runs(code: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put('someone/p2be-m64', published.embedding(tmp_path / 'table', num_bits=64), tag='v1')
    hub.put('someone/wrn10_2_p2be', published.model(tmp_path / 'model'), tag='v1')
    assert re.search('^(import|from) .*timm_p2be', code, flags=re.MULTILINE)  # what registers the models
    monkeypatch.chdir(ROOT)
    exec(compile(code, 'README.md', 'exec'), {'__name__': '__main__'})


def test_named_models_are_registered() -> None:
    table = README[README.index('## Models') : README.index('## Train')]
    names = set(re.findall(r'`((?:wrn|densenet|resnext29|resnet)\w*)`', table))
    assert len(names) >= 13
    assert names <= set(timm.list_models())


def test_named_files_exist() -> None:
    names = set(re.findall(r'\b(?:docs|train_scripts|tests|benchmarks)/[\w/]*\.\w+', README))
    assert names
    assert not [name for name in names if not (ROOT / name).is_file()]


def test_flags_of_our_train_script_exist() -> None:
    shown = [part for line in _shell_lines() for part in re.split(r'timm-p2be train|timm_p2be\.training', line)[1:]]
    assert len(shown) >= 3
    for part in shown:
        for flag in re.findall(r'(?<= )(--?[a-z][\w-]*)', part):
            assert flag in build_parser()._option_string_actions, f'README uses {flag}'
        assert (ROOT / 'train_scripts' / 'recipes' / f'{part.split()[1]}.yaml').is_file()


@pytest.mark.parametrize('words', COMMANDS)
def test_subcommands_exist(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match='0'):
        main([*words.split(), '--help'])
    assert f'timm-p2be {words}' in capsys.readouterr().out


def test_named_subcommands_exist() -> None:
    named = set(re.findall(r'timm-p2be ([a-z]+)', README))
    assert set() < named <= {words.split()[0] for words in COMMANDS}


def test_the_page_on_pypi_links_to_the_repository() -> None:
    spec = importlib.util.spec_from_file_location('pypi_readme', ROOT / 'docs' / 'pypi_readme.py')
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    page = hook.for_pypi(README, 'someone/timm-p2be', 'v0.1.0')
    places = re.findall(r'\]\((.*?)\)', page)
    assert all(place.startswith('https://') for place in places)
    prefix = re.compile(r'https://(?:raw\.githubusercontent|github)\.com/someone/timm-p2be/(?:blob/)?v0\.1\.0/')
    files = [prefix.sub('', place) for place in places if prefix.match(place)]
    assert len(files) > 10
    assert all((ROOT / file).exists() for file in files)
    assert page.splitlines()[2].startswith(
        '[![ci](https://github.com/someone/timm-p2be/actions/workflows/ci.yml/badge.svg)'
    )
    assert 'raw.githubusercontent.com/someone/timm-p2be/v0.1.0/docs/table_cifar10.png' in page
