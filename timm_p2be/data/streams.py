"""Streamed data sets of timm's: what cannot be read in them is named, counted and bounded, as in a folder of images."""

import logging
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from timm.data import IterableImageDataset
from timm.data.readers.reader_wds import ReaderWds

from timm_p2be.data.image_files import UnreadableImage

_NAMES = 1 << 20  # for fewer than a hundred, two share a hash in one case of 200
_logger = logging.getLogger(__name__)


class Stream(IterableImageDataset):
    """A streamed data set that says which shard it cannot read; timm's reader of `wds/` logs and goes on without end.

    Args:
        dataset: timm's, whose reader is taken over.
        max_bad: so many shards of `wds/` (from where they are damaged), and images in them, are passed over, each named
            in the log; all processes that load for this one count together.

    Raises:
        UnreadableImage: on reading one more, and at the first one of a `hfids/` data set.
    """

    def __init__(self, dataset: IterableImageDataset, max_bad: int = 0) -> None:
        super().__init__('', reader=dataset.reader)
        self.max_bad = max_bad
        self.bad = torch.zeros(_NAMES, dtype=torch.bool).share_memory_()  # by hash of the name

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        if isinstance(self.reader, ReaderWds):
            self._watch(self.reader)
        samples = iter(self.reader)
        while True:
            try:
                image, label = next(samples)
            except StopIteration:
                return
            except UnreadableImage:
                raise
            except Exception as error:  # readers raise whatever they like
                raise UnreadableImage(
                    f'The data set cannot be read on: {error!r}. If a file of it is damaged, get it again.'
                ) from error
            yield image if self.transform is None else self.transform(image), label

    def _watch(self, reader: Any) -> None:
        """Build the reader's pipeline with our handler of errors, anew for an epoch: a resumed run has no other."""
        reader.ds = None
        reader._lazy_init()
        for stage in reader.ds.pipeline:
            if 'handler' in getattr(stage, 'kw', ()):
                stage.kw['handler'] = self._pass_over
                stage.args = tuple(partial(_decode, decode) for decode in stage.args)

    def _pass_over(self, error: Exception) -> bool:
        if isinstance(error, UnreadableImage):  # of ours, to which a stage further on added what it was reading
            raise UnreadableImage(error.args[0])
        if len(error.args) < 2:  # from inside a shard: the next stage adds its name
            raise error
        reason, name = next(word for word in error.args if isinstance(word, str)), str(error.args[-1])
        slot = zlib.crc32(name.encode()) % _NAMES
        is_new, self.bad[slot] = not self.bad[slot], True
        count = int(self.bad.sum())
        if count > self.max_bad:
            allowed = f' {count} so far; --max-bad-samples allows {self.max_bad}.' if self.max_bad else ''
            raise UnreadableImage(f'{name}: cannot be read: {reason}.{allowed} Get it again, or remove it.')
        if is_new:
            _logger.warning(f'Passed over {name}: cannot be read: {reason}. {count} of at most {self.max_bad} so far.')
        return True


def _decode(decode: Callable[[Any], Any], sample: dict[str, Any]) -> Any:
    """Let an error end with the sample's name, as those of shards do."""
    try:
        return decode(sample)
    except Exception as error:
        error.args = (str(error) or type(error).__name__, f'{sample["__url__"]}: {sample["__key__"]}')
        raise
