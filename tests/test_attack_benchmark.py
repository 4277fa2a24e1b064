"""The benchmark of attacks on a model whose weak images are known."""

import copy
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from forks import run_ranks
from PIL import Image
from planted import Push, Toss, planted_images, planted_model
from runs import OPEN_FILES
from torch import Generator, Tensor

from timm_p2be.cli import benchmark_attacks as command
from timm_p2be.cli import main
from timm_p2be.robustness.attacks.attack import Cost
from timm_p2be.robustness.attacks.judge import BrokenAttackError, seeded
from timm_p2be.robustness.evaluation.attack_benchmark import benchmark_attacks
from timm_p2be.robustness.evaluation.attack_probes import probe_curves
from timm_p2be.robustness.evaluation.attack_suite import FAMILIES, budget, build_suite, variant
from timm_p2be.robustness.evaluation.results import unpack_bits
from timm_p2be.robustness.images import ImageSet
from timm_p2be.robustness.pixel_model import PixelModel

pytestmark = OPEN_FILES
EVEN = set(range(0, 100, 2))


def felled(results: Any, name: str) -> list[int]:
    return np.flatnonzero(results.bits('worst_case', name)).tolist()


def test_an_attack_alone_fells_what_it_can_and_faces_every_image() -> None:
    push = Push('push', 5)
    data = planted_images(20, wrong=(1, 9))
    results = benchmark_attacks(planted_model(), data, [push], alone=20, worst_case=0, batch_size=7)
    entry = results.content['alone']['push']
    assert [number for batch in push.faced for number in batch] == list(range(20))
    # the attack corrects 1 of the two wrong images; they still count as fallen
    assert np.flatnonzero(unpack_bits(entry['success'], 20)).tolist() == [0, 2, 3, 4, 9]
    assert (entry['number'], entry['count'], entry['accuracy']) == (14, 20, 0.7)
    assert entry['low'] < 0.7 < entry['high']
    assert results.content['clean']['alone']['accuracy'] == 0.9
    assert entry['seconds'] > 0
    assert results.content['worst_case'] == {}


def test_the_worst_case_is_the_union_and_later_attacks_face_only_the_standing() -> None:
    first, second, third = Push('even', 6, EVEN), Push('shallow', 3), Push('deep', 8)
    results = benchmark_attacks(
        planted_model(), planted_images(20, wrong=(7,)), [first, second, third], alone=4, worst_case=20, batch_size=8
    )
    worst = results.content['worst_case']
    assert felled(results, 'even') == [0, 2, 4]
    assert felled(results, 'shallow') == [1]
    assert felled(results, 'deep') == [3, 5, 6]
    assert (worst['number'], worst['accuracy'], worst['complete']) == (12, 0.6, True)
    assert np.flatnonzero(unpack_bits(worst['standing'], 20)).tolist() == list(range(8, 20))
    # batches after the first are the worst case: no image of the subset again, none that has fallen or was wrong
    assert first.faced == [[0, 1, 2, 3], [4, 5, 6, 8, 9, 10, 11, 12], list(range(13, 20))]
    assert second.faced[1:] == [[5, 6, 8, 9, 10, 11, 12, 13], list(range(14, 20))]
    assert (worst['attacks']['deep']['faced'], worst['attacks']['deep']['taken_over']) == (15, 1)


def test_the_order_decides_who_gets_the_credit_but_not_what_falls() -> None:
    attacks = [Push('a', 6, EVEN), Push('b', 3)]
    records = [
        benchmark_attacks(planted_model(), planted_images(20), order, alone=5, worst_case=20)
        for order in (attacks, attacks[::-1])
    ]
    assert records[0].standing().tolist() == records[1].standing().tolist()
    assert [felled(each, 'b') for each in records] == [[1], [0, 1, 2]]


