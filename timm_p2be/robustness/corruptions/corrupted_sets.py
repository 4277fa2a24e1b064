"""What a benchmark asks of corrupted images: the same ones under several corruptions, as uint8 levels."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from timm_p2be.data.image_files import last_message
from timm_p2be.extras import require
from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from timm_p2be.robustness.images import Pixels, collate

Batch = tuple[Tensor, Tensor]  # uint8 levels (B, 3, H, W), int64 labels (B,)
Labeled = tuple[Pixels, int]  # uint8 levels (H, W, 3) and their label


class CorruptedSet:
    """The same images under several corruptions and severities.

    Attributes:
        names: corruptions, those of the benchmark first and in its order.
        severities: ascending.
        suite: 'cifar' or 'imagenet', which fixes the side of the images.
        num_classes: of the data if it is known, else None.
        class_names: of the labels 0, 1, ... if they are known, else None.
    """

    suite: str
    num_classes: int | None = None
    class_names: Sequence[str] | None = None

    def __init__(self, names: Iterable[str], severities: Sequence[int]) -> None:
        if not severities or not set(severities) <= set(SEVERITIES):
            raise ValueError(f'Got severities {list(severities)}; choose from {list(SEVERITIES)}.')
        self.names, self.severities = tuple(names), tuple(sorted(set(severities)))

    def __len__(self) -> int:
        """Return the number of images at each severity of each corruption."""
        raise NotImplementedError

    def image(self, name: str, severity: int, index: int) -> Labeled:
        """Return one image and its label, which is the same for all corruptions and severities."""
        raise NotImplementedError

    def batches(self, name: str, severity: int, spans: Sequence[range], workers: int = 0) -> Iterator[Batch]:
        """Yield one batch for each range of indices; see `load_batches`."""
        return load_batches(partial(self.image, name, severity), spans, workers)

    def describe(self) -> dict[str, Any]:
        """Return what reports say of the data and what two runs must share, JSON values only."""
        raise NotImplementedError


def choose_names(
    names: Sequence[str] | None, extra: bool = False, found: set[str] | None = None, where: str = 'The benchmark'
) -> tuple[str, ...]:
    """Return the corruptions to use, in the order of the benchmark, others by name, and the four extra ones if `extra`.

    `names` by default are the 15 of the benchmark, or all if none of these is `found`; None if any can be made.
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


def spans_of(count: int, batch_size: int) -> list[range]:
    """Return 0..count-1 cut into ranges of `batch_size`, the last one shorter."""
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


class _ByIndex(Dataset[Labeled]):
    def __init__(self, image: Callable[[int], Labeled]) -> None:
        self.image = image

    def __getitem__(self, index: int) -> Labeled:
        return self.image(index)


def load_batches(image: Callable[[int], Labeled], spans: Sequence[range], workers: int) -> Iterator[Batch]:
    """Yield one batch of images for each range of indices, made by `workers` processes (0: by this one)."""
    loader = DataLoader(
        _ByIndex(image),
        batch_sampler=[list(span) for span in spans],
        num_workers=min(workers, len(spans)),
        worker_init_fn=_one_thread,
        collate_fn=collate,
    )
    try:
        yield from loader
    except ValueError as error:  # a worker's error comes wrapped in its traceback
        raise ValueError(last_message(error)) from None
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        raise ValueError(
            f'A process that reads images died ({error}). Pass fewer --workers if memory is short.'
        ) from None


def _one_thread(worker: int) -> None:
    # OpenCV's threads do not survive a fork, and workers share the cores already
    require('cv2', extra='robustness').setNumThreads(0)
