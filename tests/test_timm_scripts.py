"""timm's own scripts, unmodified, train, test and export a P2BE network.

They are not in timm's wheel: TIMM_SCRIPTS names a checkout of https://github.com/huggingface/pytorch-image-models, of
which only the scripts are used.
"""

import argparse
import csv
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import published
import pytest
import timm
import torch
import yaml
from safetensors.torch import load

from timm_p2be.data.digits import write_digits
from timm_p2be.training.arguments import RECIPES, build_parser

pytestmark = pytest.mark.slow

SCRIPTS = ('train.py', 'validate.py', 'onnx_export.py')
RUN = (sys.executable, '-m', 'timm_p2be.cli', 'run')
MODEL = ('--model', 'wrn10_2_p2be', '--num-classes', '10')
IMAGES = {'train': 16, 'validation': 6}  # of each class
BATCH = 20
STEPS = 10 * IMAGES['train'] // BATCH  # of an epoch


@pytest.fixture(scope='module')
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scripts alone: beside them in the checkout lies a timm that would be imported first."""
    checkout = os.environ.get('TIMM_SCRIPTS')
    if not checkout:
        pytest.skip('TIMM_SCRIPTS is not set: it names a checkout of huggingface/pytorch-image-models')
    folder = tmp_path_factory.mktemp('scripts')
    for name in SCRIPTS:
        shutil.copy(Path(checkout) / name, folder)
    return folder


@pytest.fixture(scope='module')
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few handwritten digits of each class."""
    every, few = (tmp_path_factory.mktemp(name) for name in ('every', 'few'))
    write_digits(every)
    for split, count in IMAGES.items():
        for label in range(10):
            (few / split / str(label)).mkdir(parents=True)
            for path in sorted((every / split / str(label)).glob('*.png'))[:count]:
                shutil.copy(path, few / path.relative_to(every))
    return few


