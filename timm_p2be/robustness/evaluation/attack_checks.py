"""Checks that tell robustness from gradient masking, as figures on a benchmark's results.

They follow Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018, section 3.1,
Carlini et al., "On Evaluating Adversarial Robustness", 2019, section 3, and, for the binarization test, Zimmermann et
al., NeurIPS 2022. A failed check is a reason to doubt the attacks; passing all is no proof.

A new check is a function under `@_check`, which has its place in reports where it stands here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from timm_p2be.robustness.evaluation.attack_results import AttackResults
from timm_p2be.robustness.evaluation.results import Bits, unpack_bits

WHITE_BOX, BLACK_BOX = ('white-box', 'one-step'), ('score', 'decision', 'transfer')  # 'decision': files of old
SIGNIFICANCE = 0.05  # of one attack beating another on the same images, one-sided sign test
EXCLUSIVE = 0.02  # share of the images that black-box attacks alone may fell
NOISE = 0.5  # of what the best gradient attack fells, noise may fell less than this, unless it is clearly beaten
FEW = 5  # images that say nothing about noise
ZERO_GRADIENT = 0.1  # share of zero or non-finite values in the best surrogate's gradient
PLATEAU = 0.01  # change of the accuracy when the steps double
SOLVED = 0.95  # share of the binarization problems an attack must solve ...
RANDOM = 0.2  # ... and the share above which a random search does, so that they say nothing

PASSED, FAILED, NOT_RUN = 'passed', 'failed', 'not run'


class Check(NamedTuple):
    """One check, as it stands in a result file."""

    name: str  # what should hold
    result: str  # 'passed', 'failed' or 'not run'
    figure: str  # what was measured
    explanation: str  # what a failure means
    masking: bool = True  # whether a failure points to masked gradients, else to an attack that was stopped early


class Outcome(NamedTuple):
    """What an attack alone felled, of the images that the model gets right."""

    name: str
    kind: str
    felled: Bits


class Evidence(NamedTuple):
    """What checks look at: the finished attacks, and the probes."""

    outcomes: list[Outcome]
    probes: Mapping[str, Any]

    def of(self, kinds: Sequence[str]) -> list[Outcome]:
        """Return the attacks of some kinds."""
        return [outcome for outcome in self.outcomes if outcome.kind in kinds and len(outcome.felled)]

    def best(self, kinds: Sequence[str]) -> Outcome | None:
        """Return the attack of some kinds that felled most."""
        return max(self.of(kinds), key=lambda outcome: int(outcome.felled.sum()), default=None)

    def lowest(self, axis: str) -> list[dict[str, Any]]:
        """Return, for each x of the curves, the point of the attack that left the fewest images."""
        curves = [curve[axis] for curve in self.probes.get('curves', {}).values()]
        return [min(points, key=lambda point: point['number']) for points in zip(*curves, strict=False)]


Finding = tuple[bool | None, str]  # whether it holds, None if nothing can be said; what was measured
Find = Callable[[Evidence], Finding]
_CHECKS: list[tuple[str, str, bool, Find]] = []


def _check(name: str, explanation: str, masking: bool = True) -> Callable[[Find], None]:
    return lambda find: _CHECKS.append((name, explanation, masking, find))


@_check(
    'an iterative attack does at least as well as one step',
    'A single step that beats many means that the gradient points nowhere useful.',
)
def _one_step(evidence: Evidence) -> Finding:
    return _compare(evidence, ('white-box',), ('one-step',))


@_check(
    'a gradient attack does at least as well as attacks without gradient',
    'Knowing the gradient cannot hurt an attacker unless the gradient misleads.',
)
def _black_box(evidence: Evidence) -> Finding:
    return _compare(evidence, WHITE_BOX, BLACK_BOX)


@_check(
    f'at most {EXCLUSIVE:.0%} of the images fall only to attacks without gradient',
    'Images that gradients cannot fell but queries or other models can are a sign of misleading gradients.',
)
def _exclusive(evidence: Evidence) -> Finding:
    white, black = evidence.of(WHITE_BOX), evidence.of(BLACK_BOX)
    if not white or not black:
        return None, 'needs attacks of both sorts, and images the model gets right'
    alone = np.any([o.felled for o in black], axis=0) & ~np.any([o.felled for o in white], axis=0)
    number, count = int(alone.sum()), len(alone)
    return number <= max(1, EXCLUSIVE * count), f'{number} of {count} images'  # one image is no sign


@_check(
    f'random noise fells less than {NOISE:.0%} of what the best gradient attack fells',
    'Noise that does as well as the gradient means that the attack uses no information.',
)
def _noise(evidence: Evidence) -> Finding:
    white, noise = evidence.best(WHITE_BOX), evidence.best(('noise',))
    if white is None or noise is None:
        return None, 'needs noise and a gradient attack'
    by_noise, by_white = int(noise.felled.sum()), int(white.felled.sum())
    text = f'noise {by_noise}, {white.name} {by_white} of {len(white.felled)} images'
    if by_noise + by_white < FEW:
        return None, f'{text}: too few to compare'
    better = white.felled.all() or _sign_test(white.felled, noise.felled) < SIGNIFICANCE
    return bool(by_noise < NOISE * by_white or better), text


@_check(
    'success grows with the bound and reaches 100 % without one',
    'Within 255 levels lies every image, so an attack that does not reach 100 % there does not work.',
)
def _bound(evidence: Evidence) -> Finding:
    points = evidence.lowest('eps')
    if len(points) < 2:
        return None, 'needs the curve over the bound'
    rises = [now['number'] - before['number'] for before, now in pairwise(points)]
    text = ', '.join(f'eps {point["x"]}: {point["accuracy"]:.0%}' for point in points) + ' stand'
    last = points[-1]
    return max(rises) <= max(1, PLATEAU * last['count']) and (last['x'] < 255 or last['number'] == 0), text


@_check(
    f'twice as many steps change the accuracy by less than {100 * PLATEAU:.0f} point',
    'If more steps still help, the accuracy reported is too high.',
    masking=False,
)
def _steps(evidence: Evidence) -> Finding:
    points = evidence.lowest('steps')
    if len(points) < 2:
        return None, 'needs the curve over the steps'
    earlier, last = points[-2:]
    text = f'{earlier["accuracy"]:.1%} stand after {earlier["x"]} steps, {last["accuracy"]:.1%} after {last["x"]}'
    enough = earlier['number'] - last['number'] <= max(1, PLATEAU * last['count'])
    return enough, f'{text} ({last["count"]} images).'


@_check(
    f'a surrogate has at most {ZERO_GRADIENT:.0%} zero or non-finite gradients',
    'Without a gradient, attacks that follow it are random.',
)
def _gradient(evidence: Evidence) -> Finding:
    gradients = evidence.probes.get('gradients')
    if not gradients:
        return None, 'needs the gradients of the surrogates'
    bad = {by: shares['zero'] + shares['nonfinite'] for by, shares in gradients.items()}
    return min(bad.values()) <= ZERO_GRADIENT, ', '.join(f'{by} {share:.1%}' for by, share in bad.items())


@_check(
    f'the attack solves at least {SOLVED:.0%} of the binarization test',
    'The test has solutions by construction: an attack that misses them misses others.',
)
def _binarization(evidence: Evidence) -> Finding:
    found = evidence.probes.get('binarization', {})
    if not found.get('separable'):
        return None, 'needs the binarization test, with separable images'
    solved, random = found['solved'] / found['separable'], found['random'] / found['separable']
    text = f'{found["attack"]} {solved:.0%}, random search {random:.0%} of {found["separable"]} images'
    if random > RANDOM and solved >= SOLVED:
        return None, f'{text}: too easy to say anything'
    return solved >= SOLVED, text


def run_checks(content: Mapping[str, Any]) -> list[Check]:
    """Return all checks of a result file's content."""
    evidence, results = Evidence(outcomes(content), content.get('probes', {})), {True: PASSED, False: FAILED}
    checks = []
    for name, explanation, masking, find in _CHECKS:
        holds, figure = find(evidence)
        checks.append(Check(name, NOT_RUN if holds is None else results[holds], figure, explanation, masking))
    return checks


