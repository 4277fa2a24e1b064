"""The corruption benchmark: its figures, resuming, running out of memory or disk, several ranks, the commands."""

import json
import os
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
from runs import OPEN_FILES
from torch import Tensor, nn

from timm_p2be.cli import main
from timm_p2be.robustness.corruptions import CORRUPTIONS, SEVERITIES
from timm_p2be.robustness.corruptions.generated_set import GeneratedSet
from timm_p2be.robustness.evaluation import results
from timm_p2be.robustness.evaluation.attack_benchmark import benchmark_attacks
from timm_p2be.robustness.evaluation.corruption_benchmark import benchmark_corruptions, figures_of
from timm_p2be.robustness.evaluation.corruption_metrics import ALEXNET_ERRORS, summarize
from timm_p2be.robustness.evaluation.results import unpack_bits
from timm_p2be.robustness.images import ImageSet
from timm_p2be.robustness.pixel_model import PixelModel

pytestmark = OPEN_FILES
NAMES = ('fog', 'brightness')
# errors in % of Table III, the mCE that their mean gives (the CEs are rounded, the paper prints 68.2 and 65.6), and the
# unnormalized mean
TABLE_III = {
    'RGB': ((66, 66, 65, 69, 82, 65, 66, 73, 73, 62, 58, 63, 80, 67, 70), 68.33, 53.9),
    'P2BE': ((62, 61, 61, 67, 77, 63, 64, 71, 71, 63, 58, 63, 74, 61, 67), 65.53, 51.7),
}


def images(count: int = 7) -> ImageSet:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
    return ImageSet([(Image.fromarray(x), i % 10) for i, x in enumerate(pixels)], 'noise', size=32)


def corrupted(count: int = 7, seed: int = 0) -> GeneratedSet:
    return GeneratedSet(images(count), 'cifar', NAMES, (1, 2), seed=seed)


def untrained(name: str = 'wrn10_2', seed: int = 0, num_classes: int = 10) -> PixelModel:
    torch.manual_seed(seed)
    return PixelModel(timm.create_model(name, num_classes=num_classes), (0, 0, 0), (1, 1, 1))


class Brightness(nn.Module):
    """A classifier that can be computed by hand: the class is the mean level, in steps of 25.6."""

    num_classes = 10
    pretrained_cfg: dict[str, Any] = {'input_size': (3, 32, 32), 'mean': (0, 0, 0), 'std': (1, 1, 1)}  # noqa: RUF012

    def __init__(self, largest: int = 1000) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.largest, self.seen = largest, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.largest:
            raise RuntimeError('[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: not enough memory')
        self.seen.append(len(x))
        return -(10 * x.mean((1, 2, 3))[:, None] - torch.arange(10) - 0.5).abs()


@pytest.mark.parametrize('row', TABLE_III)
def test_means_of_the_papers_table(row: str) -> None:
    ces, mce, mean = TABLE_III[row]
    errors = {
        name: dict.fromkeys(SEVERITIES, ce / 100 * ALEXNET_ERRORS[name])
        for name, ce in zip(CORRUPTIONS, ces, strict=True)
    }
    figures = summarize(errors)
    assert 100 * figures['mce_alexnet'] == pytest.approx(mce, abs=0.005)
    assert 100 * figures['mean_corruption_error'] == pytest.approx(mean, abs=0.05)
    assert figures['ce']['fog'] == pytest.approx(ces[9] / 100)
    extra = summarize(errors | {'saturate': dict.fromkeys(SEVERITIES, 1.0)})
    for key in ('mce_alexnet', 'mean_corruption_error'):
        assert extra[key] == figures[key]


def test_mce_needs_everything() -> None:
    errors = {name: dict.fromkeys(SEVERITIES, 0.5) for name in CORRUPTIONS}
    assert summarize(errors)['mce_alexnet'] is not None
    small = summarize(errors, 'cifar')
    assert (small['mce_alexnet'], small['ce']) == (None, {})
    assert summarize(errors | {'fog': {1: 0.5, 2: 0.5}})['mce_alexnet'] is None
    partial = summarize({name: errors[name] for name in CORRUPTIONS[:14]})
    assert partial['mce_alexnet'] is None
    assert partial['mean_corruption_error'] == 0.5
    assert summarize({'saturate': {1: 0.5}})['mean_corruption_error'] is None


