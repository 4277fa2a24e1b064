"""What a run tells of itself while it trains: figures of its table, trackers that draw them, and curves at the end."""

import argparse
import csv
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from timm_p2be.encodings import PixelEmbedding
from timm_p2be.encodings.statistics import code_statistics, latent_statistics
from timm_p2be.encodings.table_file import pack_codes
from timm_p2be.extras import require
from timm_p2be.hub.pictures import codes_image

TRACKERS = ('tensorboard', 'wandb', 'trackio')
PANELS = {  # of curves.png: columns of summary.csv, by how their names end
    'loss': ('loss', '_ce', '_jsd', '_smoothness'),
    'top 1, %': ('_top1',),
    'learning rate': ('lr', 'lr_embedding'),
    'bits flipped in an epoch, %': ('_bits_flipped',),
    'bits from level to level': ('_neighbor_distance',),
    'dead latents, %': ('_dead_latents',),
}


def packed_bits(embedding: PixelEmbedding | None) -> str:
    """Return the bits of a table as hexadecimal digits, '' without one."""
    return '' if embedding is None else pack_codes(embedding.codes()).numpy().tobytes().hex()


def table_figures(embedding: PixelEmbedding, before: str) -> dict[str, float]:
    """Return figures of a table, of whose bits `packed_bits` was `before` when the epoch began.

    They are the bits that flipped since, in percent; the mean Hamming distance of neighboring levels, in bits; and the
    latents of magnitude 1 or more, in percent, which the straight-through gradient does not reach.
    """
    weight = embedding.weight
    assert weight is not None
    flipped = int(packed_bits(embedding), 16) ^ int(before, 16)
    return {
        'bits_flipped': 100 * flipped.bit_count() / weight.numel(),
        'neighbor_distance': code_statistics(embedding.codes()).neighbors[1],
        'dead_latents': 100 * latent_statistics(weight).saturated,
    }


class Trackers:
    """Experiment trackers of a run, by name; with none, nothing happens.

    Raises:
        ValueError: one is not installed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        modules = {name: require(name, extra='log') for name in names}
        self.boards = [require('torch.utils.tensorboard', extra='log')] if modules.pop('tensorboard', None) else []
        self.modules = [*modules.values()]  # wandb, and trackio, which has its interface
        self.writers: list[Any] = []

    def start(self, args: argparse.Namespace, folder: Path, step: int) -> None:
        """Open a run that goes on after `step` updates."""
        self.writers = [board.SummaryWriter(str(folder / 'tensorboard'), purge_step=step) for board in self.boards]
        for module in self.modules:
            module.init(project=args.log_project, name=folder.name, config=vars(args))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Draw figures after `step` updates."""
        for writer in self.writers:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        for module in self.modules:
            module.log(dict(values), step=step)

    def codes(self, embedding: PixelEmbedding, step: int) -> None:
        """Draw a table as it is after `step` updates."""
        image = codes_image(embedding.codes())
        for writer in self.writers:
            writer.add_image('codes', np.asarray(image), step, dataformats='HWC')
        for module in self.modules:
            module.log({'codes': module.Image(image)}, step=step)

    def close(self) -> None:
        """Write what is still on its way."""
        for writer in self.writers:
            writer.close()
        for module in self.modules:
            module.finish()


def draw_curves(folder: Path) -> Path | None:
    """Draw summary.csv as curves.png beside it, if matplotlib is installed."""
    with (folder / 'summary.csv').open() as file:
        rows = list(csv.DictReader(file))
    if not find_spec('matplotlib') or not rows:
        return None
    panels = {title: [name for name in rows[0] if name.endswith(ends)] for title, ends in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    figure = require('matplotlib.figure', extra='robustness').Figure(figsize=(10, 6), layout='constrained')
    for axes, (title, names) in zip(figure.subplots(2, 3).flat, panels.items(), strict=False):
        for name in names:
            axes.plot([int(row['epoch']) for row in rows], [float(row[name]) for row in rows], '.-', label=name)
        axes.set(title=title, xlabel='epoch', yscale='log' if title == 'learning rate' else 'linear')
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    path = folder / 'curves.png'
    figure.savefig(path)
    return path
