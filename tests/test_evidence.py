"""The grids of benchmarks/evidence: every run has flags that train.py takes, and the table it names."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from timm_p2be.training.arguments import parse_args

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / 'benchmarks' / 'evidence'
GRIDS = sorted(path.stem for path in EVIDENCE.glob('*.yaml') if path.stem != 'claims')


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EVIDENCE))


@pytest.mark.parametrize('name', GRIDS)
def test_every_run_of_a_grid_can_be_made(name: str, tmp_path: Path) -> None:
    from tables import build_table  # type: ignore[import-not-found]

    grid: dict[str, Any] = yaml.safe_load((EVIDENCE / f'{name}.yaml').read_text())
    for run in grid['runs'].values():
        words = [*grid['flags'].replace("'", '').split(), *run['flags'].split(), '--dataset', 'hfds/cifar10']
        if start := run.get('start'):
            build_table(**start).save_pretrained(tmp_path / 'start')
            words += ['--p2be-embedding', str(tmp_path / 'start')]
        args = parse_args(['-c', str(ROOT / grid['recipe']), *words], 'train.py').args
        assert (args.p2be_embedding is None) == (start is None)


def test_a_smooth_table_flips_as_many_bits_as_its_length_says() -> None:
    from measure import table_figures  # type: ignore[import-not-found]
    from tables import build_table

    for length in (4, 16):
        weight = build_table('smooth', length=length).weight
        figures = table_figures(weight, weight)
        assert figures['neighbor_distance'] == pytest.approx(14.4 / length, rel=0.15)
        assert figures['moved'] == 0
    assert torch.equal(build_table('smooth', length=4, seed=1).weight, build_table('smooth', length=4, seed=1).weight)


def test_a_control_reads_real_numbers_where_the_sign_was() -> None:
    import timm
    from controls import RealConv2d  # type: ignore[import-not-found]

    images = torch.rand(1, 3, 8, 8)
    model = timm.create_model('wrn10_2_real_p2be', num_classes=10).eval()
    assert isinstance(model.conv1, RealConv2d)
    with torch.no_grad():
        before = model.conv1(images)
        model.conv1.embedding.weight.mul_(2)
        assert torch.allclose(model.conv1(images), 2 * before, rtol=1e-5)
    assert timm.create_model('wrn10_2_pointwise', num_classes=10)(images).shape == (1, 10)


def test_the_page_is_what_the_runs_say() -> None:
    from page import PAGE, render  # type: ignore[import-not-found]

    assert PAGE.read_text() == render(), 'run benchmarks/evidence/page.py'


def test_a_claim_is_decided_when_all_seeds_are_in() -> None:
    from page import verdict

    from timm_p2be.reproduce.verdicts import over_seeds

    found = [over_seeds([-0.5, -0.51, -0.49][:seeds]) for seeds in (1, 2, 3)]
    assert [verdict(difference, 0) for difference in found] == [
        '1 of 3 seeds: undecided',
        '2 of 3 seeds: undecided',
        'supported',
    ]


def test_a_failed_run_is_named_and_counts_nowhere_else() -> None:
    from page import account

    run = {'state': 'finished', 'seconds': 3600.0, 'commit': 'a' * 40}
    ended = {'one': {**run, 'name': 'one'}, 'two': {**run, 'name': 'two', 'state': 'failed', 'commit': 'b' * 40}}
    found = account('grid', ['one', 'two', 'three'], ended)
    assert (found['finished'], found['failed'], found['left'], found['hours']) == (1, ['two'], 1, 2)
    assert (found['trained'], found['measured']) == (['aaaaaaa', 'bbbbbbb'], ['aaaaaaa'])


@pytest.mark.parametrize(
    ('error', 'stand', 'verdict'), [(85, 160, 'it fails'), (60, 140, 'it fails'), (60, 160, 'it does not fail')]
)
def test_advtrain_is_judged_by_the_rule_of_its_grid(error: float, stand: int, verdict: str) -> None:
    from page import advtrain_of_p2be

    contrain = {'clean_error': 56.0, 'attacks': {'worst_case': {'number': 154}}}
    advtrain = {'clean_error': error, 'attacks': {'worst_case': {'number': stand}}}
    assert advtrain_of_p2be({'advtrain-p2be': advtrain, 'contrain-p2be': contrain}) == verdict


def test_runs_are_compared_image_by_image() -> None:
    from page import stand_more_often

    from timm_p2be.robustness.evaluation.results import pack_bits

    def run(standing: list[bool]) -> dict[str, Any]:
        return {'attacks': {'worst_case': {'standing': pack_bits(standing), 'count': len(standing)}}}

    low, high = map(
        float, stand_more_often(run([True] * 30 + [False] * 70), run([True] * 20 + [False] * 80)).split(' to ')
    )
    assert 3 < low < 10 < high < 17