def test_calibration_error_against_a_loop() -> None:
    generator = np.random.default_rng(3)
    confidence = generator.uniform(0.1, 1, 500).astype(np.float32)
    correct = generator.uniform(size=500) < 0.6
    expected = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].astype(float).mean())
    assert figures_of(correct, confidence)['ece'] == pytest.approx(expected, abs=1e-6)


def test_figures_of_a_classifier_computed_by_hand() -> None:
    data = corrupted()
    model = PixelModel(Brightness(), name='mean')
    content = benchmark_corruptions([model], data, data.clean, batch_size=3, show=False)
    for name in NAMES:
        for severity in (1, 2):
            pixels = np.concatenate([x.numpy() for x, _ in data.batches(name, severity, [range(7)])])
            expected = np.floor(pixels.mean((1, 2, 3)) / 25.5) == np.arange(7)
            figures = content['results']['mean'][name][str(severity)]
            assert unpack_bits(figures['correct'], 7).tolist() == expected.tolist()
            assert figures['error'] == (~expected).sum() / 7
    assert content['complete']
    assert content['clean']['mean']['examples'] == 7
    json.dumps(content, allow_nan=False)


class Counted(GeneratedSet):
    """Remembers which sets were made."""

    def __init__(self) -> None:
        super().__init__(images(), 'cifar', NAMES, (1, 2))
        self.made: list[tuple[str, int]] = []

    def batches(self, name: str, severity: int, *args: Any) -> Any:
        self.made.append((name, severity))
        return super().batches(name, severity, *args)


def test_all_models_see_the_same_images() -> None:
    data = Counted()
    models = [untrained().model, untrained('wrn10_2_p2be')]  # a plain timm model is wrapped
    content = benchmark_corruptions(models, data, show=False)
    assert data.made == [(name, severity) for name in data.names for severity in (1, 2)]
    assert set(content['results']) == {'wrn10_2', 'wrn10_2_p2be'}
    alone = benchmark_corruptions(models[1:], corrupted(), show=False)
    assert alone['results']['wrn10_2_p2be'] == content['results']['wrn10_2_p2be']


def named(names: str, labels: str) -> ImageSet:
    """Images of which `Brightness` says 0, 1, ...; their classes are `labels`, numbered in the order `names`."""

    class Named(list[Any]):
        class_to_idx = {name: index for index, name in enumerate(names)}  # noqa: RUF012

    pixels = [Image.new('RGB', (32, 32), (26 * index + 5,) * 3) for index in range(len(labels))]
    return ImageSet(Named(zip(pixels, map(names.index, labels), strict=True)), 'gray', size=32)


def test_classes_are_compared_by_name_and_else_by_count() -> None:
    model = PixelModel(Brightness(), name='mean', class_names='abcdefghij')
    bare = PixelModel(Brightness(), name='bare')

    def error(model: PixelModel, clean: ImageSet) -> float:
        data = GeneratedSet(clean, 'cifar', NAMES[1:], (1,))
        return benchmark_corruptions([model], data, clean, show=False)['clean'][model.name]['error']

    assert error(model, named('jihgfedcba', 'abcdefghij')) == 0
    assert error(model, named('ca', 'aac')) == pytest.approx(1 / 3)  # of some of the classes
    with pytest.raises(ValueError, match="the corrupted set has the class 'x', mean has a, b, c"):
        error(model, named('abx', 'ab'))
    assert error(bare, named('abcdefghij', 'abcdefghij')) == 0
    with pytest.raises(ValueError, match=r'bare has 10 classes, the data 4 .*--class-map'):
        error(bare, named('abcd', 'abcd'))
    with pytest.raises(ValueError, match=r'bare has 10 classes, the data 4 \(gray\)'):
        benchmark_attacks(bare, named('abcd', 'abcd'), [])
    assert [label for _, label in named('ca', 'aac').numbered_for(model)] == [0, 0, 2]


def test_resume_does_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / 'results.json'
    whole = benchmark_corruptions([untrained()], corrupted(), images(), output=tmp_path / 'whole.json', show=False)
    write, stopped = results.write_json, 3

    def stop(path: Path, content: dict[str, Any]) -> None:
        nonlocal stopped
        stopped -= 1
        if stopped < 0:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(results, 'write_json', stop)
        with pytest.raises(KeyboardInterrupt):
            benchmark_corruptions([untrained()], corrupted(), images(), output=output, show=False)
    assert not json.loads(output.read_text())['complete']
    data = Counted()
    assert benchmark_corruptions([untrained()], data, images(), output=output, show=False) == whole
    assert len(data.made) == 2  # of 4; the clean images and two sets were done
    assert json.loads(output.read_text()) == whole
    benchmark_corruptions([untrained()], data, images(), output=output, show=False)
    assert len(data.made) == 2