class Bad(Push):
    """Breaks the contract in the way it is told to."""

    def __init__(self, spoil: Callable[[Tensor], Any]) -> None:
        super().__init__('bad', 0)
        self.spoil = spoil

    def __call__(self, levels: Tensor, labels: Tensor, generator: Generator | None = None) -> Tensor:
        return self.spoil(levels.clone())


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda levels: levels + 9, 'by 9 levels; its bound is 8'),
        (lambda levels: levels - 1, 'by 255 levels'),  # 0 - 1 wraps around
        (lambda levels: levels / 255, r'torch.float32 \(20, 3, 4, 4\)'),
        (lambda levels: levels[:1], r'uint8 \(1, 3, 4, 4\)'),
        (lambda levels: levels.numpy(), 'ndarray'),
    ],
)
def test_attacks_that_break_the_contract_are_named(spoil: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(BrokenAttackError, match=f"'bad'.*{message}"):
        benchmark_attacks(planted_model(), planted_images(), [Bad(spoil)])


def test_an_attack_that_changes_the_model_is_caught() -> None:
    model = planted_model()

    def spoil(levels: Tensor) -> Tensor:
        model.model.weight.data.neg_()
        return levels

    with pytest.raises(BrokenAttackError, match='changed the weights'):
        benchmark_attacks(model, planted_images(), [Bad(spoil)])


def some_attacks() -> list[Push]:
    return [Push('a', 2), Push('b', 4, EVEN), Push('c', 6)]


def timeless(results: Any) -> dict[str, Any]:
    """What a run found, without times."""
    alone, worst = results.content['alone'], results.content['worst_case']
    entries = [{**entry, 'seconds': 0} for part in (alone, worst['attacks']) for entry in part.values()]
    return {'entries': entries, 'standing': worst['standing'], 'clean': results.content['clean']}


@pytest.mark.parametrize(('attack', 'after'), [(0, 0), (0, 1), (1, 2), (1, 3), (2, 2), (2, 4)])
def test_a_killed_run_resumes_without_repeating_finished_batches(tmp_path: Path, attack: int, after: int) -> None:
    def run(attacks: list[Push]) -> Any:
        return benchmark_attacks(
            planted_model(), planted_images(20), attacks, alone=8, batch_size=4, output=tmp_path / 'out'
        )

    whole = some_attacks()
    expected = timeless(benchmark_attacks(planted_model(), planted_images(20), whole, alone=8, batch_size=4))
    before, rest = some_attacks(), some_attacks()

    def stop(levels: Tensor) -> None:
        if len(before[attack].faced) == after:
            raise KeyboardInterrupt

    before[attack].before = stop
    with pytest.raises(KeyboardInterrupt):
        run(before)
    assert timeless(run(rest)) == expected
    for first, second, all_at_once in zip(before, rest, whole, strict=True):
        assert first.faced + second.faced == all_at_once.faced
    again = some_attacks()
    assert timeless(run(again)) == expected
    assert not any(push.faced for push in again)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'seed': 1}, r'settings\.seed: 0 -> 1'),
        ({'attacks': [Push('other', 3)]}, r'attacks\.0\.name: push -> other'),
        ({'attacks': [Push('push', 4)]}, r'attacks\.0\.backwards: 3 -> 4'),
        ({'data': planted_images(19)}, r'data\.images: 20 -> 19'),
        ({'model': PixelModel(planted_model().model, mean=(0.1,) * 3)}, r'model\.mean\.0'),
    ],
)
def test_another_configuration_needs_another_folder_or_overwrite(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    arguments = {'model': planted_model(), 'data': planted_images(), 'attacks': [Push('push', 3)], 'output': tmp_path}
    benchmark_attacks(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f'(?s){message}.*--overwrite'):
        benchmark_attacks(**{**arguments, **change})  # type: ignore[arg-type]
    benchmark_attacks(**{**arguments, **change}, overwrite=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda text: text.replace('"torch": "', '"torch": "0.'), r'versions\.torch: 0\..* -> .*--overwrite'),
        (
            lambda text: text.replace('"schema_version": 1', '"schema_version": 2'),
            "'attacks', schema version 2; this version reads",
        ),
        (lambda text: text.replace('"attacks"', '"corruptions"', 1), "kind 'corruptions', schema version 1"),
        (lambda text: text[:-9], 'cannot be read as JSON'),
        (lambda text: '[]', 'a list, not an object'),
        (lambda text: text.replace('"done"', '"x"'), 'does not hold what it should'),
        (lambda text: text.replace('"success": "', '"success": "?'), 'the result file is damaged'),
        (lambda text: text.replace('"curves": {', '"curves": 3, "x": {'), 'does not hold what it should'),
        (lambda text: text.replace('"accuracy"', '"x"'), 'does not hold what it should'),
        (lambda text: text.replace('"probes": {', '"probes": {"binarization": {"tried": "2"},'), 'does not hold'),
    ],
)
def test_files_of_other_versions_are_not_continued(tmp_path: Path, damage: Callable[[str], str], message: str) -> None:
    arguments: dict[str, Any] = {'data': planted_images(), 'attacks': [Push('push', 3)], 'output': tmp_path}
    results = benchmark_attacks(planted_model(), **arguments)
    probe_curves(planted_model(), arguments['data'], results, {'push': lambda *settings: Push('push', 3, eps=3)})
    file = tmp_path / 'th.attacks.json'
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match=message):
        benchmark_attacks(planted_model(), **arguments)


