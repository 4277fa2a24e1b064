"""The result file of an attack benchmark: what has been done, what it says, and what is left."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from timm_p2be.files import write_json
from timm_p2be.robustness.attacks.attack import Attack
from timm_p2be.robustness.attacks.judge import Bits
from timm_p2be.robustness.evaluation.attack_configuration import KIND, check_same, new_content
from timm_p2be.robustness.evaluation.results import pack_bits, read_json, unpack_bits, wilson
from timm_p2be.robustness.images import ImageSet
from timm_p2be.robustness.pixel_model import PixelModel

BACKWARD = 3  # about as many passes forward as one pass forward and backward costs


class AttackRecord:
    """Results so far. Every method that adds to them writes the file, if there is one.

    Bits have one place an image, in the order of the data. `success` and `felled` mark images that the model gets
    wrong under an attack; `correct` and `standing` those that it gets right.

    Attributes:
        content: JSON values, as in the file.
        path: of the file, or None.
        eps, seed, batch_size, alone, worst_case, probed: of the benchmark.
        count: images in either set.
    """

    def __init__(self, content: dict[str, Any], path: Path | None) -> None:
        self.content = content
        self.path = path
        settings = content['settings']
        self.eps: int = settings['eps']
        self.seed: int = settings['seed']
        self.batch_size: int = settings['batch_size']
        self.alone: int = settings['alone']
        self.worst_case: int = settings['worst_case']
        self.probed: int = settings['probed']
        self.count = max(self.alone, self.worst_case)
        self._work = {
            attack['name']: attack['forwards'] + BACKWARD * attack['backwards'] for attack in content['attacks']
        }

    @classmethod
    def open(
        cls,
        model: PixelModel,
        data: ImageSet,
        attacks: Sequence[Attack],
        settings: dict[str, Any],
        output: Path | None = None,
        overwrite: bool = False,
    ) -> 'AttackRecord':
        """Return the record of a configuration: an earlier run's if its file is there, else a new one.

        Args:
            model: of the benchmark.
            data: of the benchmark.
            attacks: in order.
            settings: eps, alone, worst_case, probed, batch_size, seed, save_images.
            output: folder of the file, or None.
            overwrite: drop an earlier file and the images beside it.

        Raises:
            ValueError: a setting out of range, or an earlier file of another configuration.
        """
        content = new_content(model, data, attacks, settings)
        if output is None:
            return cls(content, None)
        path = output / f'{file_stem(model.name)}.attacks.json'
        if overwrite:
            path.unlink(missing_ok=True)
            for file in image_folder(path).glob('*.safetensors'):
                file.unlink()
        if path.exists():
            earlier = read_json(path, KIND)
            check_same(path, earlier, content)
            content = earlier
        return cls(content, path)

    def write(self) -> None:
        """Write the file, if there is one."""
        if self.path is not None:
            write_json(self.path, self.content)

    @property
    def clean(self) -> Bits | None:
        """Which clean images the model gets right, or None before that is known."""
        clean = self.content['clean']
        return unpack_bits(clean['correct'], self.count) if clean else None

    def set_clean(self, correct: Bits) -> None:
        """Add the results on clean images."""
        self.content['clean'] = {'subset': f'first {self.count} images', 'correct': pack_bits(correct)}
        self.content['clean']['alone'] = proportion(correct[: self.alone])
        if self.worst_case:
            self.content['clean']['worst_case'] = proportion(correct[: self.worst_case])
        self.write()

    def success(self, name: str) -> Bits:
        """Return (alone,) bits: what attack `name` alone achieved so far."""
        entry = self.content['alone'].get(name)
        return unpack_bits(entry['success'], self.alone) if entry else np.zeros(self.alone, bool)

    def next_alone(self, name: str) -> list[int] | None:
        """Return the next images for the attack alone, or None when it is done."""
        done = self.content['alone'].get(name, {'done': 0})['done']
        return list(range(done, min(done + self.batch_size, self.alone))) or None

    def add_alone(self, name: str, success: Bits, seconds: float) -> None:
        """Add a batch of the attack alone."""
        bits = self.success(name)
        entry = self.content['alone'].setdefault(name, {'done': 0, 'seconds': 0.0})
        bits[entry['done'] : entry['done'] + len(success)] = success
        entry.update(done=entry['done'] + len(success), seconds=entry['seconds'] + seconds, success=pack_bits(bits))
        if entry['done'] == self.alone:
            assert self.clean is not None
            entry.update(proportion(self.clean[: self.alone] & ~bits))
        self.write()

    def felled(self, name: str) -> Bits:
        """Return (worst_case,) bits: images that fell first to attack `name`."""
        entry = self.content['worst_case'].get('attacks', {}).get(name)
        return unpack_bits(entry['felled'], self.worst_case) if entry else np.zeros(self.worst_case, bool)

    def standing(self, before: str | None = None) -> Bits:
        """Return (worst_case,) bits: images that stand now, or that stood before attack `before`."""
        assert self.clean is not None
        standing = self.clean[: self.worst_case].copy()
        for name in self._work:
            if name == before:
                break
            standing &= ~self.felled(name)
        return standing

    def next_standing(self, name: str) -> list[int] | None:
        """Return the next images for the attack in the worst case, or None when it is done."""
        if not self.worst_case:
            return None
        entry = self.content['worst_case']['attacks'].setdefault(name, self._taken_over(name))
        todo = self._todo(name)[entry['done'] :]
        if not todo and entry['done'] == 0:
            self._count_standing()  # nothing to attack: what was taken over is the result
        return todo[: self.batch_size] or None

    def add_standing(self, name: str, indices: list[int], success: Bits, seconds: float) -> None:
        """Add a batch of the attack in the worst case."""
        bits = self.felled(name)
        bits[indices] = success
        entry = self.content['worst_case']['attacks'][name]
        entry.update(done=entry['done'] + len(indices), seconds=entry['seconds'] + seconds)
        entry.update(felled=pack_bits(bits), number=int(bits.sum()))
        self._count_standing()

    def line(self, name: str) -> str:
        """Return one line of what attack `name` achieved."""
        alone = self.content['alone'][name]
        text = f'{name}: {alone["accuracy"]:.1%} of {self.alone} stand alone ({alone["seconds"]:.0f} s)'
        if not self.worst_case:
            return text
        worst = self.content['worst_case']
        felled = worst['attacks'][name]['number']
        return f'{text}, felled {felled} more; {worst["number"]} of {self.worst_case} still stand'

    def work(self, name: str, images: int) -> int:
        """Return the budget of attack `name` on `images` images, in passes forward."""
        return self._work[name] * images

    def work_left(self) -> int:
        """Return at most how much is left, in passes forward: nobody knows yet who will fall."""
        left = 0
        for name in self._work:
            left += self.work(name, self.alone - self.content['alone'].get(name, {'done': 0})['done'])
            entry = self.content['worst_case'].get('attacks', {}).get(name)
            left += self.work(name, len(self._todo(name)) - (entry['done'] if entry else 0))
        return left

    def _todo(self, name: str) -> list[int]:
        """Return the images of the worst case that attack `name` has to attack: standing, and not in the subset."""
        standing = self.standing(name) if self.clean is not None else np.ones(self.worst_case, bool)
        return [int(index) for index in np.flatnonzero(standing) if index >= self.alone]

    def _taken_over(self, name: str) -> dict[str, Any]:
        """Return the entry of attack `name` before it attacks anything: its results on the subset."""
        felled, both = np.zeros(self.worst_case, bool), min(self.alone, self.worst_case)
        standing = self.standing(name)
        felled[:both] = self.success(name)[:both] & standing[:both]
        entry = {'faced': int(standing.sum()), 'taken_over': int(standing[:both].sum()), 'done': 0, 'seconds': 0.0}
        return {**entry, 'felled': pack_bits(felled), 'number': int(felled.sum())}

    def _count_standing(self) -> None:
        standing = self.standing()
        self.content['worst_case'].update(standing=pack_bits(standing), **proportion(standing))
        last = list(self._work)[-1]
        entry = self.content['worst_case']['attacks'].get(last)
        self.content['worst_case']['complete'] = entry is not None and entry['done'] == len(self._todo(last))
        self.write()


def proportion(bits: Bits) -> dict[str, Any]:
    """Return number, count, share and 95 % interval of the true bits."""
    number = int(bits.sum())
    low, high = wilson(number, len(bits))
    return {'number': number, 'count': len(bits), 'accuracy': number / len(bits), 'low': low, 'high': high}


def file_stem(name: str) -> str:
    """Return a model's name as part of a file name.

    Example:
        >>> file_stem('ours:seed/1')
        'ours_seed_1'
    """
    return ''.join(letter if letter.isalnum() or letter in '.-_' else '_' for letter in name)


def image_folder(path: Path) -> Path:
    """Return the folder of saved images that belongs to a result file."""
    return path.with_name(path.name.removesuffix('.attacks.json') + '.images')
