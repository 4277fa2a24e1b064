"""What a benchmark asks of corrupted images: the same ones under several corruptions, as uint8 levels."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from timm_p2be.extras import require
from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from timm_p2be.robustness.images import collate

Batch = tuple[Tensor, Tensor]  # uint8 levels (B, 3, H, W), int64 labels (B,)
Images = Dataset[tuple[NDArray[np.uint8], int]]  # uint8 levels (H, W, 3) and their label


class CorruptedSet:
    """The same images under several corruptions and severities.

    Attributes:
        names: corruptions, those of the benchmark first and in its order.
        severities: ascending.
        suite: 'cifar' or 'imagenet', which fixes the side of the images.
        num_classes: of the data if it is known, else None.
        labels: (N,) int64, the same for all corruptions and severities.
    """

    suite: str
    num_classes: int | None = None
    labels: NDArray[np.int64]

    def __init__(self, names: Iterable[str], severities: Sequence[int]) -> None:
        self.names, self.severities = tuple(names), check_severities(severities)

    def __len__(self) -> int:
        """Return the number of images at each severity of each corruption."""
        return len(self.labels)

    def images(self, name: str, severity: int) -> Images:
        """Return the images of one corruption and severity."""
        raise NotImplementedError

    def batches(self, name: str, severity: int, spans: Sequence[range], workers: int = 0) -> Iterator[Batch]:
        """Yield one batch for each range of indices; see `load_batches`."""
        return load_batches(self.images(name, severity), spans, workers)

    def prepare(self, name: str, workers: int = 0, beat: Callable[[str], None] = print) -> None:
        """Do what must be done once, by one process, before `batches` of a corruption; `beat` is told now and then."""

    def describe(self) -> dict[str, Any]:
        """Return what reports say of the data and what two runs must share, JSON values only."""
        raise NotImplementedError


def choose_names(
    names: Sequence[str] | None, extra: bool = False, found: set[str] | None = None, where: str = 'The benchmark'
) -> tuple[str, ...]:
    """Return the corruptions to use, in the order of the benchmark, others by name.

    Args:
        names: None takes the 15 of the benchmark, or all if there is none of these.
        extra: add the four extra ones.
        found: those that are there; None if any of the benchmark can be made.
        where: what errors call the place.
    """
    known = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
    there = set(known) if found is None else found

    def ordered(names: set[str]) -> tuple[str, ...]:
        return *(name for name in known if name in names), *sorted(names - set(known))

    wanted = set(names if names is not None else CORRUPTIONS if there & set(known) else there)
    wanted |= set(EXTRA_CORRUPTIONS) if extra else set()
    missing = ordered(wanted - there)
    if missing or not wanted:
        raise ValueError(
            f'{where} has no corruption {", ".join(missing)}; it has {", ".join(ordered(there)) or "none"}. Choose '
            'among these with --corruptions, or add what is missing.'
        )
    return ordered(wanted)


def check_severities(severities: Sequence[int]) -> tuple[int, ...]:
    """Return the severities in order."""
    if not severities or not set(severities) <= set(SEVERITIES):
        raise ValueError(f'Got severities {list(severities)}; choose from {list(SEVERITIES)}.')
    return tuple(sorted(set(severities)))


def spans_of(count: int, batch_size: int) -> list[range]:
    """Return 0..count-1 cut into ranges of `batch_size`, the last one shorter.

    Example:
        >>> spans_of(5, 2)
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


class Rows(Dataset[tuple[NDArray[np.uint8], int]]):
    """Images of an array (rows, H, W, 3), from row `start` on."""

    def __init__(self, array: NDArray[np.uint8], labels: NDArray[np.int64], start: int) -> None:
        self.array, self.labels, self.start = array, labels, start

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        return self.array[self.start + index], int(self.labels[index])


def load_batches(images: Images, spans: Sequence[range], workers: int) -> Iterator[Batch]:
    """Yield one batch for each range of indices, read by `workers` processes (0: by this one, as `Rows` always are)."""
    loader = DataLoader(
        images,
        batch_sampler=[list(span) for span in spans],
        num_workers=0 if isinstance(images, Rows) else min(workers, len(spans)),
        worker_init_fn=_one_thread,
        collate_fn=collate,
    )
    try:
        yield from loader
    except ValueError as error:  # a worker's error comes wrapped in its traceback
        raise ValueError(str(error).strip().rpartition('ValueError: ')[2]) from None
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        raise ValueError(
            f'A process that reads images died ({error}). Pass fewer --workers if memory is short.'
        ) from None


def _one_thread(worker: int) -> None:
    # OpenCV's threads do not survive a fork, and workers share the cores already
    require('cv2', extra='robustness').setNumThreads(0)