def _start(scripts: Path, *command: str | Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a command in the scripts' folder and return what it printed."""
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run([str(word) for word in command], cwd=scripts, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _train(
    scripts: Path, digits: Path, output: Path, *flags: str | Path, environment: Mapping[str, str] | None = None
) -> Path:
    """Train as the README says, without our launcher, and return the run's folder."""
    data = ('--data-dir', digits, '--device', 'cpu', '--workers', '0', '--batch-size', str(BATCH), '--no-aug')
    optimizer = '--opt sgdp2be --lr 0.1 --sched step --warmup-epochs 0 --opt-kwargs embedding_lr=0.01'.split()
    where = ('--output', output.parent, '--experiment', output.name)
    command = (sys.executable, 'train.py', '--device-modules', 'timm_p2be')
    _start(scripts, *command, *MODEL, *data, *optimizer, *where, *flags, environment=environment)
    return output


@pytest.fixture(scope='module')
def first_run(scripts: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train(scripts, digits, tmp_path_factory.mktemp('output') / 'first', '--epochs', '3')


@pytest.fixture(scope='module')
def resumed_run(scripts: Path, digits: Path, first_run: Path) -> Path:
    flags = ('--epochs', '4', '--resume', first_run / 'last.pth.tar')
    return _train(scripts, digits, first_run.with_name('resumed'), *flags)


def test_our_flags_have_timms_names_and_defaults(scripts):
    """Of timm 1.0.31; -c is in a parser of its own there, and what keeps and shows runs is ours."""
    parsers = build_parser(), runpy.run_path(str(scripts / 'train.py'))['parser']
    ours, theirs = ({action.dest: action.default for action in parser._actions} for parser in parsers)
    own = {'config', 'overwrite', 'recovery_minutes', 'max_bad_samples', 'dist_timeout', 'data_on_device'}
    own |= {'log', 'log_project'}
    shared = [name for name in ours if not name.startswith('p2be_') and name not in own]
    assert {name: theirs[name] for name in shared} == {name: ours[name] for name in shared}


@pytest.mark.parametrize('name', ['cifar10', 'cifar100', 'imagenet'])
def test_recipes_for_it_have_its_flags(scripts, name, monkeypatch):
    """timm takes any key from a file and ignores what it does not know."""
    file = RECIPES / 'timm' / f'{name}.yaml'
    train = runpy.run_path(str(scripts / 'train.py'))
    monkeypatch.setattr(sys, 'argv', ['train.py', '-c', str(file)])
    args, _ = train['_parse_args']()
    recipe = yaml.safe_load(file.read_text(encoding='utf-8'))
    assert recipe.keys() <= {action.dest for action in train['parser']._actions}
    assert {key: getattr(args, key) for key in recipe} == recipe


def test_recipes_of_ours_are_refused(scripts, digits, tmp_path):
    command = (*RUN, 'train.py', '-c', RECIPES / 'quickstart.yaml', '--device-modules', 'timm_p2be')
    words = [str(word) for word in (*command, '--data-dir', digits, '--output', tmp_path / 'output')]
    done = subprocess.run(words, cwd=scripts, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'train_scripts/recipes/timm/cifar10.yaml' in done.stderr.splitlines()[-1]
    assert not (tmp_path / 'output').exists()


def _summary(run: Path) -> list[dict[str, str]]:
    with (run / 'summary.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def _checkpoint(run: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):  # timm saves the arguments as well
        return torch.load(run / 'last.pth.tar', weights_only=True)


def _table_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The state that the optimizer keeps for the table."""
    (group,) = [group for group in checkpoint['optimizer']['param_groups'] if group.get('embedding')]
    (index,) = group['params']
    return checkpoint['optimizer']['state'][index]


def test_training_resumes(first_run, resumed_run):
    assert [row['epoch'] for row in _summary(first_run)] == ['0', '1', '2']
    assert [row['epoch'] for row in _summary(resumed_run)] == ['3']
    losses = [float(row['train_loss']) for run in (first_run, resumed_run) for row in _summary(run)]
    assert losses[3] < losses[0], 'the resumed run starts where the first one ended'

    first, resumed = _checkpoint(first_run), _checkpoint(resumed_run)
    assert (first['epoch'], resumed['epoch']) == (2, 3)
    assert int(_table_state(first)['step']) == 3 * STEPS
    assert int(_table_state(resumed)['step']) == 4 * STEPS
    for moment in ('exp_avg', 'exp_avg_sq'):
        assert _table_state(resumed)[moment].shape == (256, 64)
        assert _table_state(resumed)[moment].any()
    (table,) = [name for name in first['state_dict'] if name.endswith('embedding.weight')]
    assert not torch.equal(first['state_dict'][table], resumed['state_dict'][table])


def test_its_recipe_trains_with_augmentation(scripts, digits, tmp_path):
    """What it computes: test_timm_script.py, test_optim_smoothness.py and benchmarks/compare_scripts.py."""
    data = ('--dataset', '', '--data-dir', digits, '--device', 'cpu', '--workers', '1', '--batch-size', '160')
    tables = []
    for epochs in '12':
        where = ('--output', tmp_path, '--experiment', epochs, '--epochs', epochs)
        command = (sys.executable, 'train.py', '-c', RECIPES / 'timm' / 'cifar10.yaml', '--model', 'wrn10_2_p2be')
        _start(scripts, *command, *data, *where)
        tables.append(_checkpoint(tmp_path / epochs)['state_dict']['conv1.embedding.weight'])
    assert not torch.equal(*tables)
    assert [len(_summary(tmp_path / epochs)) for epochs in '12'] == [1, 2]


def test_validation_sees_the_trained_network(scripts, digits, resumed_run):
    (summary,) = _summary(resumed_run)
    common = (*MODEL, '--checkpoint', resumed_run / 'last.pth.tar', '--device', 'cpu', '--workers', '1', '-b', '30')
    result = json.loads(_start(scripts, *RUN, 'validate.py', *common, '--data-dir', digits).split('--result\n')[1])
    expected = [float(summary['eval_top1']), float(summary['eval_top5'])]
    assert [result['top1'], result['top5']] == pytest.approx(expected, abs=1e-3)


def test_onnx_export(scripts, first_run, tmp_path):
    pytest.importorskip('onnx')
    runtime = pytest.importorskip('onnxruntime')
    file, checkpoint = tmp_path / 'network.onnx', first_run / 'last.pth.tar'
    _start(scripts, *RUN, 'onnx_export.py', file, *MODEL, '--checkpoint', checkpoint, '--check-forward')
    session = runtime.InferenceSession(file, providers=['CPUExecutionProvider'])
    images = torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0)) / 255
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.serialization.safe_globals([argparse.Namespace]):
        model = timm.create_model('wrn10_2_p2be', num_classes=10, checkpoint_path=str(checkpoint)).eval()
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=1e-4, atol=1e-4)


def test_a_published_table_stays_frozen(scripts, digits, hub, tmp_path):
    hub.put('tester/table', published.embedding(tmp_path / 'table'), tag='v1')
    hub.put('tester/table', {'config.json': b'{}'})  # of no use
    released = hub.environment(tmp_path / 'cache')
    table = ('--model-kwargs', 'embedding=tester/table@v1', 'freeze_embedding=True')
    flags = (*table, '--weight-decay', '0.5', '--model-ema', '--model-ema-decay', '0.5', '--epochs')
    run = _train(scripts, digits, tmp_path / 'frozen', *flags, '1', environment=released)
    resumed = ('2', '--resume', run / 'last.pth.tar')
    again = _train(scripts, digits, tmp_path / 'resumed', *flags, *resumed, environment=released)
    latents = load(hub.repos['tester/table'].at('v1').files['model.safetensors'].content)['weight'].numpy().tobytes()
    for folder in (run, again):
        for key in ('state_dict', 'state_dict_ema'):
            assert _checkpoint(folder)[key]['conv1.embedding.weight'].numpy().tobytes() == latents
    assert not torch.equal(_checkpoint(run)['state_dict']['fc.weight'], _checkpoint(again)['state_dict']['fc.weight'])
    assert hub.count('GET .*/model.safetensors') == 1
