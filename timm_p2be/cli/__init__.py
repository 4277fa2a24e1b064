"""The subcommands of `timm-p2be`, a file each; `python -m timm_p2be.cli` is the same command."""

import timm_p2be  # noqa: F401  registers the models and optimizers, which is what `run` is for
from timm_p2be_cli import main

__all__ = ['main']