def test_other_configurations_are_not_mixed(tmp_path: Path) -> None:
    output = tmp_path / 'results.json'
    first, other = untrained(), untrained('wrn10_2_p2be')
    benchmark_corruptions([first], corrupted(), output=output, show=False)
    for models, data, message in (
        ([first], corrupted(seed=1), r'config\.data\.seed: 0 -> 1'),
        ([untrained(seed=1)], corrupted(), r'models\.0\.weights_sha256'),
        ([first, other], corrupted(), r'config\.models\.1\.architecture: None -> wrn10_2_p2be'),
    ):
        with pytest.raises(ValueError, match=message + r'.*--overwrite'):
            benchmark_corruptions(models, data, output=output, show=False)
    content = benchmark_corruptions([other], corrupted(), output=output, overwrite=True, show=False)
    assert set(content['results']) == {other.name}


def test_out_of_memory_halves_the_batch(capsys: pytest.CaptureFixture[str]) -> None:
    small, large = Brightness(largest=2), Brightness()
    content = benchmark_corruptions([PixelModel(small, name='m')], corrupted(), batch_size=7)
    assert content['results'] == benchmark_corruptions([PixelModel(large, name='m')], corrupted())['results']
    assert small.seen[1:] == [1] * 7 * 4  # 7, 3, then 1 at a time; the first is a check with one image
    assert 'm: out of memory, going on with 3 images at a time' in capsys.readouterr().err


def bad_models() -> dict[str, tuple[list[PixelModel], str]]:
    large, broken = PixelModel(Brightness(), name='m'), untrained()
    large.model.largest = 0  # type: ignore[assignment]
    nn.init.constant_(next(broken.model.parameters()), float('nan'))
    return {
        'one image is too much': ([large], 'not enough memory'),
        'classes': ([untrained(num_classes=3)], 'labels from 0 to 6, .* has 3 classes'),
        'names': ([untrained(), untrained()], 'name of its own'),
        'no numbers': ([broken], 'not finite'),
    }


@pytest.mark.parametrize('case', bad_models())
def test_models_that_do_not_fit(case: str) -> None:
    models, message = bad_models()[case]
    with pytest.raises(ValueError, match=message):
        benchmark_corruptions(models, corrupted(), show=False)


def count_writes(output: Path) -> int:
    """Run the benchmark in a process of its own, and return how often it wrote results."""
    write, written = results.write_json, []
    results.write_json = lambda path, content: written.append(write(path, content))
    benchmark_corruptions([untrained()], corrupted(), images(), batch_size=2, output=output, show=False)
    return len(written)


def test_two_ranks_give_the_results_of_one(tmp_path: Path) -> None:
    output = tmp_path / 'results.json'
    alone = benchmark_corruptions([untrained()], corrupted(), images(), batch_size=2, show=False)
    assert run_ranks(count_writes, output) == [5, 0]  # the first rank alone writes
    shared, alone = json.loads(output.read_text()), json.loads(json.dumps(alone))
    for key in ('config', 'clean', 'results', 'summary', 'complete'):
        assert shared[key] == alone[key]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / 'weights.pth'
    torch.save(timm.create_model('wrn10_2', num_classes=2).state_dict(), path)
    return path


def command(checkpoint: Path, *flags: str) -> list[str]:
    return ['benchmark', 'corruptions', '--model', f'wrn10_2={checkpoint}', '--mean', '0', '--std', '1', *flags]


def benchmark(checkpoint: Path, *flags: str) -> int:
    return main(command(checkpoint, *flags))


