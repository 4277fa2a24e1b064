"""Mutated files against everything that reads files of strangers; benchmarks/fuzz.py does it at length."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / 'benchmarks'))
import fuzz

pytestmark = [
    pytest.mark.filterwarnings('ignore::ResourceWarning'),
    pytest.mark.filterwarnings('ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning'),
]


def assert_survived(report: fuzz.Report, count: int) -> None:
    assert sum(report.inputs.values()) == count
    assert (report.foreign, report.slow, report.outside) == ({}, [], [])
    assert report.peak < 2**30


def test_a_hundred_inputs() -> None:
    report = fuzz.fuzz(100, seed=2)
    assert_survived(report, 100)
    assert sum(report.refused.values()) > 50
    assert len(report.inputs) == 13  # every way in


@pytest.mark.slow
def test_a_thousand_inputs() -> None:
    assert_survived(fuzz.fuzz(1000, seed=3), 1000)


def test_what_must_not_happen_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Path(tempfile.gettempdir()) / f'fuzz-{os.getpid()}'

    def misbehave(folder: Path) -> None:
        elsewhere.write_text('')
        elsewhere.unlink()
        while (folder / 'x').exists():
            pass
        raise KeyError('x')

    def make(beside: Path) -> dict[str, fuzz.Target]:
        hang = fuzz.Target(lambda folder, rng: (folder / 'x').write_text('') and None, misbehave)
        return {'bad': fuzz.Target(lambda folder, rng: None, misbehave), 'hang': hang}

    monkeypatch.setattr(fuzz, 'targets', make)
    report = fuzz.fuzz(8, seed=0, seconds=0.2)
    assert report.inputs.keys() == {'bad', 'hang'}
    assert len(report.slow) == report.inputs['hang']
    assert [key.partition(' in ')[0] for key in report.foreign] == ['bad: KeyError']
    assert len(report.outside) >= 8
