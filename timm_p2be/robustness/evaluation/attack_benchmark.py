"""Attacks on a model within one bound: each alone on one subset, then all of them in turn on what still stands.

Every attempt is a uint8 image, checked against the bound and judged by the untouched model. An image counts as
standing if the model is right on the clean image and on every attempt: the attacker may also do nothing.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from timm_p2be.checkpoints import weights_sha256
from timm_p2be.robustness.attacks.attack import Attack, check_labels
from timm_p2be.robustness.attacks.judge import Bits, BrokenAttackError, attack_batch, is_correct, seeded
from timm_p2be.robustness.evaluation.attack_results import PARTS, AttackResults
from timm_p2be.robustness.evaluation.runner import Runner, runner
from timm_p2be.robustness.images import ImageSet, as_batch
from timm_p2be.robustness.pixel_model import PixelModel, as_pixel_model


def benchmark_attacks(
    model: PixelModel | nn.Module,
    data: ImageSet,
    attacks: Sequence[Attack],
    eps: int = 8,
    alone: int = 200,
    worst_case: int = 1000,
    batch_size: int = 100,
    seed: int = 0,
    probed: int = 50,
    output: Path | None = None,
    overwrite: bool = False,
    show: bool = False,
) -> AttackResults:
    """Attack a model with every attack and return what its result file holds.

    Each attack runs alone on the first `alone` images, all of them. The worst case covers the first `worst_case`
    images: the attacks run in the order given, each on those that no earlier one felled; where an image is in both
    sets, its result alone is taken over. Randomness depends on the seed, the attack and the first image of a batch.
    Started by torchrun, the ranks share the batches, which are halved where memory runs out.

    Args:
        model: judged in evaluation mode; the attacks hold whatever model they attack.
        data: clean images; `alone` and `worst_case` are cut to their number.
        attacks: cheapest first, with unique names.
        eps: bound in levels; no attack may have a larger one.
        worst_case: 0 leaves it out.
        probed: images that the probes of `attack_probes` will look at.
        output: folder of `<model>.attacks.json`, written after every batch; a run of the same configuration resumes
            from it unless told to `overwrite`. None keeps everything in memory.

    Raises:
        BrokenAttackError: an attack broke its contract or changed the model.
        OSError: the disk is full; the result file holds all batches before.
    """
    model = as_pixel_model(model)
    data = data.numbered_for(model)
    settings = {'eps': eps, 'alone': alone, 'worst_case': worst_case, 'probed': probed}
    settings.update(batch_size=batch_size, seed=seed)
    with runner('call', show) as run:
        results = run.ranks.open(lambda: AttackResults.start(model, data, attacks, settings, output, overwrite))
        if results.content['clean'] is None:
            results.set_clean(_classify(model, data, results, run))
        run.progress.expect(results.work_left())
        for attack in attacks:
            work = partial(_attack, model, data, attack, results, run)
            for part in PARTS:
                for indices, (success, seconds) in run.results(results.left(part, attack.name), work):
                    results.add(part, attack.name, indices, success, seconds)
                    # images that fell meanwhile need no more work
                    done = results.work(attack.name, len(indices))
                    run.progress.expect(done + results.work_left())
                    run.progress.step(done, f'{model.name} {attack.name}, {int(results.standing().sum())} stand')
            if weights_sha256(model.model.state_dict()) != results.content['model']['weights_sha256']:
                raise BrokenAttackError(f'Attack {attack.name!r} changed the weights or buffers of {model.name}.')
            run.progress.say(f'{model.name}: {results.line(attack.name)}')
    return results


def _classify(model: PixelModel, data: ImageSet, results: AttackResults, run: Runner) -> Bits:
    """Return which clean images the model gets right."""

    def judge(part: slice) -> Bits:
        levels, labels = as_batch(data, range(part.start, part.stop))
        check_labels(model, labels)
        return is_correct(model, levels, labels)

    return np.concatenate(run.memory.parts(model.name, results.count, results.batch_size, judge))


def _attack(
    model: PixelModel, data: ImageSet, attack: Attack, results: AttackResults, run: Runner, indices: list[int]
) -> tuple[Bits, float]:
    """Attack a batch and return what fell, and the seconds it took."""
    levels, labels = as_batch(data, indices)

    def trial(part: slice) -> Bits:
        generator = seeded(results.seed, attack.name, indices[part.start])
        return attack_batch(model, attack, levels[part], labels[part], results.eps, generator)[1]

    start = time.perf_counter()
    fell = np.concatenate(run.memory.parts(attack.name, len(indices), len(indices), trial))
    return fell, time.perf_counter() - start
