"""Grids of runs: read, planned, made, measured and held against the claims of the paper."""

import fcntl
import json
import os
import re
import shlex
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import published
import pytest
import yaml
from forks import forked, hold
from runs import CPU, OPEN_FILES, SHORT, at_call, write_images

from timm_p2be.cli import main as timm_p2be
from timm_p2be.reproduce import page, planning, running
from timm_p2be.reproduce.grid import TABLES, Claim, Grid, read_grid
from timm_p2be.reproduce.verdicts import CONTRADICTED, REPRODUCED, UNDECIDED, Difference, decide, paired
from timm_p2be.robustness.corruptions import CORRUPTIONS
from timm_p2be.training.arguments import parse_args
from timm_p2be.training.epoch import Trainer
from timm_p2be.training.run import main as train

pytestmark = OPEN_FILES
SHIPPED = sorted(TABLES.glob('*.yaml'))
TINY = ' '.join(['--img-size 32 --opt sgdp2be --lr 0.05', *SHORT, *CPU, '--model encoded --model-kwargs'])


def _content(**changes: Any) -> dict[str, Any]:
    content = {
        'title': 'Table 0',
        'dataset': 'CIFAR-100',
        'images': {'train': 1000, 'test': 100},
        'flags': f'{TINY} backbone=test_resnet num_bits=8 encoding={{encoding}} --seed {{seed}}',
        'axes': {'encoding': {'One-hot': 'onehot', 'P2BE': 'p2be'}, 'seed': [1]},
        'columns': [],
        'show': ['clean', 'corrupted', 'lspga'],
        'compare': 'encoding',
        'rule': 'The rule.',
        'claims': [{'says': 'P2BE wins.', 'source': 'nowhere', 'lower': 'P2BE', 'than': 'One-hot', 'error': 'lspga'}],
        'budgets': {'small': {'corruption_images': 1, 'attack_images': 2}, 'paper': None},
    }
    return content | changes


def _file(folder: Path, **changes: Any) -> Path:
    path = folder / 'grid.yaml'
    path.write_text(yaml.safe_dump(_content(**changes), sort_keys=False))
    return path


def _corrupted(folder: Path) -> Path:
    """Write what looks like CIFAR-C of two images."""
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    for name in CORRUPTIONS:
        np.save(folder / f'{name}.npy', images)
    np.save(folder / 'labels.npy', np.tile(np.array([0, 1]), 5))
    return folder


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_shipped_grids_are_accepted_by_train_py(path):
    for budget in ('minutes', 'hours', 'paper'):
        grid = read_grid(path, budget, {'data_dir': 'data'}, embedding=None, seeds=[1])  # a plan needs no table
        running.check(grid)
        assert ('budget' in grid.scale) == (budget != 'paper')
        cells = {tuple(value for axis, value in run.cell.items() if axis != 'seed') for run in grid.runs}
        if budget == 'paper' and grid.printed:  # the paper has no RGB in Table IV
            assert cells.issuperset(grid.printed)
            assert all('RGB' in cell for cell in cells - grid.printed.keys())


def test_printed_figures_agree_with_each_other():
    """The paper's mCE is the mean of its 15 columns, up to rounding and one misprint (docs/protocol.md)."""
    for cell in read_grid(TABLES / 'III.yaml', 'paper').printed.values():
        assert float(cell['mce']) == pytest.approx(np.mean([float(cell[name]) for name in CORRUPTIONS]), abs=0.3)