def test_command(checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / 'out'
    flags = ['--data-dir', str(data), '--corruptions', 'fog', '--severities', '1', '5', '--limit', '5']
    flags += ['--output', str(output), '--extra', '--seed', '3', '--amp-dtype', 'bfloat16']
    assert benchmark(checkpoint, *flags) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == (output / 'report.md').read_text().strip()
    assert 'data:image/svg+xml' in (output / 'report.html').read_text()
    content = json.loads((output / 'results.json').read_text())
    assert content['config']['data']['images'] == 5
    assert content['config']['data']['seed'] == 3
    assert content['config']['precision'] == 'bfloat16'
    assert len(content['config']['corruptions']) == 5
    assert benchmark(checkpoint, *flags) == 0


def test_corrupt_then_benchmark(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, clean = tmp_path / 'stored', ['--data-dir', str(data)]
    flags = ['corrupt', *clean, '--name', *NAMES, '--seed', '4', '--output', str(stored)]
    assert main(flags) == 0
    assert 'written' in capsys.readouterr().out
    common = ['--corruptions', *NAMES]
    assert benchmark(checkpoint, '--corrupted', str(stored), *clean, *common, '--output', str(tmp_path / 'a')) == 0
    assert benchmark(checkpoint, *clean, *common, '--seed', '4', '--output', str(tmp_path / 'b')) == 0
    read = [json.loads((tmp_path / name / 'results.json').read_text()) for name in 'ab']
    assert read[0]['results'] == read[1]['results']
    assert read[0]['clean'] == read[1]['clean']
    assert read[0]['config']['data']['label'] == read[1]['config']['data']['label']


def test_bad_flags_of_corrupt(data: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    for flag, value, message in (
        ('--name', 'rain', 'has no corruption rain'),
        ('--severity', '7', 'choose from'),
        ('--severity', '2', 'CIFAR-C has all'),
    ):
        assert message in refused('corrupt', '--data-dir', data, '--output', tmp_path / 'out', flag, value)
        assert not (tmp_path / 'out').exists()


BAD_FLAGS = {
    'no data': ([], 'No clean images: pass --data-dir DIR'),
    'unknown corruption': (['--data-dir', 'DATA', '--corruptions', 'rain'], 'no corruption rain'),
    'seed of stored images': (['--corrupted', 'DATA', '--seed', '1'], '--seed is for corruptions that are made here'),
    'batch size': (['--data-dir', 'DATA', '--corruptions', 'fog', '--batch-size', '0'], 'batch_size=0'),
    'size': (['--data-dir', 'BIG', '--corruptions', 'fog'], '40x40 pixels, not 32x32'),
    'split without data': (['--corrupted', 'DATA', '--split', 'test'], 'Got flags of clean images, but no such'),
}


@pytest.mark.parametrize('case', BAD_FLAGS)
def test_bad_flags(checkpoint: Path, data: Path, tmp_path: Path, case: str, refused: Callable[..., str]) -> None:
    flags, message = BAD_FLAGS[case]
    for name in 'ab':
        (tmp_path / 'big' / name).mkdir(parents=True)
        Image.new('RGB', (40, 40)).save(tmp_path / 'big' / name / 'x.png')
    flags = [{'DATA': str(data), 'BIG': str(tmp_path / 'big')}.get(flag, flag) for flag in flags]
    error = refused(*command(checkpoint), *flags, '--output', tmp_path / 'out')
    assert 'timm-p2be benchmark corruptions: error: ' in error
    assert message in error


@pytest.mark.parametrize('disk_full', [False, True])
def test_stopped_command_says_what_is_kept(
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    disk_full: bool,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
) -> None:
    output, write = tmp_path / 'out', results.write_json

    def stop(path: Path, content: dict[str, Any]) -> None:
        if disk_full and content['results']:
            raise OSError(28, 'No space left on device', str(path))
        write(path, content)
        if not disk_full and len(content['results'].get('wrn10_2', {}).get('fog', ())) == 2:
            signal.raise_signal(signal.SIGTERM)  # at once, in this thread

    flags = ['--data-dir', str(data), '--corruptions', 'fog', 'brightness', '--severities', '1', '5']
    flags += ['--output', str(output)]
    with monkeypatch.context() as patch:
        patch.setattr(results, 'write_json', stop)
        if disk_full:
            error = refused(*command(checkpoint), *flags)
            assert 'No space left on device' in error
        else:
            assert benchmark(checkpoint, *flags) == 130
            error = capsys.readouterr().err
            assert 'interrupted' in error
            report = (output / 'report.md').read_text()
            assert '(incomplete)' in report
            assert '| fog |' in report
            assert '| brightness |' not in report
    assert 'was finished is kept' in error
    kept = json.loads((output / 'results.json').read_text())
    assert kept['clean']
    assert not kept['complete']
    assert benchmark(checkpoint, *flags) == 0
    assert json.loads((output / 'results.json').read_text())['complete']
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_dead_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args: Any) -> None:
        os._exit(1)

    data = corrupted()
    monkeypatch.setattr('timm_p2be.robustness.corruptions.generated_set.corrupt', die)
    with pytest.raises(ValueError, match=r'died .* fewer --workers'):
        benchmark_corruptions([PixelModel(Brightness(), name='m')], data, workers=1, show=False)
