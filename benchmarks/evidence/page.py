#!/usr/bin/env python3
"""Write docs/evidence.md from the grids, the claims and the result files of finished runs.

    python benchmarks/evidence/page.py [--check]

Claims are decided by the rule at the head of claims.yaml: a t interval of the differences between runs of equal seed.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from measure import ATTACKS

from timm_p2be.reproduce import verdicts
from timm_p2be.reproduce.grid import Claim
from timm_p2be.reproduce.verdicts import CONTRADICTED, REPRODUCED, UNDECIDED, Difference
from timm_p2be.robustness.evaluation.results import interval_of_differences, unpack_bits

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / 'docs' / 'evidence.md'
GRIDS = ('starts', 'networks', 'table2', 'controls', 'adversarial')
ENCODINGS = ('rgb', 'onehot', 'thermometer', 'p2be-paper', 'p2be', 'p2be-frozen')  # of table2.yaml
SEEDS = (42, 43, 44)
PAIRS = (  # of adversarial.yaml, compared image by image
    ('contrain-p2be', 'contrain-rgb'),
    ('contrain-p2be', 'contrain-thermometer'),
    ('contrain-p2be', 'contrain-p2be-lambda0'),
    ('advtrain-p2be', 'contrain-p2be'),
)

Run = dict[str, Any]


def verdict(found: Difference, bound: float) -> str:
    """Return what the interval says of "below `bound`", once all seeds are in."""
    if found.seeds < len(SEEDS):
        return f'{found.seeds} of {len(SEEDS)} seeds: undecided' if found.seeds else 'not run'
    words = {REPRODUCED: 'supported', CONTRADICTED: 'contradicted', UNDECIDED: 'undecided'}
    return words[verdicts.decide(Claim('', '', '', '', '', within=bound), found)]


def read_runs(folder: Path = HERE / 'runs') -> dict[str, Run]:
    """Return the runs that ended by name, failed ones among them."""
    runs = (json.loads(file.read_text()) for file in sorted(folder.glob('*.json')))
    return {run['name']: run for run in runs}


def errors(runs: dict[str, Run], encoding: str, error: str) -> dict[int, float]:
    """Return an error of table2.yaml's runs by seed, in %."""
    names = {seed: f'augmix-{encoding}-seed{seed}' for seed in SEEDS}
    return {seed: runs[name][f'{error}_error'] for seed, name in names.items() if name in runs}


def difference(runs: dict[str, Run], lower: str, than: str, error: str) -> Difference:
    """Return the paired difference of two encodings, of 0 seeds if there is no pair."""
    one, other = errors(runs, lower, error), errors(runs, than, error)
    paired = [one[seed] - other[seed] for seed in SEEDS if seed in one and seed in other]
    return verdicts.over_seeds(paired) or Difference(0.0, None, None, 0)


def decide(runs: dict[str, Run], claim: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a claim: with `p2be-paper` in the place of `p2be`, which decides, then with ours."""
    lower = claim['lower']
    if isinstance(lower, list):
        by_name = {name: errors(runs, name, claim['error']) for name in lower}
        measured = [(statistics.mean(values.values()), name) for name, values in by_name.items() if values]
        lower = min(measured)[1] if len(measured) == len(lower) else lower[0]
    than, rows = claim['than'], []
    # its own start, frozen, exists for ours alone
    sides = ('p2be-paper', 'p2be') if lower == 'p2be' and than != 'p2be-frozen' else (lower,)
    for side in sides:
        found = difference(runs, side, than, claim['error'])
        rows.append({'lower': side, 'than': than, 'found': found, 'verdict': verdict(found, claim.get('within', 0.0))})
    return rows


def in_turn(run: Run) -> list[int]:
    """Return how many of the first images are right, then stand after each of ATTACKS in turn, by all surrogates."""
    faced = run['attacks']['worst_case']['attacks']
    left = {name: entry['faced'] - entry['number'] for name, entry in faced.items()}
    last = [min(count for name, count in left.items() if name.startswith(attack)) for attack in ATTACKS]
    return [next(iter(faced.values()))['faced'], *last]


def stand_more_often(one: Run, other: Run) -> str:
    """Return the interval of how many more of the same images stand of one run than of another, in points."""
    worst = [run['attacks']['worst_case'] for run in (one, other)]
    first, second = (np.asarray(unpack_bits(case['standing'], case['count']), np.float64) for case in worst)
    return interval_of_differences(first - second)


def advtrain_of_p2be(runs: dict[str, Run]) -> str:
    """Return what the rule at the head of adversarial.yaml says."""
    if not {'advtrain-p2be', 'contrain-p2be'} <= runs.keys():
        return 'not run'
    run, other = runs['advtrain-p2be'], runs['contrain-p2be']
    fewer = run['attacks']['worst_case']['number'] < other['attacks']['worst_case']['number']
    return 'it fails' if run['clean_error'] >= 80 or fewer else 'it does not fail'


def account(name: str, planned: Collection[str], ended: dict[str, Run]) -> dict[str, Any]:
    """Return what became of the runs of a grid."""
    runs = [ended[run] for run in planned if run in ended]
    finished = [run for run in runs if run['state'] == 'finished']
    return {
        'name': name,
        'planned': len(planned),
        'finished': len(finished),
        'failed': [run['name'] for run in runs if run['state'] == 'failed'],
        'left': len(planned) - len(runs),
        'hours': sum(run['seconds'] for run in runs) / 3600,
        'trained': sorted({run['commit'][:7] for run in runs}),
        'measured': sorted({run.get('measured_commit', run['commit'])[:7] for run in finished}),
    }


def _summary(values: dict[int, float]) -> str:
    if not values:
        return '-'
    spread = f' ± {statistics.stdev(values.values()):.2f}' if len(values) > 1 else ''
    return f'{statistics.mean(values.values()):.2f}{spread}'


def render() -> str:
    """Return the page."""
    ended = read_runs()
    runs = {name: run for name, run in ended.items() if run['state'] == 'finished'}
    grids = {name: yaml.safe_load((HERE / f'{name}.yaml').read_text())['runs'] for name in GRIDS}
    claims = yaml.safe_load((HERE / 'claims.yaml').read_text())['claims']
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters['summary'] = _summary
    return environment.get_template('page.md.jinja').render(
        runs=runs,
        attacks=ATTACKS,
        in_turn=in_turn,
        grids=grids,
        claims=[{'name': name, **claim, 'rows': decide(runs, claim)} for name, claim in claims.items()],
        table2=[
            (encoding, *(errors(runs, encoding, error) for error in ('clean', 'corrupted'))) for encoding in ENCODINGS
        ],
        pairs=[
            (one, other, stand_more_often(runs[one], runs[other]))
            for one, other in PAIRS
            if {one, other} <= runs.keys()
        ],
        advtrain=advtrain_of_p2be(runs),
        kept=[account(name, grid, ended) for name, grid in grids.items()],
    )


def main() -> None:
    """Write the page, or say that it is not what the runs say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='only compare')
    if not parser.parse_args().check:
        PAGE.write_text(render())
    elif PAGE.read_text() != render():
        sys.exit('docs/evidence.md is not what the runs say: run benchmarks/evidence/page.py.')


if __name__ == '__main__':
    main()
