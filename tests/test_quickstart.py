"""The quickstart on a few images."""

from pathlib import Path

import pytest
from runs import write_images

import quickstart


@pytest.mark.slow  # .ci/run runs it whole
@pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's readers leave images open
def test_both_networks_are_trained_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, 'write_digits', lambda folder: write_images(tmp_path / 'images', training=128))
    assert quickstart.main(['--output', str(tmp_path / 'out'), '--epochs', '1']) == 0
    printed = capsys.readouterr().out
    assert '| wrn10_2_p2be | wrn10_2 |' in printed
    assert '| mean corruption error |' in printed
    assert {'codes.png', 'results.json', 'report.html'} <= {path.name for path in (tmp_path / 'out').iterdir()}
