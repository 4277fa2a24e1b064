"""Streamed data sets of timm's: what cannot be read in them is named, counted and bounded, as in a folder of images."""

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from timm.data import IterableImageDataset
from timm.data.readers.reader_wds import ReaderWds

from timm_p2be.data.image_files import PassedOver, UnreadableImage

_NAMES = 1 << 20  # for fewer than a hundred, two share a hash in one case of 200


class Stream(IterableImageDataset):
    """A streamed data set that says which shard it cannot read; timm's reader of `wds/` logs and goes on without end.

    Args:
        dataset: timm's, whose reader is taken over.
        max_bad: so many shards of `wds/` (from where they are damaged), and images in them, are passed over.

    Raises:
        UnreadableImage: on reading one more, and at the first one of a `hfids/` data set.
    """

    def __init__(self, dataset: IterableImageDataset, max_bad: int = 0) -> None:
        super().__init__('', reader=dataset.reader)
        self.passed_over = PassedOver(max_bad, _NAMES)  # by hash of the name

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
        self.passed_over.add(zlib.crc32(name.encode()) % _NAMES, f'{name}: cannot be read: {reason}.')
        return True


def _decode(decode: Callable[[Any], Any], sample: dict[str, Any]) -> Any:
    """Let an error end with the sample's name, as those of shards do."""
    try:
        return decode(sample)
    except Exception as error:
        error.args = (str(error) or type(error).__name__, f'{sample["__url__"]}: {sample["__key__"]}')
        raise
