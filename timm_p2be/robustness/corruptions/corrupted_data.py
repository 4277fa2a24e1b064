"""What the corruption benchmark asks of data: the same images under several corruptions, as uint8 levels."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, SUITES

RECORD = 'corrupted.json'  # beside sets that this package wrote: how they were made
Batch = tuple[Tensor, Tensor]  # uint8 levels (B, 3, H, W), int64 labels (B,)


class CorruptedSet(Protocol):
    """The same images under several corruptions and severities.

    Attributes:
        names: corruptions, those of the benchmark first and in its order.
        severities: ascending.
        suite: 'cifar' or 'imagenet', which fixes the side of the images.
        num_classes: of the data if it is known, else None.
    """

    names: tuple[str, ...]
    severities: tuple[int, ...]
    suite: str
    num_classes: int | None

    def __len__(self) -> int:
        """Return the number of images at each severity of each corruption."""

    def labels(self, name: str, severity: int) -> NDArray[np.int64]:
        """Return the labels (N,)."""

    def batches(self, name: str, severity: int, spans: Sequence[range], workers: int = 0) -> Iterator[Batch]:
        """Yield one batch for each range of indices."""

    def prepare(self, name: str, workers: int = 0, beat: Callable[[str], None] = print) -> None:
        """Do what must be done once, by one process, before `batches` of a corruption; `beat` is told now and then."""

    def describe(self) -> dict[str, Any]:
        """Return what reports say of the data and what two runs must share, JSON values only."""


def load_batches(
    dataset: Dataset[tuple[Tensor, int]],
    spans: Sequence[range],
    workers: int,
    worker_init: Callable[[int], None] | None = None,
) -> Iterator[Batch]:
    """Yield one batch for each range of indices, read by `workers` processes (0: by this one)."""
    loader = DataLoader(
        dataset,
        batch_sampler=[list(span) for span in spans],
        num_workers=min(workers, len(spans)),
        worker_init_fn=worker_init,
    )
    try:
        yield from loader
    except ValueError as error:  # a worker's error comes wrapped in its traceback
        message = str(error).strip()
        raise ValueError(message.rpartition('ValueError: ')[2]) from None
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        raise ValueError(
            f'A process that reads images died ({error}). Pass fewer --workers if memory is short.'
        ) from None


def spans_of(count: int, batch_size: int) -> list[range]:
    """Return 0..count-1 cut into ranges of `batch_size`, the last one shorter.

    Example:
        >>> spans_of(5, 2)
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def choose_names(found: set[str] | None, names: Sequence[str] | None, extra: bool, where: str) -> tuple[str, ...]:
    """Return the corruptions to use, in the order of the benchmark, others by name.

    Args:
        found: what is there; None if anything of the benchmark can be made.
        names: what the user asked for; None takes the 15, or all of `found` if it has none of the benchmark's.
        extra: add the four extra ones.
        where: what the error calls the place.

    Raises:
        ValueError: a corruption that is not there, or no corruption.
    """
    known = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
    there = set(known) if found is None else found
    wanted = list(names) if names is not None else list(CORRUPTIONS if there & set(known) else sorted(there))
    wanted += [name for name in EXTRA_CORRUPTIONS if extra and name not in wanted]
    if not wanted:
        raise ValueError(f'No corruption named; choose from {_ordered(there)}.')
    missing = [name for name in _ordered(set(wanted)) if name not in there]
    if missing:
        raise ValueError(
            f'{where} has no corruption {", ".join(missing)}; it has {", ".join(_ordered(there)) or "none"}. Choose '
            'among these with --corruptions, or add what is missing.'
        )
    return _ordered(set(wanted))


def check_severities(severities: Sequence[int]) -> tuple[int, ...]:
    """Return the severities in order.

    Raises:
        ValueError: none, or not of 1 to 5.
    """
    if not severities or not set(severities) <= set(SEVERITIES):
        raise ValueError(f'Got severities {list(severities)}; choose from {list(SEVERITIES)}.')
    return tuple(sorted(set(severities)))


def checked_limit(limit: int | None, total: int) -> int:
    """Return how many of `total` images to use.

    Raises:
        ValueError: fewer than 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f'Got limit={limit}; take at least 1 image.')
    return total if limit is None else min(limit, total)


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return how a set that this package wrote was made, or None beside any other set.

    Raises:
        ValueError: a damaged record.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
        if not isinstance(record['label'], str):
            raise TypeError('its label is no text')
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is damaged ({error}); write the set again.') from error
    return record


def subset(count: int, total: int) -> str:
    """Return which images are used, in words."""
    return 'all' if count == total else f'first {count} of {total} at each severity'


def describe_stored(
    data: CorruptedSet, label: str | None, folder: Path, total: int, record: dict[str, Any] | None
) -> dict[str, Any]:
    """Return what reports say of a stored set.

    Args:
        data: the set.
        label: of the published set that it has the layout and size of, if any.
        folder: where it lies.
        total: images at each severity, used or not.
        record: how it was made, if this package wrote it.
    """
    side = SUITES[data.suite]
    made = record or {}
    return {
        'label': made.get('label') or label or f'{folder.resolve().name} ({data.suite} layout)',
        'suite': data.suite,
        'source': 'stored' if record is None else 'stored, written by timm-p2be',
        'official': label is not None and record is None,
        'images': len(data),
        'classes': len(np.unique(data.labels(data.names[0], data.severities[0]))),
        'subset': subset(len(data), total),
        'transform': f'none: stored {side}x{side} pixels as they are',
        'seed': made.get('seed'),
        'record': record,
    }


def _ordered(names: set[str]) -> tuple[str, ...]:
    known = [name for name in (*CORRUPTIONS, *EXTRA_CORRUPTIONS) if name in names]
    return (*known, *sorted(names - set(known)))
