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


class Images(ImageDataset):
    """A data set of timm's by index that says which image it cannot read, where timm alone takes the next one instead.

    Args:
        dataset: timm's, whose reader and mode of images are taken over.
        max_bad: so many images are passed over for the next readable one, each named in the log; all processes that
            load for this one count together.

    Raises:
        UnreadableImage: on reading one more.
    """

    def __init__(self, dataset: ImageDataset, max_bad: int = 0) -> None:
        super().__init__('', dataset.reader, input_img_mode=dataset.input_img_mode)
        self.max_bad = max_bad
        self.bad = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        while True:
            try:
                file, label = self.reader[index]
                with file:
                    image = _decode(file, self.input_img_mode)
                break
            except (OSError, UnreadableImage) as error:
                self._pass_over(index, error)
                index = (index + 1) % len(self)
        return image if self.transform is None else self.transform(image), label

    def _pass_over(self, index: int, error: Exception) -> None:
        is_new, self.bad[index] = not self.bad[index], True
        count = int(self.bad.sum())
        name = self.reader.filename(index, absolute=True) or f'image {index}'
        reason = f'cannot be read as an image: {error.strerror or error}.' if isinstance(error, OSError) else error
        if count > self.max_bad or count == len(self):
            allowed = f' {count} of {len(self)} images so far; --max-bad-samples allows {self.max_bad}.'
            raise UnreadableImage(f'{name}: {reason}{allowed if self.max_bad else ""} Get it again, or remove it.')
        if is_new:
            _logger.warning(f'Passed over {name}: {reason} {count} of at most {self.max_bad} images so far.')


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
    """Return a sha256 over name, size and time of change of files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        status = path.stat() if path.exists() else None
        about = (status.st_size, status.st_mtime_ns) if status is not None else None
        digest.update(f'{os.path.relpath(path, root)} {about}\n'.encode(errors='surrogateescape'))
    return digest.hexdigest()
