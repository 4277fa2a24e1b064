"""The result file of an attack benchmark, MODEL.attacks.json: what has been done, what it says, and what is left."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from timm_p2be.files import content_of
from timm_p2be.robustness.attacks.attack import Attack, check_counts, check_eps
from timm_p2be.robustness.evaluation.results import Bits, ResultFile, pack_bits, proportion, unpack_bits
from timm_p2be.robustness.images import ImageSet
from timm_p2be.robustness.pixel_model import PixelModel

_BITS = {'alone': 'success', 'worst_case': 'felled'}  # where attacks run -> what their bits are called
PARTS = tuple(_BITS)
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

    def __init__(self, content: dict[str, Any], path: Path | None = None) -> None:
        super().__init__(content, path)
        self.__dict__.update(content['settings'])
        self.count = max(self.alone, self.worst_case)
        if content['clean'] is not None:
            unpack_bits(content['clean']['correct'], self.count)  # there are so many images, whoever wrote the file
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

        The settings are the attributes; `overwrite` drops an earlier file.
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
        path = folder / (re.sub(r'[^\w.-]', '_', model.name) + '.attacks.json') if folder is not None else None
        results = cls.open(
            path, configuration, {'clean': None, 'alone': {}, 'worst_case': worst}, overwrite, model.device
        )
        if results.content['clean'] is not None:
            with content_of(str(path)):  # what an earlier run wrote is read before it is needed
                results.work_left()
                [results.bits('alone', name) for name in results._work]
                _read_probes(results.content.get('probes', {}))
        return results

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

    def bits(self, part: str, name: str) -> Bits:
        """Return what attack `name` has felled so far: alone, (alone,), or first in the worst case, (worst_case,)."""
        count = self.alone if part == 'alone' else self.worst_case
        entry = self._entries(part).get(name)
        return unpack_bits(entry[_BITS[part]], count) if entry else np.zeros(count, bool)

    def standing(self, before: str | None = None) -> Bits:
        """Return (worst_case,) bits: images that stand now, or that stood before attack `before`."""
        standing = self.clean[: self.worst_case]
        for name in self._work:
            if name == before:
                break
            standing &= ~self.bits('worst_case', name)
        return standing

    def left(self, part: str, name: str) -> list[list[int]]:
        """Return the batches of images that the attack has to face yet; the worst case takes over what it did alone."""
        if part == 'worst_case' and self.worst_case and name not in self._entries(part):
            standing, both = self.standing(name), min(self.alone, self.worst_case)
            felled = np.zeros(self.worst_case, bool)
            felled[:both] = self.bits('alone', name)[:both] & standing[:both]
            faced, taken_over = int(standing.sum()), int(standing[:both].sum())
            self._store(part, name, {'faced': faced, 'taken_over': taken_over, 'done': 0, 'seconds': 0.0}, felled)
        indices = self._to_face(part, name)[self._done(part, name) :]
        return [indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size)]

    def add(self, part: str, name: str, indices: list[int], success: Bits, seconds: float) -> None:
        """Add a batch of an attack, of the images `indices`."""
        bits, entry = self.bits(part, name), self._entries(part).get(name, {'done': 0, 'seconds': 0.0})
        bits[indices] = success
        entry.update(done=entry['done'] + len(indices), seconds=entry['seconds'] + seconds)
        self._store(part, name, entry, bits)

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
            self.work(name, len(self._to_face(part, name)) - self._done(part, name))
            for name in self._work
            for part in PARTS
        )

    def _entries(self, part: str) -> dict[str, Any]:
        return self.content['alone'] if part == 'alone' else self.content['worst_case'].get('attacks', {})

    def _done(self, part: str, name: str) -> int:
        return self._entries(part).get(name, {'done': 0})['done']

    def _to_face(self, part: str, name: str) -> list[int]:
        """Return the images that an attack faces: alone all; in the worst case those that stand and are not in both."""
        if part == 'alone':
            return list(range(self.alone))
        return [int(index) for index in np.flatnonzero(self.standing(name)) if index >= self.alone]

    def _store(self, part: str, name: str, entry: dict[str, Any], bits: Bits) -> None:
        """Store what attack `name` has felled, and count what stands."""
        self._entries(part)[name] = entry
        entry[_BITS[part]] = pack_bits(bits)
        if part == 'worst_case':
            entry['number'] = int(bits.sum())
            worst, standing, last = self.content[part], self.standing(), list(self._work)[-1]
            worst.update(standing=pack_bits(standing), **proportion(standing))
            worst['complete'] = last in worst['attacks'] and self._done(part, last) == len(self._to_face(part, last))
        elif entry['done'] == self.alone:
            entry.update(proportion(self.clean[: self.alone] & ~bits))
        self.write()


def _read_probes(probes: Mapping[str, Any]) -> None:
    """Raise what probes of an earlier run would raise where they are continued."""
    for shares in probes.get('gradients', {}).values():
        math.fsum((shares['zero'], shares['nonfinite']))
    for curve in probes.get('curves', {}).values():
        [point['number'] / point['count'] + point['accuracy'] for axis in ('eps', 'steps') for point in [*curve[axis]]]
    if found := probes.get('binarization'):
        range(sum(found[name] for name in ('tried', 'separable', 'solved', 'random')))
    if found := probes.get('examples'):
        found['attack']


def _check(settings: dict[str, Any], attacks: Sequence[Attack]) -> None:
    check_eps(settings['eps'])
    check_counts(**{name: settings[name] for name in ('eps', 'alone', 'probed', 'batch_size')})
    check_counts(least=0, worst_case=settings['worst_case'])
    names = [attack.name for attack in attacks]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f'Got attacks {names}; take at least one, and each once. Label models to transfer from, as a:NAME=FILE.'
        )
    for attack in attacks:
        if attack.eps > settings['eps']:
            raise ValueError(
                f'Attack {attack.name!r} has eps={attack.eps}; allowed here are at most {settings["eps"]} levels.'
            )
