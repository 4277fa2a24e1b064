"""`timm-p2be benchmark leaderboard`, on the committed results of benchmarks/results."""

import json
from pathlib import Path
from typing import Any

import pytest

from timm_p2be.cli import main
from timm_p2be.robustness.evaluation.leaderboard import leaderboard

RESULTS = Path(__file__).parents[1] / 'benchmarks' / 'results'
CORRUPTIONS = RESULTS / 'corruptions' / 'results.json'


def _content(file: Path) -> Any:
    return json.loads(file.read_text())


def test_models_are_ranked_on_the_same_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [CORRUPTIONS, *sorted((RESULTS / 'attacks_eps1').glob('*.json')), RESULTS / 'attacks' / 'rgb.attacks.json']
    assert main(['benchmark', 'leaderboard', *map(str, files), '--output', str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.strip() == (tmp_path / 'report.md').read_text().strip()
    attacked, alone, corrupted = (section.table for section in leaderboard([*map(_content, files)]).sections[:3])
    assert attacked is not None
    assert [row[1] for row in attacked.rows[:3]] == ['rgb', 'p2be', 'thermometer']
    assert attacked.rows[1][4:7] == ['20.0', '64.0', '54.2 to 72.7']  # 36 of 100 stand, docs/robustness.md; Wilson
    assert alone is not None
    assert len(alone.rows) == 1
    assert corrupted is not None
    summary = _content(CORRUPTIONS)['summary']
    ranked = sorted(summary, key=lambda name: summary[name]['mean_corruption_error'])
    assert [row[1] for row in corrupted.rows] == ranked
    for row in corrupted.rows:
        assert row[5] == f'{100 * summary[row[1]]["mean_corruption_error"]:.1f}'
    low, high = map(float, corrupted.rows[1][7].split(' to '))
    more = 100 * (summary[ranked[1]]['mean_corruption_error'] - summary[ranked[0]]['mean_corruption_error'])
    assert (low + high) / 2 == pytest.approx(more, abs=0.1)
    assert high - low < 2  # paired: half the width of either interval


def test_what_is_not_finished_is_not_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file, spoil in (
        (CORRUPTIONS, lambda content: content.update(complete=False)),
        (RESULTS / 'attacks' / 'rgb.attacks.json', lambda content: content['worst_case'].update(complete=False)),
    ):
        content = _content(file)
        spoil(content)
        changed = tmp_path / 'changed.json'
        changed.write_text(json.dumps(content))
        with pytest.raises(SystemExit, match='2'):
            main(['benchmark', 'leaderboard', str(changed), '--output', str(tmp_path / 'page')])
        assert 'is not finished' in capsys.readouterr().err
        assert not (tmp_path / 'page').exists()
