"""The result file of an attack benchmark, MODEL.attacks.json: what has been done, what it says, and what is left."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from timm_p2be.robustness.attacks.attack import KINDS, Attack
from timm_p2be.robustness.evaluation.results import Bits, ResultFile, pack_bits, proportion, unpack_bits
from timm_p2be.robustness.images import ImageSet
from timm_p2be.robustness.pixel_model import PixelModel

BACKWARD = 3  # about as many passes forward as one pass forward and backward costs


class AttackResults(ResultFile):
    """Results so far. Every method that adds to them writes the file, if there is one.

    Bits have one place an image, in the order of the data. `success` and `felled` mark images that the model gets
    wrong under an attack; `clean` and `standing` those that it gets right. The settings are attributes, see
    `benchmark_attacks`; `count` images are in either set.
    """

    kind = 'attacks'
    eps: int
    seed: int
    batch_size: int
    alone: int
    worst_case: int
    probed: int
    save_images: bool

    def __init__(self, content: dict[str, Any], path: Path | None = None) -> None:
        super().__init__(content, path)
        self.__dict__.update(content['settings'])
        self.count = max(self.alone, self.worst_case)
        self._work = {
            attack['name']: attack['forwards'] + BACKWARD * attack['backwards'] for attack in content['attacks']
        }

    @classmethod
    def start(
        cls,
        model: PixelModel,
        data: ImageSet,
        attacks: Sequence[Attack],
        settings: dict[str, Any],
        folder: Path | None = None,
        overwrite: bool = False,
    ) -> 'AttackResults':
        """Return the results of a configuration: an earlier run's if its file is in the folder, else new ones.

        The settings are the attributes; `overwrite` drops an earlier file and the images beside it.
        """
        settings = {**settings, **{x: min(settings[x], len(data)) for x in ('alone', 'worst_case', 'probed')}}
        _check(settings, attacks)
        configuration = {
            'settings': settings,
            'attacks': [{'name': x.name, 'kind': x.kind, 'eps': x.eps, **x.cost()._asdict()} for x in attacks],
            'model': model.describe(),
            'data': data.describe(),
        }
        worst = {'subset': f'first {settings["worst_case"]} images', 'attacks': {}} if settings['worst_case'] else {}
        path = folder / f'{file_stem(model.name)}.attacks.json' if folder is not None else None
        results = cls.open(path, configuration, {'clean': None, 'alone': {}, 'worst_case': worst}, overwrite)
        if overwrite and results.image_folder is not None:
            for file in results.image_folder.glob('*.safetensors'):
                file.unlink()
        return results

    @property
    def image_folder(self) -> Path | None:
        """Folder of the saved images, beside the file."""
        return self.path and self.path.with_name(self.path.name.removesuffix('.attacks.json') + '.images')

    @property
    def clean(self) -> Bits:
        """Which clean images the model gets right, (count,)."""
        return unpack_bits(self.content['clean']['correct'], self.count)

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

    def left_alone(self, name: str) -> list[list[int]]:
        """Return the batches of images that the attack alone has not faced yet."""
        return self._batches(range(self._done('alone', name), self.alone))

    def add_alone(self, name: str, success: Bits, seconds: float) -> None:
        """Add a batch of the attack alone."""
        bits = self.success(name)
        entry = self.content['alone'].setdefault(name, {'done': 0, 'seconds': 0.0})
        bits[entry['done'] : entry['done'] + len(success)] = success
        entry.update(done=entry['done'] + len(success), seconds=entry['seconds'] + seconds, success=pack_bits(bits))
        if entry['done'] == self.alone:
            entry.update(proportion(self.clean[: self.alone] & ~bits))
        self.write()

    def felled(self, name: str) -> Bits:
        """Return (worst_case,) bits: images that fell first to attack `name`."""
        entry = self.content['worst_case'].get('attacks', {}).get(name)
        return unpack_bits(entry['felled'], self.worst_case) if entry else np.zeros(self.worst_case, bool)

    def standing(self, before: str | None = None) -> Bits:
        """Return (worst_case,) bits: images that stand now, or that stood before attack `before`."""
        standing = self.clean[: self.worst_case]
        for name in self._work:
            if name == before:
                break
            standing &= ~self.felled(name)
        return standing

    def left_standing(self, name: str) -> list[list[int]]:
        """Return the batches of images that the attack has to face in the worst case; takes over what it did alone."""
        if not self.worst_case:
            return []
        entries = self.content['worst_case']['attacks']
        if name not in entries:
            standing, both = self.standing(name), min(self.alone, self.worst_case)
            felled = np.zeros(self.worst_case, bool)
            felled[:both] = self.success(name)[:both] & standing[:both]
            entries[name] = {'faced': int(standing.sum()), 'taken_over': int(standing[:both].sum()), 'done': 0}
            self._add(name, felled, 0, 0.0)
        return self._batches(self._to_face(name)[entries[name]['done'] :])

    def add_standing(self, name: str, indices: list[int], success: Bits, seconds: float) -> None:
        """Add a batch of the attack in the worst case."""
        bits = self.felled(name)
        bits[indices] = success
        self._add(name, bits, len(indices), seconds)

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
        return sum(
            self.work(name, self.alone - self._done('alone', name))
            + self.work(name, len(self._to_face(name)) - self._done('worst_case', name))
            for name in self._work
        )

    def _done(self, part: str, name: str) -> int:
        entries = self.content[part] if part == 'alone' else self.content[part].get('attacks', {})
        return entries.get(name, {'done': 0})['done']

    def _batches(self, indices: Sequence[int]) -> list[list[int]]:
        return [list(indices[start : start + self.batch_size]) for start in range(0, len(indices), self.batch_size)]

    def _to_face(self, name: str) -> list[int]:
        """Return the images of the worst case that attack `name` has to attack: standing, and not in the subset."""
        return [int(index) for index in np.flatnonzero(self.standing(name)) if index >= self.alone]

    def _add(self, name: str, felled: Bits, done: int, seconds: float) -> None:
        """Store what attack `name` has felled, and count what stands."""
        worst = self.content['worst_case']
        entry = worst['attacks'][name]
        entry.update(done=entry['done'] + done, seconds=entry.get('seconds', 0.0) + seconds)
        entry.update(felled=pack_bits(felled), number=int(felled.sum()))
        standing, last = self.standing(), list(self._work)[-1]
        worst.update(standing=pack_bits(standing), **proportion(standing))
        worst['complete'] = last in worst['attacks'] and self._done('worst_case', last) == len(self._to_face(last))
        self.write()


def file_stem(name: str) -> str:
    """Return a model's name as part of a file name.

    Example:
        >>> file_stem('ours:seed/1')
        'ours_seed_1'
    """
    return ''.join(letter if letter.isalnum() or letter in '.-_' else '_' for letter in name)


def _check(settings: dict[str, Any], attacks: Sequence[Attack]) -> None:
    if not 1 <= settings['eps'] <= 255:
        raise ValueError(f'Got eps={settings["eps"]}; allowed are 1 to 255 levels.')
    for name, least in (('alone', 1), ('worst_case', 0), ('probed', 1), ('batch_size', 1)):
        if settings[name] < least:
            raise ValueError(f'Got {name}={settings[name]}; allowed is at least {least}.')
    names = [attack.name for attack in attacks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f'Got attacks {names}; name at least one, and each once.')
    for attack in attacks:
        if attack.eps > settings['eps'] or attack.kind not in KINDS:
            raise ValueError(
                f'Attack {attack.name!r} has eps={attack.eps} and kind={attack.kind!r}; allowed here are at most '
                f'{settings["eps"]} levels and one of {list(KINDS)}.'
            )
