"""Image files of strangers: decoded within limits, named where they cannot be read, and never replaced in silence."""

import hashlib
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image
from timm.data import ImageDataset

MAX_ASPECT = 100  # of the sides; resized to a shorter side of 256, an image takes 20 MB then

_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'PPM', 'TIFF')  # of Pillow's; EPS, say, would run Ghostscript
_logger = logging.getLogger(__name__)


class UnreadableImage(ValueError):
    """An image cannot be read, or more of them than may be passed over."""


def open_image(file: BinaryIO | Path, named: str, mode: str | None = 'RGB') -> Image.Image:
    """Return the decoded image of a file; the messages of an UnreadableImage begin with `named`.

    Images of more pixels than Pillow's `Image.MAX_IMAGE_PIXELS`, about 89 million, are refused before they are decoded.
    """
    try:
        return _decode(file, mode)
    except UnreadableImage as error:
        raise UnreadableImage(f'{named} {error} Get it again.') from error


def _decode(file: BinaryIO | Path, mode: str | None) -> Image.Image:
    try:
        if isinstance(file, Path) and file.exists() and not file.is_file():
            raise ValueError('no regular file')
        with Image.open(file, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > (Image.MAX_IMAGE_PIXELS or width * height):
                raise ValueError(f'{width}x{height} pixels, more than {Image.MAX_IMAGE_PIXELS}')
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise ValueError(f'{width}x{height} pixels; one side may be {MAX_ASPECT} times the other at most')
            return image.convert(mode or image.mode)
    except Exception as error:  # decoders raise whatever they like
        reason = f'{error or type(error).__name__}'
        raise UnreadableImage(f'cannot be read as an image: {reason:.300}.') from error


class PassedOver:
    """What could not be read of a data set, counted by all processes that load for it together.

    Args:
        most: so much is passed over, each time named in the log.
        slots: number of things that are told apart.
    """

    def __init__(self, most: int, slots: int) -> None:
        self.most = most
        self.seen = torch.zeros(slots, dtype=torch.bool).share_memory_()

    def add(self, slot: int, what: str) -> None:
        """Pass over one more, of which `what` says why, or raise UnreadableImage."""
        is_new, self.seen[slot] = not self.seen[slot], True
        count = int(self.seen.sum())
        if count > self.most or count == len(self.seen):
            allowed = f' {count} so far; --max-bad-samples allows {self.most}.' if self.most else ''
            raise UnreadableImage(f'{what}{allowed} Get it again, or remove it.')
        if is_new:
            _logger.warning(f'Passed over {what} {count} of at most {self.most} so far.')


class Images(ImageDataset):
    """A data set of timm's by index that says which image it cannot read, where timm alone takes the next one instead.

    Args:
        dataset: timm's, whose reader and mode of images are taken over.
        max_bad: so many images are passed over for the next readable one.

    Raises:
        UnreadableImage: on reading one more.
    """

    def __init__(self, dataset: ImageDataset, max_bad: int = 0) -> None:
        super().__init__('', dataset.reader, input_img_mode=dataset.input_img_mode)
        self.passed_over = PassedOver(max_bad, len(dataset))

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        while True:
            try:
                file, label = self.reader[index]
                with file:
                    image = _decode(file, self.input_img_mode)
                break
            except (OSError, UnreadableImage) as error:
                name = self.reader.filename(index, absolute=True) or f'image {index}'
                reason = str(error)
                if isinstance(error, OSError):
                    reason = f'cannot be read as an image: {error.strerror or error}.'
                self.passed_over.add(index, f'{name}: {reason}')
                index = (index + 1) % len(self)
        return image if self.transform is None else self.transform(image), label


def last_message(error: Exception) -> str:
    """Return the message of an error that a worker of a DataLoader may have wrapped in its traceback."""
    return re.sub(r'(?s)^Caught .*\n[\w.]+: ', '', str(error).strip())


def image_files(root: Path) -> list[Path]:
    """Return the files below a folder, links followed.

    Raises:
        ValueError: a folder cannot be listed, links back to one above it, or holds a pipe, on which readers would wait.
    """
    found: list[Path] = []
    waiting: list[tuple[str, tuple[Any, ...]]] = [(str(root), ())]
    while waiting:
        folder, above = waiting.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116
            entries = [(entry, entry.is_dir(), entry.is_file()) for entry in os.scandir(folder)]
        except OSError as error:
            raise ValueError(f'{folder} cannot be listed: {error.strerror}. Mend or remove it.') from error
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise ValueError(f'{folder} links back to a folder above it, whose images would come again. Remove it.')
        for entry, is_dir, is_file in entries:
            path = Path(entry.path)
            if is_dir:
                waiting.append((entry.path, (*above, here)))
            elif is_file or not path.exists():  # a link to nothing is an unreadable image
                found.append(path)
            else:
                raise ValueError(f'{path} is neither a file nor a folder but a pipe, socket or device. Remove it.')
    return found


def check_folder(root: Path, split: str) -> None:
    """Raise what `image_files` does, before timm's reader waits for a pipe or follows links without end."""
    folder = root / split
    if root.is_dir():
        image_files(folder if folder.is_dir() else root)


def hash_files(paths: Iterable[Path], root: Path) -> str:
    """Return a sha256 over name and size of files, equal for a copy of them elsewhere."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size if path.exists() else None
        digest.update(f'{os.path.relpath(path, root)} {size}\n'.encode(errors='surrogateescape'))
    return digest.hexdigest()
