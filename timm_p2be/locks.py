"""A lock that keeps other processes out of a folder as long as its holder lives, however that ends."""

import fcntl
import logging
import os
import platform
from pathlib import Path

_logger = logging.getLogger(__name__)


class FolderLock:
    """A folder, made if it is missing, that this process alone writes until `close`.

    The lock is POSIX's, which the system drops when a process ends, however it ends; the file `name` says which host
    and process hold it. One that a killed run left behind locks nobody out.

    Args:
        instead: what else to do, for the message.

    Raises:
        ValueError: another run writes there.
    """

    def __init__(self, folder: Path, name: str, instead: str) -> None:
        self.path = folder / name
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            holder = os.read(self._descriptor, 200).decode(errors='replace').strip()
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                os.close(self._descriptor)
                raise ValueError(
                    f'{folder}: another run writes there ({holder}). Wait until it ends, stop it, or choose another '
                    f'{instead}.'
                ) from error
            if self.is_held():
                break
            os.close(self._descriptor)  # its holder has just removed it
        if holder:
            _logger.info(f'{self.path} was left by a run that is gone ({holder}).')
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f'host {platform.node()}, process {os.getpid()}\n'.encode(), 0)

    def is_held(self) -> bool:
        """Return whether the folder still has the file that is locked."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let others write."""
        if self.is_held():
            self.path.unlink()
        os.close(self._descriptor)


def holder_of(path: Path) -> str:
    """Return what the file of a lock says of the process that holds it, '' if none does."""
    try:
        with path.open() as file:  # of another user, perhaps, who lets read
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return ''
    except FileNotFoundError:
        return ''
    except (BlockingIOError, PermissionError):
        return path.read_text(errors='replace').strip()
