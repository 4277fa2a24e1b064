"""Start and control tables of the evidence runs, each a function of its parameters and a seed alone."""

import torch

from timm_p2be import PixelEmbedding
from timm_p2be.encodings import LEVELS, thermometer_codes
from timm_p2be.encodings.codes import smooth_latents

_MAGNITUDE = 0.5  # of latents that stand for given codes, as PixelEmbedding's own thermometer start


def build_table(kind: str, seed: int = 0, num_bits: int = 64, **options: float) -> PixelEmbedding:
    """Return the table of one `start:` entry of a grid.

    Args:
        kind: 'normal' (the paper's N(0, 1)), 'thermometer' (the package's start of that name), 'smooth'
            (`smooth_latents`; options length, std), 'shuffled' (thermometer codes in a random order of levels).
        seed: of everything random in it.
        num_bits: M.
        **options: of the kind.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        table = PixelEmbedding('p2be', num_bits, init='thermometer' if kind == 'thermometer' else 'normal')
    assert table.weight is not None
    with torch.no_grad():
        if kind == 'smooth':
            latents = smooth_latents(num_bits, options['length'], generator)
            table.weight.copy_(latents * options.get('std', 1.0))
        elif kind == 'shuffled':
            order = torch.randperm(LEVELS, generator=generator)
            table.weight.copy_((thermometer_codes(num_bits)[order] * 2 - 1) * _MAGNITUDE)
        elif kind not in ('normal', 'thermometer'):
            raise ValueError(f"Unknown kind of table {kind!r}; choose 'normal', 'thermometer', 'smooth' or 'shuffled'.")
    return table