def test_table_two_of_the_paper_is_sixty_commands(printed):
    words = ('--table', 'II', '--budget', 'paper', '--print-commands', '--output', 'out')
    lines = printed('reproduce', *words).splitlines()
    assert len(lines) == len(set(lines)) == 60
    command, subcommand, *words = shlex.split(lines[-1])
    assert (command, subcommand) == ('timm-p2be', 'train')
    args = parse_args(words).args
    assert (args.model, args.seed, args.epochs) == ('resnext29_4x32d_p2be', 5, 200)
    assert (args.output, args.experiment) == ('out', 'ResNeXt-P2BE-5')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'learner': 1}, "unknown keys ['learner'] allowed"),
        ({'budgets': {'small': {'epoch': 1}}}, "budget small has the unknown keys ['epoch']"),
        ({'budgets': {'small': {'axes': {'encoding': {}}}}}, 'budget small yields no run no values on encoding'),
        ({'flags': '--seed {seed}'}, 'axis encoding has no place {encoding} in flags'),
        ({'flags': '{seed} {encoding} {bits}'}, "'bits' is no axis there are encoding, seed"),
        ({'flags': '--model "wrn {seed} {encoding}'}, 'cannot be split as a shell would: No closing quotation'),
        ({'budgets': {}}, 'budgets is {} mapping'),
        ({'show': ['accuracy']}, "got ['accuracy'] allowed clean"),
        ({'paper': 'II'}, "paper.csv has no table 'II' of 1 axes"),
        ({'compare': 'network'}, "got ['network']"),
        ({'claims': [{'says': 'x'}]}, 'lacks'),
        ({'claims': [_content()['claims'][0] | {'than': 'RGB'}]}, 'no axis has the values P2BE and RGB'),
        ({'axes': {'encoding': {'a b': '', 'a_b': ''}, 'seed': [1]}, 'claims': []}, 'two runs would share a folder'),
        ({'flags': '--p2be-embedding {embedding} {seed} {encoding}'}, 'name it by --embedding'),
    ],
)
def test_bad_grids(changes, words, tmp_path):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_grid(_file(tmp_path, **changes))
    assert not [word for word in words.split() if word not in str(caught.value)], caught.value


