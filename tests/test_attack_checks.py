"""The checks trip on each sign of gradient masking, and do not on healthy results."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import timm
import torch
from planted import Push, planted_images, planted_model
from torch import Tensor

from timm_p2be.robustness.attacks.judge import seeded
from timm_p2be.robustness.attacks.pgd import PGD
from timm_p2be.robustness.evaluation.attack_benchmark import benchmark_attacks
from timm_p2be.robustness.evaluation.attack_checks import (
    FAILED,
    NOT_RUN,
    PASSED,
    Check,
    conclude,
    run_checks,
    suspected,
    verdict,
)
from timm_p2be.robustness.evaluation.attack_probes import (
    EPS_VALUES,
    STEPS_VALUES,
    gradient_shares,
    probe_binarization,
    probe_curves,
    probe_gradients,
    strongest,
)
from timm_p2be.robustness.evaluation.binarization import binarize
from timm_p2be.robustness.evaluation.results import pack_bits
from timm_p2be.robustness.pixel_model import PixelModel

COUNT = 100
NAMES = ['iterative', 'white', 'exclusive', 'noise', 'eps', 'steps', 'gradient', 'binarization']


def content(felled: dict[tuple[str, str], Sequence[int] | range] | None = None, **probes: Any) -> dict[str, Any]:
    """A result of 100 images, all right when clean, from {(attack, kind): images that fall}."""
    settings = {'alone': COUNT, 'worst_case': 0}
    alone, attacks = {}, []
    for (name, kind), images in (felled or {}).items():
        bits = np.zeros(COUNT, bool)
        bits[list(images)] = True
        attacks.append({'name': name, 'kind': kind})
        alone[name] = {'success': pack_bits(bits), 'accuracy': 1 - bits.mean()}
    clean = {'correct': pack_bits(np.ones(COUNT, bool))}
    return {'settings': settings, 'attacks': attacks, 'alone': alone, 'clean': clean, 'probes': probes}


def check(name: str, result: dict[str, Any]) -> Check:
    return run_checks(result)[NAMES.index(name)]


def attacks(**numbers: int | range) -> dict[tuple[str, str], range]:
    """Attacks named by kind; a number n stands for the first n images."""
    kinds = {'white': 'white-box', 'one': 'one-step', 'noise': 'noise', 'score': 'score', 'transfer': 'transfer'}
    return {(n, kinds[n]): range(value) if isinstance(value, int) else value for n, value in numbers.items()}


def curve(axis: str, standing: Sequence[int], count: int = 50) -> dict[str, Any]:
    values = EPS_VALUES if axis == 'eps' else STEPS_VALUES
    points = [
        {'x': x, 'number': number, 'count': count, 'accuracy': number / count}
        for x, number in zip(values[-len(standing) :], standing, strict=True)
    ]
    return {'eps': [], 'steps': [], axis: points}


def curves(axis: str, *lines: Sequence[int]) -> dict[str, Any]:
    return content(curves={str(number): curve(axis, standing) for number, standing in enumerate(lines)})


def gradients(*bad: tuple[float, float]) -> dict[str, Any]:
    return content(gradients={str(n): {'zero': zero, 'nonfinite': broken} for n, (zero, broken) in enumerate(bad)})


def binarization(**found: int) -> dict[str, Any]:
    return content(binarization={'attack': 'pgd', 'separable': 50, 'random': 1, 'solved': 49} | found)


CASES: dict[str, list[tuple[dict[str, Any], str]]] = {
    'iterative': [
        (content(attacks(white=80, one=60)), PASSED),
        (content(attacks(white=80, one=81)), PASSED),  # one image is chance
        (content(attacks(white=40, one=60)), FAILED),
        (content(attacks(white=40)), NOT_RUN),
    ],
    'white': [
        (content(attacks(white=80, score=60)), PASSED),
        (content(attacks(one=80, transfer=60)), PASSED),
        (content(attacks(white=range(50), score=range(48, 100))), PASSED),  # other images, equally many
        (content(attacks(white=10, score=60)), FAILED),
        (content(attacks(white=10, transfer=60)), FAILED),
        (content(attacks(white=10, noise=60)), NOT_RUN),
    ],
    'exclusive': [
        (content(attacks(white=50, score=52)), PASSED),
        (content(attacks(white=range(50), score=range(48, 100))), FAILED),
        (content(attacks(white=50, one=range(50, 100), score=100)), PASSED),
        (content(attacks(score=100)), NOT_RUN),
    ],
    'noise': [
        (content(attacks(white=80, noise=5)), PASSED),
        (content(attacks(white=100, noise=90)), PASSED),  # everything falls at a large bound
        (content(attacks(white=80, noise=60)), PASSED),  # clearly beaten all the same
        (content(attacks(white=12, noise=10)), FAILED),
        (content(attacks(white=0, noise=30)), FAILED),
        (content(attacks(white=1, noise=1)), NOT_RUN),
        (content(attacks(white=1)), NOT_RUN),
    ],
    'eps': [
        (curves('eps', [45, 40, 30, 20, 10, 0, 0, 0]), PASSED),
        (curves('eps', [45, 46, 30, 20, 10, 0, 0, 0]), PASSED),
        (curves('eps', [45, 40, 30, 36, 10, 0, 0, 0]), FAILED),
        (curves('eps', [45, 40, 30, 20, 15, 12, 10, 9]), FAILED),
        (curves('eps', [45, 40, 30, 9], [44, 20, 10, 0]), PASSED),  # one attack that works is enough
        (content(), NOT_RUN),
    ],
    'steps': [
        (curves('steps', [40, 30, 20, 15, 12, 11, 11]), PASSED),
        (curves('steps', [40, 30, 20, 15, 12, 11, 10]), PASSED),
        (curves('steps', [45, 40, 36, 30, 24, 20, 14]), FAILED),
        (curves('steps', [10]), NOT_RUN),
    ],
    'gradient': [
        (gradients((0.01, 0.0)), PASSED),
        (gradients((1.0, 0.0), (0.0, 0.0)), PASSED),
        (gradients((0.6, 0.0)), FAILED),
        (gradients((0.0, 1.0)), FAILED),
        (content(), NOT_RUN),
    ],
    'binarization': [
        (binarization(), PASSED),
        (binarization(solved=47), FAILED),
        (binarization(random=40), NOT_RUN),
        (binarization(separable=0, solved=0), NOT_RUN),
    ],
}


@pytest.mark.parametrize('name', NAMES)
def test_a_check_trips_on_its_sign_of_masking_only(name: str) -> None:
    for result, expected in CASES[name]:
        assert check(name, result).result == expected, check(name, result)


def test_images_that_the_model_gets_wrong_do_not_count() -> None:
    result = content(attacks(white=range(50), score=range(50, 100)))
    result['clean']['correct'] = pack_bits(np.arange(COUNT) < 50)
    assert check('exclusive', result).figure == '0 of 50 images'


def test_the_verdict_is_a_plain_sentence() -> None:
    healthy = run_checks(content(attacks(white=80, one=60, score=50, noise=5)))
    sentence = 'No sign of gradient masking in these checks; that is no proof of robustness.'
    assert verdict(healthy) == f'{sentence} 4 of 8 checks did not run.'
    assert verdict(healthy[:4]) == sentence
    assert not suspected(healthy)
    masked = run_checks(content(attacks(white=10, one=40, score=60, noise=5)))
    assert verdict(masked).startswith('Gradient masking is suspected: ')
    assert suspected(masked)
    early = run_checks(curves('steps', [45, 40, 36, 30, 24, 20, 14]))
    assert 'had not converged: 40.0% stand after 50 steps, 28.0% after 100' in verdict(early)
    assert not suspected(early)
    assert verdict(run_checks(content())) == 'No check could run; nothing is known about gradient masking.'


def test_gradient_shares_count_zeros_and_broken_values() -> None:
    def left(images: Tensor) -> Tensor:
        """Look at the left half; the slope at a black first value is infinite."""
        x = images[:, :, :, :2].flatten(1).sum(dim=1) + images[:, 0, 0, 0].sqrt()
        return torch.stack([x, -x], dim=1)

    levels = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 255)]).to(torch.uint8)
    labels = torch.tensor([0, 0])
    assert gradient_shares(left, levels, labels) == {'zero': 0.5, 'nonfinite': 1 / 96}
    assert gradient_shares(left, levels, labels, batch_size=1)['zero'] == 0.5
    flat = gradient_shares(lambda images: 0 * images[:, 0, 0, :2], levels, labels)
    assert flat == {'zero': 1.0, 'nonfinite': 0.0}


class Steps(Push):
    """Lowers the first value by as many levels as it has steps, within the bound."""

    def __init__(self, model: PixelModel, eps: int, steps: int) -> None:
        super().__init__('push', min(eps, steps), eps=eps)


def test_probes_are_stored_point_by_point_and_resume() -> None:
    model, data = planted_model(), planted_images(20)
    results = benchmark_attacks(model, data, [Push('push', 3), Push('deep', 5)], probed=10, worst_case=0)
    assert strongest(results.content, ['push', 'deep']) == 'deep'
    assert strongest(results.content, []) is None
    built: list[tuple[int, int]] = []

    def build(model: PixelModel, eps: int, steps: int) -> Push:
        if len(built) == 5:
            built.append((0, 0))
            raise KeyboardInterrupt
        built.append((eps, steps))
        return Steps(model, eps, steps)

    with pytest.raises(KeyboardInterrupt):
        probe_curves(model, data, results, {'push': build})
    probe_curves(model, data, results, {'push': build})
    done = [point for point in built if point != (0, 0)]
    assert done == [(x, 40) for x in EPS_VALUES] + [(8, x) for x in STEPS_VALUES]
    points = results.content['probes']['curves']['push']
    assert [point['number'] for point in points['eps']] == [9, 8, 6, 2, 0, 0, 0, 0]
    assert [point['number'] for point in points['steps']] == [9, 8, 5, 2, 2, 2, 2]
    probe_gradients(model, data, results)
    assert results.content['probes']['gradients']['straight-through']['zero'] == pytest.approx(47 / 48)
    conclude(results)
    assert results.content['gradient_masking_suspected'] is True  # 47 of 48 values have no gradient
    assert len(results.content['checks']) == len(NAMES)


@pytest.fixture(scope='module', params=['wrn10_2_p2be', 'resnet10t'])
def net(request: pytest.FixtureRequest) -> PixelModel:
    """A small net; the last has a mean and std, with which its features must be taken."""
    torch.manual_seed(0)
    return PixelModel(timm.create_model(request.param, num_classes=10))


def test_binarization_tells_a_working_attack_from_a_broken_one(net: PixelModel) -> None:
    images = torch.randint(30, 226, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    surrogate = 'kernel' if net.encoding else 'straight-through'

    def trials(make: Any) -> list[Any]:
        return [binarize(net, image, make, 8, seeded(0, n), points=49, draws=30) for n, image in enumerate(images)]

    working = trials(lambda binary: PGD(binary, 8, surrogate, steps=10))
    broken = trials(lambda binary: Push('idle', 0))
    assert all(trial.separable for trial in working)
    assert all(trial.attack for trial in working)
    assert not any(trial.attack for trial in broken)
    assert not all(trial.random for trial in working)
    assert net.num_classes == 10
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())


def test_binarization_counts_images_and_resumes() -> None:
    torch.manual_seed(0)
    model, data = PixelModel(timm.create_model('wrn10_2', num_classes=2)), planted_images(6)
    results = benchmark_attacks(model, data, [Push('idle', 0)], alone=1, worst_case=0, probed=2)
    probe_binarization(model, data, results, 'idle', lambda binary, eps, steps: Push('idle', 0))
    result = results.content['probes']['binarization']
    assert (result['attack'], result['tried'], result['solved']) == ('idle', 2, 0)
    probe_binarization(model, data, results, 'idle', lambda binary, eps, steps: pytest.fail('again'))
    with pytest.raises(ValueError, match='2 to 255'):
        binarize(model, torch.zeros(3, 4, 4, dtype=torch.uint8), lambda binary: Push('idle', 0), 1, seeded(0))
