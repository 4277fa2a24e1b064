"""Writing pictures where a flag says."""

from pathlib import Path

from PIL import Image

from timm_p2be.files import atomic_write


def save_picture(image: Image.Image, path: Path, overwrite: bool) -> None:
    """Write a picture, whole or not at all, in the format that the file's name ends in."""
    if path.exists() and not overwrite:
        raise ValueError(f'{path} is there already. Choose another place, or pass --overwrite.')
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f'{path}: unknown kind of image {path.suffix!r}; name a .png or .jpg file.')
    with atomic_write(path) as file:
        image.save(file, kind)
