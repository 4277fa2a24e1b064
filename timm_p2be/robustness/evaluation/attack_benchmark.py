"""Attacks on a model within one bound: each alone on one subset, then all of them in turn on what still stands.

Every attempt is a uint8 image, checked against the bound and judged by the untouched model. An image counts as
standing if the model is right on the clean image and on every attempt: the attacker may also do nothing.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from timm_p2be.checkpoints import weights_sha256
from timm_p2be.robustness.attacks.attack import Attack
from timm_p2be.robustness.attacks.judge import Bits, BrokenAttackError, attack_batch, is_correct, seeded
from timm_p2be.robustness.evaluation.attack_record import AttackRecord, image_folder
from timm_p2be.robustness.evaluation.progress import Progress
from timm_p2be.robustness.images import ImageSet, as_batch
from timm_p2be.robustness.pixel_model import PixelModel


def benchmark_attacks(
    model: PixelModel,
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
    save_images: bool = False,
    show: bool = False,
) -> AttackRecord:
    """Attack a model with every attack and return what its result file holds.

    Each attack runs alone on the first `alone` images, all of them. The worst case covers the first `worst_case`
    images: the attacks run in the order given, each on those that no earlier one felled; where an image is in both
    sets, its result alone is taken over. Randomness depends on the seed, the attack and the first image of a batch;
    which images share a batch in the worst case depends on the attacks before.

    Args:
        model: judged in evaluation mode; the attacks hold whatever model they attack.
        data: clean images; `alone` and `worst_case` are cut to their number.
        attacks: cheapest first, with unique names.
        eps: bound in levels, 1 to 255; no attack may have a larger one.
        alone: images that every attack faces, at least 1.
        worst_case: images of the worst case; 0 leaves it out.
        batch_size: images attacked at once.
        seed: of all randomness.
        probed: images that the probes of `attack_probes` will look at.
        output: folder of `<model>.attacks.json`, written after every batch; a run of the same configuration resumes
            from it. None keeps everything in memory.
        overwrite: drop an earlier result instead of resuming.
        save_images: also write the images that fell in the worst case, as `<model>.images/<attack>-<first>.safetensors`
            with `images` uint8 (N, 3, H, W), `indices` and `labels` int64 (N,).
        show: print progress and one line per attack on stderr.

    Raises:
        ValueError: an argument out of range, or an earlier result of another configuration.
        BrokenAttackError: an attack broke its contract or changed the model.
        OSError: the disk is full; the result file holds all batches before.
    """
    settings = {'eps': eps, 'alone': alone, 'worst_case': worst_case, 'probed': probed}
    settings.update(batch_size=batch_size, seed=seed, save_images=save_images)
    record = AttackRecord.open(model, data, attacks, settings, output, overwrite)
    images = image_folder(record.path) if save_images and record.path else None
    run = _Run(model, data, record, images, show)
    run.classify_clean()
    for attack in attacks:
        run.attack_alone(attack)
        run.attack_standing(attack)
        run.progress.say(f'{model.name}: {record.line(attack.name)}')
    run.progress.close()
    return record


class _Run:
    """A benchmark under way: what it works on, where it writes, and how far it is."""

    def __init__(
        self, model: PixelModel, data: ImageSet, record: AttackRecord, images: Path | None, show: bool
    ) -> None:
        self.model = model
        self.data = data
        self.record = record
        self.images = images
        self.weights = record.content['model']['weights_sha256']
        self.progress = Progress(record.work_left(), 'call', show)

    def classify_clean(self) -> None:
        """Classify the clean images, if no earlier run did."""
        if self.record.clean is not None:
            return
        correct, size = np.zeros(self.record.count, bool), self.record.batch_size
        for start in range(0, self.record.count, size):
            levels, labels = as_batch(self.data, range(start, min(start + size, self.record.count)))
            self._check_labels(labels)
            correct[start : start + size] = is_correct(self.model, levels, labels)
        self.record.set_clean(correct)

    def attack_alone(self, attack: Attack) -> None:
        """Attack every image of the subset."""
        while (indices := self.record.next_alone(attack.name)) is not None:
            success, seconds = self._attack(attack, indices)
            self.record.add_alone(attack.name, success, seconds)
            self._show(attack, indices)

    def attack_standing(self, attack: Attack) -> None:
        """Attack the images of the worst case that stand and have no result from the subset."""
        while (indices := self.record.next_standing(attack.name)) is not None:
            success, seconds = self._attack(attack, indices)
            self.record.add_standing(attack.name, indices, success, seconds)
            self._show(attack, indices)
        if weights_sha256(self.model.model.state_dict()) != self.weights:
            raise BrokenAttackError(f'Attack {attack.name!r} changed the weights or buffers of {self.model.name}.')

    def _attack(self, attack: Attack, indices: list[int]) -> tuple[Bits, float]:
        levels, labels = as_batch(self.data, indices)
        generator = seeded(self.record.seed, attack.name, indices[0])
        start = time.perf_counter()
        attempts, success = attack_batch(self.model, attack, levels, labels, self.record.eps, generator)
        seconds = time.perf_counter() - start
        standing = self.record.standing(attack.name)
        felled = [i for i, index in enumerate(indices) if success[i] and index < len(standing) and standing[index]]
        if self.images is not None and felled:
            self.images.mkdir(parents=True, exist_ok=True)
            file = self.images / f'{attack.name}-{indices[0]:06d}.safetensors'
            found = {'images': attempts[felled].contiguous(), 'labels': labels[felled]}
            save_file({**found, 'indices': labels.new_tensor([indices[i] for i in felled])}, file)
        return success, seconds

    def _show(self, attack: Attack, indices: list[int]) -> None:
        """Show progress; images that fell meanwhile need no more work."""
        work = self.record.work(attack.name, len(indices))
        self.progress.total = self.progress.done + work + self.record.work_left()
        if self.progress.bar is not None:
            self.progress.bar.total = self.progress.total
        self.progress.step(work, f'{self.model.name} {attack.name}, {int(self.record.standing().sum())} stand')

    def _check_labels(self, labels: Tensor) -> None:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.model.num_classes:
            raise ValueError(
                f'{self.data.name} has the label {low if low < 0 else high}, {self.model.name} has '
                f'{self.model.num_classes} classes; take the data the model was trained for, or --class-map.'
            )