def conclude(results: AttackResults) -> None:
    """Add the checks, the verdict and whether masking is suspected to a result file."""
    checks = run_checks(results.content)
    results.content['checks'] = [check._asdict() for check in checks]
    results.content['verdict'] = verdict(checks)
    results.content['gradient_masking_suspected'] = suspected(checks)
    results.write()


def verdict(checks: Sequence[Check]) -> str:
    """Return the plain sentences that a report prints."""
    failed = [check.name for check in checks if check.result == FAILED and check.masking]
    early = [check for check in checks if check.result == FAILED and not check.masking]
    text = 'No sign of gradient masking in these checks; that is no proof of robustness.'
    if failed:
        text = f'Gradient masking is suspected: these checks failed: {"; ".join(failed)}.'
    elif all(check.result == NOT_RUN for check in checks):
        text = 'No check could run; nothing is known about gradient masking.'
    skipped = sum(check.result == NOT_RUN for check in checks)
    if 0 < skipped < len(checks):
        text += f' {skipped} of {len(checks)} checks did not run.'
    return text + (f' The attacks had not converged: {early[0].figure}' if early else '')


def suspected(checks: Sequence[Check]) -> bool:
    """Return whether a check failed that points to masked gradients."""
    return any(check.result == FAILED and check.masking for check in checks)


def outcomes(content: Mapping[str, Any]) -> list[Outcome]:
    """Return the attacks, each on the clean images of the subset that the model gets right."""
    alone, worst_case = content['settings']['alone'], content['settings']['worst_case']
    correct = unpack_bits(content['clean']['correct'], max(alone, worst_case))[:alone]
    return [
        Outcome(x['name'], x['kind'], unpack_bits(content['alone'][x['name']]['success'], alone)[correct])
        for x in content['attacks']
    ]


def _compare(evidence: Evidence, stronger: Sequence[str], weaker: Sequence[str]) -> Finding:
    """Check that the best attack of the weaker kinds does not beat the best one of the stronger kinds."""
    strong, weak = evidence.best(stronger), evidence.best(weaker)
    if strong is None or weak is None:
        return None, f'needs attacks of the kinds {" or ".join(stronger)}, and {" or ".join(weaker)}'
    text = (
        f'{strong.name} {int(strong.felled.sum())}, {weak.name} {int(weak.felled.sum())} of {len(weak.felled)} images'
    )
    return _sign_test(weak.felled, strong.felled) >= SIGNIFICANCE, text


def _sign_test(first: Bits, second: Bits) -> float:
    """Return the probability that chance alone favors `first` over `second` so often, if they are equally good."""
    wins, losses = int((first & ~second).sum()), int((second & ~first).sum())
    total = wins + losses
    return sum(math.comb(total, k) for k in range(wins, total + 1)) / 2**total
