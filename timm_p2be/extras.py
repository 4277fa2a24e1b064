"""Optional packages, imported where they are used; a missing one is an error that names the extra to install."""

from importlib import import_module
from typing import Any


class MissingExtra(ModuleNotFoundError, ValueError):
    """A package of an optional extra is not installed."""


def require(module: str, extra: str) -> Any:
    """Import a module of an optional package and return it.

    Args:
        module: dotted name, such as 'scipy.ndimage'.
        extra: of timm-p2be, to which its package belongs.

    Raises:
        MissingExtra: the package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f'{error.name or module} is not installed; it comes with the extra [{extra}]: '
            f"pip install 'timm-p2be[{extra}]'"
        ) from error
