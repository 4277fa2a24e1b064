"""Checks that tell robustness from gradient masking, as figures on a benchmark's results.

They follow Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018, section 3.1,
Carlini et al., "On Evaluating Adversarial Robustness", 2019, section 3, and, for the binarization test, Zimmermann et
al., NeurIPS 2022. A failed check is a reason to doubt the attacks; passing all is no proof.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from timm_p2be.robustness.attacks.judge import Bits
from timm_p2be.robustness.evaluation.attack_record import AttackRecord
from timm_p2be.robustness.evaluation.results import unpack_bits

BLACK_BOX = ('score', 'decision', 'transfer')
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
    """One check.

    Attributes:
        name: what should hold.
        result: 'passed', 'failed' or 'not run'.
        figure: what was measured.
        explanation: what a failure means.
        masking: whether a failure points to masked gradients; else it points to an attack that was stopped early.
    """

    name: str
    result: str
    figure: str
    explanation: str
    masking: bool = True


def run_checks(content: dict[str, Any]) -> list[Check]:
    """Return all checks of a result file's content."""
    probes = content.get('probes', {})
    outcomes = _outcomes(content)
    return [
        iterative_beats_one_step(outcomes),
        white_box_beats_black_box(outcomes),
        only_black_box(outcomes),
        gradient_beats_noise(outcomes),
        grows_with_eps(probes.get('curves', {})),
        steps_suffice(probes.get('curves', {})),
        has_gradient(probes.get('gradients', {})),
        binarization_solved(probes.get('binarization', {})),
    ]


def conclude(record: AttackRecord) -> None:
    """Add the checks, the verdict and whether masking is suspected to a record."""
    checks = run_checks(record.content)
    record.content['checks'] = [check._asdict() for check in checks]
    record.content['verdict'] = verdict(checks)
    record.content['gradient_masking_suspected'] = suspected(checks)
    record.write()


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


class Outcome(NamedTuple):
    """What an attack alone felled, of the images that the model gets right."""

    name: str
    kind: str
    felled: Bits


def iterative_beats_one_step(outcomes: Sequence[Outcome]) -> Check:
    """Compare the best one-step attack with the best iterative one."""
    name = 'an iterative attack does at least as well as one step'
    why = 'A single step that beats many means that the gradient points nowhere useful.'
    return _compare(name, why, outcomes, ('white-box',), ('one-step',))


def white_box_beats_black_box(outcomes: Sequence[Outcome]) -> Check:
    """Compare the best attack without the model's gradient with the best one that has it."""
    name = 'a gradient attack does at least as well as attacks without gradient'
    why = 'Knowing the gradient cannot hurt an attacker unless the gradient misleads.'
    return _compare(name, why, outcomes, ('white-box', 'one-step'), BLACK_BOX)


def only_black_box(outcomes: Sequence[Outcome]) -> Check:
    """Count images that fall to attacks without gradient and to no attack with it."""
    name = f'at most {EXCLUSIVE:.0%} of the images fall only to attacks without gradient'
    why = 'Images that gradients cannot fell but queries or other models can are a sign of misleading gradients.'
    white, black = _of(outcomes, ('white-box', 'one-step')), _of(outcomes, BLACK_BOX)
    if not white or not black or not len(white[0].felled):
        return Check(name, NOT_RUN, 'needs attacks of both sorts, and images the model gets right', why)
    alone = np.any([o.felled for o in black], axis=0) & ~np.any([o.felled for o in white], axis=0)
    number, count = int(alone.sum()), len(alone)
    failed = number > max(1, EXCLUSIVE * count)  # one image is no sign
    return Check(name, FAILED if failed else PASSED, f'{number} of {count} images', why)


def gradient_beats_noise(outcomes: Sequence[Outcome]) -> Check:
    """Compare random noise with the best gradient attack."""
    name = f'random noise fells less than {NOISE:.0%} of what the best gradient attack fells'
    why = 'Noise that does as well as the gradient means that the attack uses no information.'
    white, noise = _best(outcomes, ('white-box', 'one-step')), _best(outcomes, ('noise',))
    if white is None or noise is None:
        return Check(name, NOT_RUN, 'needs noise and a gradient attack', why)
    by_noise, by_white = int(noise.felled.sum()), int(white.felled.sum())
    text = f'noise {by_noise}, {white.name} {by_white} of {len(white.felled)} images'
    if by_noise + by_white < FEW:
        return Check(name, NOT_RUN, f'{text}: too few to compare', why)
    better = white.felled.all() or _sign_test(white.felled, noise.felled) < SIGNIFICANCE
    failed = by_noise >= NOISE * by_white and not better
    return Check(name, FAILED if failed else PASSED, text, why)


def grows_with_eps(curves: dict[str, Any]) -> Check:
    """Look at the accuracy over the bound: it must not rise, and end at 0 where every image is allowed."""
    name = 'success grows with the bound and reaches 100 % without one'
    why = 'Within 255 levels lies every image, so an attack that does not reach 100 % there does not work.'
    points = _lowest(curves, 'eps')
    if len(points) < 2:
        return Check(name, NOT_RUN, 'needs the curve over the bound', why)
    count = max(point['count'] for point in points.values())
    values = [point['number'] for _, point in sorted(points.items())]
    rises = [now - before for before, now in pairwise(values)]
    text = ', '.join(f'eps {x}: {point["accuracy"]:.0%}' for x, point in sorted(points.items())) + ' stand'
    failed = max(rises) > max(1, PLATEAU * count) or (255 in points and values[-1] > 0)
    return Check(name, FAILED if failed else PASSED, text, why)


