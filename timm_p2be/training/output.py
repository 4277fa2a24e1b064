"""The output folder of a run: which checkpoints in it a run may replace, and a lock that keeps other runs out."""

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from timm_p2be.checkpoints import sha256_beside
from timm_p2be.files import atomic_write
from timm_p2be.locks import FolderLock
from timm_p2be.training.building import PROCESS_FIELDS
from timm_p2be.training.checkpoints import checkpoint_files, newest_checkpoint

LOCK = 'run.lock'
_LITTER = re.compile(r'\.(last|model_best|checkpoint-\d+|recovery-[\d-]+)\.pth\.tar(\.sha256)?\..*\.\d+')


class _Plain(yaml.SafeDumper):
    """Writes lists out where two flags share one: recipes have no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


class CannotWrite(OSError):
    """A run's folder takes no more files: full, over quota, read-only, removed, or another run's by now."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn any error of the file system into CannotWrite."""
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        raise CannotWrite(f'Cannot write into {folder}: {error}.') from error


def experiment_folder(args: argparse.Namespace, name: str) -> Path:
    """Return the folder of a run, which has this name unless --experiment gives it one."""
    return Path(args.output or './output/train') / (args.experiment or name)


def settle_resume(args: argparse.Namespace) -> None:
    """Turn `--resume auto` into the newest sound checkpoint, and refuse to overwrite another run's.

    Raises:
        ValueError: the folder of --experiment holds checkpoints that the run neither goes on from nor may delete.
    """
    if not args.experiment:
        return
    folder = experiment_folder(args, '')
    files = checkpoint_files(folder)
    if args.resume == 'auto':
        found = newest_checkpoint(folder)
        if found is None and files:
            raise ValueError(f'--resume auto: none of the {len(files)} checkpoints in {folder} is sound; see above.')
        args.resume = str(found or '')
        return
    goes_on = bool(args.resume) and Path(args.resume).resolve().parent == folder.resolve()
    if goes_on and args.overwrite:
        raise ValueError(f'--overwrite would delete {args.resume}, which --resume goes on from. Leave out one of them.')
    if files and not goes_on and not args.overwrite:
        raise ValueError(
            f'{folder} holds the checkpoints of a run ({files[0].name}, ...). Go on with it by --resume auto, choose '
            'another --experiment, or delete them by --overwrite.'
        )


class OutputFolder:
    """A folder, made if it is missing, that this process alone writes until `close`; see `FolderLock`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FolderLock(path, LOCK, '--experiment')
        for file in path.iterdir():
            if _LITTER.fullmatch(file.name):  # of a run that was killed while it wrote
                file.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise CannotWrite if the folder, or the lock in it, is gone."""
        if not self._lock.is_held():
            raise CannotWrite(f'{self._lock.path} was removed or replaced while the run was at work.')

    def clear(self) -> None:
        """Delete all checkpoints."""
        for path in checkpoint_files(self.path):
            sha256_beside(path).unlink(missing_ok=True)
            path.unlink()

    def write_flags(self, args: argparse.Namespace) -> None:
        """Write args.yaml, which is a recipe of the same run."""
        flags = {name: value for name, value in vars(args).items() if name not in PROCESS_FIELDS}
        flags['overwrite'] = False
        if args.lr_base_scale:
            flags['lr'] = None  # computed from the base, and so again
        with atomic_write(self.path / 'args.yaml') as file:
            file.write(yaml.dump(flags, Dumper=_Plain, default_flow_style=False).encode())

    def close(self) -> None:
        """Let others write."""
        self._lock.close()