def test_randomness_does_not_depend_on_the_attacks_before() -> None:
    def tossed(attacks: list[Push], seed: int = 0) -> str:
        results = benchmark_attacks(planted_model(), planted_images(20), attacks, 255, batch_size=6, seed=seed)
        return results.content['alone']['toss']['success']

    alone = tossed([Toss('toss', 1)])
    assert tossed([Toss('other', 1), Toss('toss', 1)]) == alone
    assert tossed([Toss('toss', 1)], seed=1) != alone
    assert torch.rand(3, generator=seeded(1, 'a', 2)).tolist() != torch.rand(3, generator=seeded(1, 'a', 3)).tolist()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'eps': 0}, 'eps=0; it must be an integer of at least 1'),
        ({'eps': 256}, 'eps=256'),
        ({'alone': 0}, 'alone=0'),
        ({'worst_case': -1}, 'worst_case=-1'),
        ({'batch_size': 0}, 'batch_size=0'),
        ({'data': ImageSet([(Image.new('RGB', (4, 4)), 2)], 'other', 4)}, 'labels from 2 to 2, th has 2 classes'),
        ({'attacks': []}, 'at least one'),
        ({'attacks': [Push('a', 1), Push('a', 2)]}, 'each once. Label models'),
        ({'attacks': [Push('a', 1, eps=9)]}, 'eps=9'),
    ],
)
def test_arguments_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = {'model': planted_model(), 'data': planted_images(), 'attacks': [Push('a', 1)]}
    with pytest.raises(ValueError, match=message):
        benchmark_attacks(**{**arguments, **change})  # type: ignore[arg-type]


def test_out_of_memory_halves_the_batch(capsys: pytest.CaptureFixture[str]) -> None:
    def allocate(levels: Tensor) -> None:
        if len(levels) > 3:
            raise RuntimeError('CUDA out of memory. Tried to allocate 2 GiB')

    large, data = Push('a', 5), planted_images(20)
    large.before = allocate
    results = benchmark_attacks(planted_model(), data, [large], alone=8, batch_size=7, show=True)
    assert [len(batch) for batch in large.faced] == [3, 3, 1, 1, 3, 3, 1, 3, 2]
    assert 'a: out of memory, going on with 3 images at a time' in capsys.readouterr().err
    assert timeless(results) == timeless(benchmark_attacks(planted_model(), data, [Push('a', 5)], alone=8))