def steps_suffice(curves: dict[str, Any]) -> Check:
    """Look at the last doubling of the steps of the strongest attack."""
    name = f'twice as many steps change the accuracy by less than {100 * PLATEAU:.0f} point'
    why = 'If more steps still help, the accuracy reported is too high.'
    points = _lowest(curves, 'steps')
    if len(points) < 2:
        return Check(name, NOT_RUN, 'needs the curve over the steps', why, masking=False)
    (before, earlier), (now, last) = sorted(points.items())[-2:]
    change = earlier['number'] - last['number']
    text = f'{earlier["accuracy"]:.1%} stand after {before} steps, {last["accuracy"]:.1%} after {now}'
    failed = change > max(1, PLATEAU * last['count'])
    return Check(name, FAILED if failed else PASSED, f'{text} ({last["count"]} images).', why, masking=False)


def has_gradient(gradients: dict[str, dict[str, float]]) -> Check:
    """Look for one surrogate whose gradient is neither 0 nor broken."""
    name = f'a surrogate has at most {ZERO_GRADIENT:.0%} zero or non-finite gradients'
    why = 'Without a gradient, attacks that follow it are random.'
    if not gradients:
        return Check(name, NOT_RUN, 'needs the gradients of the surrogates', why)
    bad = {by: shares['zero'] + shares['nonfinite'] for by, shares in gradients.items()}
    text = ', '.join(f'{by} {share:.1%}' for by, share in bad.items())
    return Check(name, FAILED if min(bad.values()) > ZERO_GRADIENT else PASSED, text, why)


def binarization_solved(result: dict[str, Any]) -> Check:
    """Look at the binarization test."""
    name = f'the attack solves at least {SOLVED:.0%} of the binarization test'
    why = 'The test has solutions by construction: an attack that misses them misses others.'
    if not result.get('separable'):
        return Check(name, NOT_RUN, 'needs the binarization test, with separable images', why)
    solved, random = result['solved'] / result['separable'], result['random'] / result['separable']
    text = f'{result["attack"]} {solved:.0%}, random search {random:.0%} of {result["separable"]} images'
    if random > RANDOM and solved >= SOLVED:
        return Check(name, NOT_RUN, f'{text}: too easy to say anything', why)
    return Check(name, PASSED if solved >= SOLVED else FAILED, text, why)


def _outcomes(content: dict[str, Any]) -> list[Outcome]:
    """Return the finished attacks, each on the clean images of the subset that the model gets right."""
    if not content['clean']:
        return []
    settings = content['settings']
    count = max(settings['alone'], settings['worst_case'])
    correct = unpack_bits(content['clean']['correct'], count)[: settings['alone']]
    outcomes = []
    for attack in content['attacks']:
        entry = content['alone'].get(attack['name'], {})
        if 'accuracy' in entry:
            success = unpack_bits(entry['success'], settings['alone'])
            outcomes.append(Outcome(attack['name'], attack['kind'], success[correct]))
    return outcomes


def _compare(name: str, why: str, outcomes: Sequence[Outcome], stronger: Sequence[str], weaker: Sequence[str]) -> Check:
    """Check that the best attack of the weaker kinds does not beat the best one of the stronger kinds."""
    strong, weak = _best(outcomes, stronger), _best(outcomes, weaker)
    if strong is None or weak is None:
        return Check(
            name, NOT_RUN, f'needs attacks of the kinds {" or ".join(stronger)}, and {" or ".join(weaker)}', why
        )
    text = (
        f'{strong.name} {int(strong.felled.sum())}, {weak.name} {int(weak.felled.sum())} of {len(weak.felled)} images'
    )
    failed = _sign_test(weak.felled, strong.felled) < SIGNIFICANCE
    return Check(name, FAILED if failed else PASSED, text, why)


def _sign_test(first: Bits, second: Bits) -> float:
    """Return the probability that chance alone favors `first` over `second` so often, if they are equally good."""
    wins, losses = int((first & ~second).sum()), int((second & ~first).sum())
    total = wins + losses
    return sum(math.comb(total, k) for k in range(wins, total + 1)) / 2**total


def _of(outcomes: Sequence[Outcome], kinds: Sequence[str]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.kind in kinds]


def _best(outcomes: Sequence[Outcome], kinds: Sequence[str]) -> Outcome | None:
    found = [outcome for outcome in _of(outcomes, kinds) if len(outcome.felled)]
    return max(found, key=lambda outcome: int(outcome.felled.sum()), default=None)


def _lowest(curves: dict[str, Any], axis: str) -> dict[int, dict[str, Any]]:
    """Return, for each x that all curves have, the point of the attack that left the fewest images."""
    series = [{point['x']: point for point in curve[axis]} for curve in curves.values()]
    shared = set.intersection(*(set(points) for points in series)) if series else set()
    return {x: min((points[x] for points in series), key=lambda point: point['number']) for x in shared}