def test_a_table_may_lie_in_a_folder_with_spaces(tmp_path):
    path = _file(tmp_path, flags='--p2be-embedding {embedding} {seed} {encoding}')
    assert 'my tables/a' in read_grid(path, embedding='my tables/a').runs[0].words


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ('--budget weeks', "Got budget 'weeks'; grid.yaml has small, paper"),
        ("--val-split ''", 'give it a --val-split'),
        ('--limit 0', 'Got 0 images to measure'),
        ('--corrupted nowhere', 'No folder nowhere'),
        ('--corrupted CIFAR-10=nowhere', 'no run has a use for nowhere'),
        ('--embedding hub_cards/p2be-m64-digits', 'leave out --embedding hub_cards/p2be-m64-digits'),
    ],
)
def test_wrong_usage_exits_2(flags, message, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(Path(__file__).parents[1])
    output = tmp_path / 'out'
    assert message in refused('reproduce', '--grid', _file(tmp_path), '--output', output, *shlex.split(flags))
    assert not (tmp_path / 'out').exists()


def test_flags_that_train_py_refuses_are_found_before_the_first_run(tmp_path):
    grid = read_grid(_file(tmp_path, flags='--hflop {seed} {encoding}'))
    with pytest.raises(ValueError, match=r'Run One_hot-1: train\.py refuses'):
        running.check(grid)
    grid = read_grid(_file(tmp_path, flags=_content()['flags'] + ' --img-size 64'), data={'data_dir': '.'})
    with pytest.raises(ValueError, match='got --img-size 64; corruptions are of'):
        running.check(grid)


def test_other_data_take_the_place_of_the_tables():
    data = {'dataset': 'hfds/folder', 'val_split': 'test', 'num_classes': 10}
    grid = read_grid(TABLES / 'VII.yaml', 'paper', data, embedding='a/b')
    assert grid.scale == 'folder instead of CIFAR-10 and CIFAR-100'
    assert list(grid.axes['dataset']) == ['CIFAR-10']
    assert {run.arguments.args.dataset for run in grid.runs} == {'hfds/folder'}
    few = read_grid(TABLES / 'VII.yaml', 'paper', {'data_dir': 'data', 'train_num_samples': 9}, embedding='a/b')
    assert few.scale == 'other images instead of CIFAR-10 and CIFAR-100'
    assert read_grid(TABLES / 'VII.yaml', 'paper', {'data_dir': 'elsewhere'}, embedding='a/b').scale == ''


def test_a_grid_becomes_a_page(tmp_path, printed, refused):
    """One run was made by its printed command, and is kept; another grid does not mix with them."""
    path, output = _file(tmp_path), tmp_path / 'out'
    data = str(write_images(tmp_path / 'data'))
    grid = read_grid(path, 'small', {'data_dir': data})
    first = planning.commands(grid, output)[0]
    assert train(first[2:]) == 0
    alone = (output / 'One_hot-1' / 'last.pth.tar').stat().st_mtime_ns
    stored = _corrupted(tmp_path / 'stored')
    words = ['reproduce', '--grid', str(path), '--data-dir', data, '--output', str(output), '--corrupted', str(stored)]
    printed(*words)
    assert (output / 'One_hot-1' / 'last.pth.tar').stat().st_mtime_ns == alone
    content = json.loads((output / 'results.json').read_text())
    assert [run['state'] for run in content['runs']] == ['finished'] * 2
    assert all({'clean', 'corrupted', 'lspga'} == run['figures'].keys() for run in content['runs'])
    one_hot, p2be = (run['figures']['lspga'] for run in content['runs'])
    claim = content['claims'][0]
    assert claim['difference']['mean'] == pytest.approx(p2be - one_hot)
    assert claim['verdict'] == UNDECIDED  # one seed
    corruptions = json.loads((output / 'P2BE-1' / 'corruptions.json').read_text())
    assert corruptions['config']['data']['subset'] == 'first 1 of 2 at each severity'
    error = corruptions['summary']['P2BE-1']['mean_corruption_error']
    assert content['runs'][1]['figures']['corrupted'] == 100 * error
    text = (output / 'report.md').read_text()
    for part in ('# Table 0 (budget small)', 'The rule.', 'not at this scale (budget small)'):
        assert part in text
    assert 'corrupted: the first 1 images of the validation split only.' in text

    outcomes = {file: file.stat().st_mtime_ns for file in output.glob('*/outcome.json')}
    printed(*words)
    assert {file: file.stat().st_mtime_ns for file in output.glob('*/outcome.json')} == outcomes
    changes = 'scale: budget small -> first 3 images; corruption_images: 1 -> 3; attack_images: 2'
    assert f'holds another grid ({changes}' in refused(*words, '--budget', 'paper', '--limit', '3')


def test_the_same_command_goes_on_and_measures_what_is_new(data, tmp_path, monkeypatch, refused, capsys):
    """After SIGTERM, and on runs that are finished; runs with other flags do not mix with them."""
    changes = {'axes': {'encoding': {'P2BE': 'p2be'}, 'seed': [1]}, 'claims': [], 'show': ['clean']}
    changes['flags'] = f'{_content()["flags"]} --epochs 2 --data-dir {data}'
    output = tmp_path / 'out'
    words = ['reproduce', '--grid', str(_file(tmp_path, **changes)), '--output', str(output)]
    with monkeypatch.context() as patch:
        at_call(patch, Trainer, '_batch', 5, lambda: signal.raise_signal(signal.SIGTERM))
        assert timm_p2be(words) == 130
    assert capsys.readouterr().err.endswith('interrupted. The same command goes on from here.\n')
    (recovery,) = (output / 'P2BE-1').glob('recovery-*.pth.tar')
    assert timm_p2be(words) == 0
    assert f'resume: {recovery}' in (output / 'P2BE-1' / 'args.yaml').read_text()
    trained = (output / 'P2BE-1' / 'last.pth.tar').stat().st_mtime_ns
    _file(tmp_path, **changes | {'show': ['clean', 'corrupted']})
    assert timm_p2be(words) == 0
    assert (output / 'P2BE-1' / 'last.pth.tar').stat().st_mtime_ns == trained
    (run,) = json.loads((output / 'results.json').read_text())['runs']
    assert (run['epochs'], {*run['figures']}) == (2, {'clean', 'corrupted'})
    _file(tmp_path, **changes | {'flags': f'{changes["flags"]} --hflip 0'})
    assert 'holds a run with other flags (hflip: 0.5, not 0.0)' in refused(*words, silent=False)


def test_a_failing_run_names_its_log(tmp_path, capsys):
    words = ['--data-dir', str(tmp_path / 'nothing'), '--output', str(tmp_path / 'out')]
    assert timm_p2be(['reproduce', '--grid', str(_file(tmp_path)), *words]) == 1
    assert 'log.txt' in capsys.readouterr().err


def test_the_grid_of_the_docs_takes_tables_of_the_hub_at_a_commit(tmp_path, hub):
    shipped = (Path(__file__).parents[1] / 'benchmarks' / 'transfer.yaml').read_text()
    commit = hub.put('someone/table', published.embedding(tmp_path / 'one'))

    def grid_with(table: str) -> Grid:
        (tmp_path / 'grid.yaml').write_text(re.sub('tables/.*', table, shipped))
        return read_grid(tmp_path / 'grid.yaml')

    with pytest.raises(ValueError, match=f'may change between two runs; name its commit, now someone/table@{commit}'):
        running.check(grid_with('someone/table'))
    grid = grid_with(f'someone/table@{commit}')
    running.check(grid)
    assert {run.arguments.args.data_dir for run in grid.runs} == {None, 'data/digits'}


def test_ours_stand_beside_the_papers(tmp_path):
    grid = read_grid(TABLES / 'II.yaml', 'paper')
    outcomes = [
        {**run.cell, 'state': 'finished', 'figures': {'clean': 20.0 + int(run.cell['seed']), 'corrupted': 30.0}}
        for run in grid.runs
    ]
    for outcome in outcomes:
        outcome['figures']['corrupted'] -= outcome['encoding'] == 'P2BE'
    page.write_page(grid, outcomes, tmp_path)
    lines = (tmp_path / 'report.md').read_text().splitlines()
    assert lines[0] == '# Table II: CIFAR-100-C and clean error with AugMix'
    ours, papers = (line for line in lines if line.startswith('| P2BE |'))
    assert ours == '| P2BE |' + ' 29.00 ± 0.00 | 23.00 ± 1.58 |' * 3
    assert papers == '| P2BE | 34.2 ± 0.2 | 22.8 ± 0.3 | 36.3 ± 0.2 | 23.3 ± 0.3 | 32.6 ± 0.2 | 20.7 ± 0.4 |'
    assert '| WideResNet | P2BE - RGB | -1.00 | -1.00 to -1.00 | +0.00 | +0.00 to +0.00 |' in lines
    verdicts = [claim['verdict'] for claim in json.loads((tmp_path / 'results.json').read_text())['claims']]
    assert verdicts == [REPRODUCED] * 3 + [UNDECIDED] * 2 + [REPRODUCED, UNDECIDED]  # the sixth allows a point


def test_a_run_that_another_process_makes_is_left_to_it(tmp_path, monkeypatch, capsys):
    """And one that diverges is listed, and in no mean."""
    monkeypatch.setattr(running, 'train', lambda words: 1)
    grid = read_grid(_file(tmp_path), 'small', {'data_dir': 'data'})
    output = tmp_path / 'out'
    (output / 'P2BE-1').mkdir(parents=True)

    def claim(told: Connection) -> None:
        with (output / 'P2BE-1' / 'claim').open('w') as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            hold(told, 'claimed')

    with forked(claim) as (_, told):
        assert told.recv() == 'claimed'
        assert running.carry_out(grid, output, {}, 'test') == 0
        said = capsys.readouterr().out
        assert '[1/2] One_hot-1: diverged\n[2/2] P2BE-1: another process is making it' in said
        assert not (output / 'report.md').exists()
    assert running.carry_out(grid, output, {}, 'test') == 0
    assert 'Diverged, and in no mean: One-hot-1, P2BE-1.' in (output / 'report.md').read_text()


def test_ranks_are_processes_of_their_own(monkeypatch):
    for name in ('WORLD_SIZE', 'SLURM_NTASKS'):
        monkeypatch.setenv(name, '4')
    running.leave_ranks()
    assert not {'WORLD_SIZE', 'SLURM_NTASKS'} & os.environ.keys()


def _outcomes(*rows: tuple[str, str, str, float | None]) -> list[dict[str, Any]]:
    return [
        {'network': network, 'encoding': encoding, 'seed': seed, 'figures': {} if value is None else {'clean': value}}
        for network, encoding, seed, value in rows
    ]


def _paired(outcomes: list[dict[str, Any]], **where: str) -> Difference | None:
    return paired(outcomes, ('network', 'encoding', 'seed'), 'encoding', 'p', 'r', 'clean', where)


def test_differences_are_paired_by_seed():
    rows = [('w', 'r', '1', 10.0), ('w', 'p', '1', 9.0), ('w', 'r', '2', 20.0), ('w', 'p', '2', 17.0)]
    rows += [('w', 'r', '3', 30.0), ('w', 'p', '3', 28.0)]
    found = _paired(_outcomes(*rows))
    assert found == pytest.approx((-2.0, -2 - 4.302653 / 3**0.5, -2 + 4.302653 / 3**0.5, 3))  # t of 2 degrees, 97.5 %
    assert _paired(_outcomes(*rows), network='d') is None
    assert _paired(_outcomes(*rows[:2])) == (-1.0, None, None, 1)


def test_a_seed_that_lacks_a_pair_is_left_out():
    """A seed counts by the mean over its networks."""
    rows: list[tuple[str, str, str, float | None]] = [
        (network, encoding, seed, 10.0 - (encoding == 'p') * (2 if network == 'w' else 4))
        for network in 'wd'
        for encoding in 'rp'
        for seed in '12'
    ]
    assert _paired(_outcomes(*rows)) == (-3.0, -3.0, -3.0, 2)
    assert _paired(_outcomes(*rows[:-1], ('d', 'p', '2', None))) == (-3.0, None, None, 1)


@pytest.mark.parametrize(
    ('low', 'high', 'within', 'verdict'),
    [
        (-2.0, -0.1, 0.0, REPRODUCED),
        (0.1, 2.0, 0.0, CONTRADICTED),
        (-1.0, 1.0, 0.0, UNDECIDED),
        (-1.0, 0.9, 1.0, REPRODUCED),
        (None, None, 0.0, UNDECIDED),
    ],
)
def test_the_interval_decides(low, high, within, verdict):
    claim = Claim('', '', 'p', 'r', 'clean', within)
    assert decide(claim, Difference(-1.0, low, high, 3)) == verdict


def _numbers(grid: Grid) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in planning.plan(grid).rows}


def test_a_plan_adds_up(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, 'measure', lambda run, seconds: planning.Speed(3.6, 0.36, 0.72))
    changes = {'axes': {**_content()['axes'], 'seed': [1, 2, 3]}}
    plan = _numbers(read_grid(_file(tmp_path, **changes), 'small', {'data_dir': 'data'}))
    # 1,000 updates; 100 validated, 75 corrupted, 2 attacked: 2 passes forward and 7 with gradient each
    hours = (1000 * 3.6 + 100 * 0.36 + 75 * 0.36 + 2 * (2 * 0.36 + 7 * 0.72)) / 3600
    assert plan['P2BE'] == ['3', '1,000', '0.3', f'{hours:.3f}', f'{3 * hours:.3f}']
    assert plan['all'] == ['6', '6,000', '-', '-', f'{6 * hours:.3f}']


def test_speed_is_measured_on_synthetic_batches(tmp_path):
    grid = read_grid(_file(tmp_path), 'small', {'data_dir': str(tmp_path / 'nowhere')})
    assert all(0 < seconds < 60 for seconds in planning.measure(grid.runs[1], 0.0))