def spread(output: Path | None = None) -> list[Any]:
    """What ranks find that share the images."""
    data, model = planted_images(20, wrong=(1,)), planted_model().model  # a plain model is wrapped
    attacks = [Push('even', 6, EVEN), Toss('toss', 1, eps=255), Push('deep', 8)]
    weaker = {'a': lambda model, eps, steps: Push('a', min(eps, steps), eps=eps)}
    results = benchmark_attacks(model, data, attacks, eps=255, alone=8, batch_size=3, probed=5, output=output)
    probe_curves(PixelModel(model), data, results, weaker)  # ranks are connected once
    return [timeless(results), results.content['probes']]


def test_two_ranks_give_the_results_of_one(tmp_path: Path) -> None:
    alone = spread()
    first, second = run_ranks(spread, tmp_path)
    assert first == second == alone
    content = json.loads((tmp_path / 'th.attacks.json').read_text())
    assert content['probes'] == json.loads(json.dumps(alone[1]))


@pytest.fixture(scope='module')
def nets() -> dict[str, PixelModel]:
    torch.manual_seed(0)
    names = ('wrn10_2', 'wrn10_2_p2be', 'wrn10_2_thermometer')
    return {name: PixelModel(timm.create_model(name, num_classes=10), name=name) for name in names}


def test_the_suite_has_every_family_once_a_surrogate_and_cheapest_first(nets: dict[str, PixelModel]) -> None:
    names = [attack.name for attack in build_suite(nets['wrn10_2_thermometer'], sources=[nets['wrn10_2']])]
    assert names[:2] == ['noise', 'transfer-wrn10_2']
    assert len(names) == len(set(names)) == len(FAMILIES) + 5
    assert [len(build_suite(nets[name], names=['pgd', 'fgsm'])) for name in nets] == [2, 4, 4]
    ramp = build_suite(nets['wrn10_2_thermometer'], names=['pgd', 'pgd-ramp'])
    assert [attack.name for attack in ramp] == ['pgd-linear', 'pgd-kernel', 'pgd-ramp']
    mixed = build_suite(nets['wrn10_2_p2be'], 4, ['square', 'pgd-kernel', 'noise'])
    assert [(attack.name, attack.eps) for attack in mixed] == [('noise', 4), ('pgd-kernel', 4), ('square', 4)]
    assert 'square' not in [attack.name for attack in build_suite(nets['wrn10_2'], names=['quick'])]
    twin = PixelModel(copy.deepcopy(nets['wrn10_2'].model), name='twin')  # the same weights: no transfer
    assert build_suite(nets['wrn10_2'], names=['quick'], sources=[twin])[1].name == 'fgsm-straight-through'


@pytest.mark.parametrize(
    ('model', 'names', 'others', 'message'),
    [
        ('wrn10_2_p2be', ['pgd-ramp'], [], r"Unknown attack 'pgd-ramp' for wrn10_2_p2be.*quick.*noise.*pgd-kernel"),
        ('wrn10_2', ['transfer'], [], '--transfer-from'),
        ('wrn10_2', ['full'], ['planted'], '2 classes'),
    ],
)
def test_suites_that_cannot_be_built(
    nets: dict[str, PixelModel], model: str, names: list[str], others: list[str], message: str
) -> None:
    nets = {**nets, 'planted': planted_model()}
    with pytest.raises(ValueError, match=message):
        build_suite(nets[model], names=names, sources=[nets[name] for name in others])


def test_variants_have_the_bound_and_steps_asked_for(nets: dict[str, PixelModel]) -> None:
    suite = build_suite(nets['wrn10_2_p2be'])
    builders = {attack.name: variant(attack.name) for attack in suite}
    assert {name.split('-')[0] for name, build in builders.items() if build} == {'pgd', 'apgd', 'lspga', 'dga'}
    for name, build in builders.items():
        if build is not None:
            for steps in (1, 5):
                attack = build(nets['wrn10_2_p2be'], 3, steps)
                passes = 5 if name == 'dga' else 1
                assert (attack.name, attack.eps, attack.cost().backwards) == (name, 3, passes * steps)


