"""The `timm-p2be` command: its usage errors, and scripts that run as if Python had started them."""

import json
import runpy
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
import timm

import timm_p2be
from timm_p2be.cli import main

REPORT = """
import json, pathlib, sys
import neighbor
pathlib.Path(sys.argv[1]).write_text(json.dumps({
    'argv': sys.argv, 'path': sys.path, 'name': __name__, 'file': __file__, 'main': sys.modules['__main__'].__file__
}))
"""

SPAWN_POOL = """
import multiprocessing, sys
print('loaded as', __name__)

def square(number):
    return number**2, __name__, sys.argv[1:]

if __name__ == '__main__':
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        print(*pool.map(square, [3]))
    import timm
    print(*timm.list_models('*_p2be'), *timm.optim.list_optimizers('*p2be'))
    sys.exit(5)
"""

RANKS = """
import os, pathlib, sys
import timm
pathlib.Path(sys.argv[1], os.environ['RANK']).write_text(timm.create_model('wrn10_2_p2be').default_cfg['architecture'])
"""


def _script(folder: Path, code: str) -> Path:
    path = folder / 'script.py'
    path.write_text(code)
    return path


def _start(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def _report(folder: Path, script: Path | str, *args: str) -> dict[str, Any]:
    """Run REPORT in this process and return what it saw."""
    assert main(['run', str(script), str(folder / 'report.json'), *args]) == 0
    return json.loads((folder / 'report.json').read_text())


@pytest.fixture
def report_script(tmp_path: Path) -> Path:
    (tmp_path / 'neighbor.py').touch()
    return _script(tmp_path, REPORT)


@pytest.fixture(autouse=True)
def no_neighbor_stays_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, 'neighbor', raising=False)


def test_version_is_the_packages(capsys):
    """Help and usage errors of the whole command are tested in test_core_only.py."""
    with pytest.raises(SystemExit, match='0'):
        main(['--version'])
    assert capsys.readouterr().out == f'timm-p2be {timm_p2be.__version__}\n'


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error():
    command = [sys.executable, '-m', 'timm_p2be.cli', 'show', 'thermometer']
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        child.stdout.close()
        assert child.stderr.read() == ''
    assert child.returncode == 1


@pytest.mark.parametrize(
    ('args', 'words'),
    [
        (['run'], 'Got no SCRIPT; https://github.com/huggingface/pytorch-image-models'),
        (['run', 'validate.py', '--model', 'wrn40_2_p2be'], 'validate.py not a file'),
        (['run', '.'], "'.', not a file"),
        (['run', '--unknown', 'script.py'], 'unrecognized arguments: --unknown'),
        (['train', '--unknown'], 'timm-p2be train: error: unrecognized'),
    ],
)
def test_wrong_usage_exits_2(args, words, tmp_path, monkeypatch, refused):
    _script(tmp_path, '')
    monkeypatch.chdir(tmp_path)
    said = refused(*args)
    assert not [word for word in words.split() if word not in said]


def test_training_is_started_both_ways(monkeypatch, capsys):
    """As `train_scripts/train.py`, which the tests of training start; each names itself."""
    words = ['--data-dir', 'nowhere', '--model', 'test_resnet']
    assert main(['train', *words]) == 2
    assert 'timm-p2be train: error: --data-dir nowhere: no such folder' in capsys.readouterr().err
    monkeypatch.setattr(sys, 'argv', ['', *words])
    with pytest.raises(SystemExit, match='2'):
        runpy.run_module('timm_p2be.training', run_name='__main__')
    assert 'python -m timm_p2be.training: error: --data-dir nowhere: no such folder' in capsys.readouterr().err


def test_script_sees_what_python_gives_it(report_script, tmp_path, monkeypatch):
    """Its folder first, which for a link is the real one."""
    monkeypatch.chdir(tmp_path)
    args = ['--help', '--version', '-x', '--', 'run', '--name=a b', '']
    seen = _report(tmp_path, report_script.name, *args)
    assert seen['argv'] == [str(report_script), str(tmp_path / 'report.json'), *args]
    assert (seen['name'], seen['file'], seen['main']) == ('__main__', str(report_script), str(report_script))
    assert seen['path'] == [str(tmp_path), *sys.path[1:]]
    link = tmp_path / 'bin' / 'link.py'
    link.parent.mkdir()
    link.symlink_to(report_script)
    seen = _report(tmp_path, link)
    assert (seen['file'], seen['path'][0]) == (str(link), str(tmp_path))


def test_a_checkout_of_timm_does_not_replace_the_installed_one(report_script, tmp_path):
    (tmp_path / 'timm').mkdir()
    (tmp_path / 'timm' / '__init__.py').touch()
    spec = PathFinder.find_spec('timm', _report(tmp_path, report_script)['path'])
    assert spec.origin == timm.__file__


def test_this_process_is_as_it_was(report_script, tmp_path):
    before = sys.argv, sys.path[:], sys.modules['__main__']
    _report(tmp_path, report_script)
    assert (sys.argv, sys.path, sys.modules['__main__']) == before
    with pytest.raises(SystemExit, match='no'):  # a code that is passed on
        main(['run', str(_script(tmp_path, 'raise SystemExit("no")'))])
    assert (sys.argv, sys.path, sys.modules['__main__']) == before


def test_timms_flags_know_the_papers_augmentation(tmp_path, capsys):
    code = "from timm.data import create_transform as make; print(make(32, is_training=True, auto_augment='p2be-3'))"
    assert main(['run', str(_script(tmp_path, code))]) == 0
    assert 'AugMix(severity=3.0' in capsys.readouterr().out


def test_scripts_run_with_a_timm_that_it_does_not_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'timm_p2be.timm_script', None)  # its import fails
    assert main(['run', str(_script(tmp_path, 'print("validated")'))]) == 0
    said = capsys.readouterr()
    assert (said.out, 'timm-p2be run: ' in said.err) == ('validated\n', True)


@pytest.mark.slow
def test_spawned_processes_find_the_scripts_functions(tmp_path):
    """And the models and optimizers are registered."""
    command = str(Path(sys.executable).with_name('timm-p2be'))
    done = _start(sys.executable, command, 'run', str(_script(tmp_path, SPAWN_POOL)), '--help')
    assert done.returncode == 5, done.stderr
    *loaded, pooled, names = done.stdout.splitlines()
    assert sorted(loaded) == ['loaded as __main__', 'loaded as __mp_main__']
    assert pooled == repr((9, '__mp_main__', ['--help']))
    assert {'wrn40_2_p2be', 'resnet50_p2be', 'sgdp2be', 'adamwp2be'} <= set(names.split())


@pytest.mark.slow
def test_torchrun(tmp_path):
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    done = _start(*torchrun, '-m', 'timm_p2be.cli', 'run', str(_script(tmp_path, RANKS)), str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / rank).read_text() for rank in '01'] == ['wrn10_2_p2be'] * 2