def test_the_budget_multiplies_calls_by_their_time() -> None:
    text = budget([('a', 10, Cost(1, 3), (0.1, 0.2)), ('b', 20, Cost(1, 5), (0.1, 0.2))])
    assert text.endswith('at most 00:29 ([h:]min:s)')  # 10 * (0.1 + 3 * 0.2) + 20 * (0.1 + 5 * 0.2)


@pytest.fixture
def flags(tmp_path: Path, data: Path) -> list[str]:
    torch.manual_seed(0)
    torch.save(timm.create_model('wrn10_2_p2be', num_classes=2).state_dict(), tmp_path / 'net.pth')
    return [
        *('benchmark', 'attacks', '--model', f'net:wrn10_2_p2be={tmp_path}/net.pth', '--num-classes', '2'),
        *('--data-dir', str(data), '--output', str(tmp_path / 'out'), '--probed', '2'),
    ]


def test_the_command_writes_results_and_reports(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags += ['--attacks', 'noise', 'fgsm', 'pgd-kernel', '--no-curves', '--batch-size', '4']
    with monkeypatch.context() as patch:
        patch.setattr(command.probes, 'probe_gradients', lambda *ignored: signal.raise_signal(signal.SIGTERM))
        assert main(flags) == 130
    assert (tmp_path / 'out' / 'report.md').read_text().startswith('# Adversarial robustness (incomplete)')
    assert main(flags) == 0
    content = json.loads((tmp_path / 'out' / 'net.attacks.json').read_text())
    assert content['data']['images'] == content['settings']['alone'] == 8
    assert content['probes']['binarization']['tried'] == 2
    assert set(content['probes']['gradients']) == {'linear', 'kernel', 'straight-through'}
    report = (tmp_path / 'out' / 'report.md').read_text()
    assert report in capsys.readouterr().out
    assert '(incomplete)' not in report
    assert (tmp_path / 'out' / 'report.html').read_text().startswith('<!doctype html>')
    masked = {'gradient_masking_suspected': True}
    monkeypatch.setattr(command, 'conclude', lambda results: results.content.update(masked))
    assert main(flags) == 3


def test_the_budget_alone_writes_nothing(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*flags, '--budget', '--batch-size', '2']) == 0
    out = capsys.readouterr().out
    assert 'apgd-target-kernel' in out
    curves, binarization = (
        re.search(rf'{name} +2 images, .* passes and +([\d,]+) with gradient', out)[1]
        for name in ('curves', 'binarization')
    )
    assert curves == f'{3 * (8 * 40 + 188) + 8 * 7 + 188:,}'  # DGA's three passes for two classes, and LS-PGA's one
    assert binarization == '300'
    assert re.search(r'at most .*min:s', out)
    assert main([*flags, '--budget', '--attacks', 'quick']) == 0
    assert not re.search('curves|binarization', capsys.readouterr().out)
    assert not (tmp_path / 'out').exists()


def test_images_of_a_size_the_model_does_not_take_are_refused(
    flags: list[str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: PixelModel, images: Tensor) -> Tensor:
        raise AssertionError("Input height (32) doesn't match model (224)")

    monkeypatch.setattr(PixelModel, 'forward', refuse)
    said = refused(*flags, '--attacks', 'noise')
    assert "does not take images of 32x32 pixels (it was made for (3, 32, 32)): Input height (32) doesn't" in said


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--num-classes', '3'], 'does not fit'),
        (['--mean', '1', '2'], 'mean'),
        (['--data-dir', 'nowhere'], 'nowhere'),
        (['--img-size', '16'], '32x32 pixels'),
        (['--transfer-from', 'nothing'], 'Unknown model'),
        (['--batch-size', '0'], 'batch_size'),
        (['--output', '/proc/none', '--attacks', 'noise'], 'No such file or directory'),
    ],
)
def test_wrong_usage_exits_with_2_and_says_why(
    flags: list[str], more: list[str], message: str, refused: Callable[..., str]
) -> None:
    assert message in refused(*flags, *more)
