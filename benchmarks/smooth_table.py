"""Make the control of the transfer experiment: a table that has seen the smoothness loss (Eq. 9) and not one image.

    python benchmarks/smooth_table.py FOLDER [--seed N]

From N(0, 1), by AdamW as in recipes/cifar10_plain_cpu.yaml at the rates of docs/hub.md: as many steps as eight epochs
of CIFAR-10 have, the learning rate from 1e-2 to 1e-4 by a cosine. Takes seconds. For `benchmarks/transfer.yaml`.
"""

import argparse
from pathlib import Path

import torch

from timm_p2be import PixelEmbedding, smoothness_loss

STEPS = 3120
RATE, FLOOR = 1e-2, 1e-4


def smooth_table(seed: int) -> PixelEmbedding:
    """Return a (256, 64) table trained by the smoothness loss alone."""
    torch.manual_seed(seed)
    table = PixelEmbedding('p2be', num_bits=64)
    optimizer = torch.optim.AdamW(table.parameters(), RATE, betas=(0.999, 0.999), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, FLOOR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        assert table.weight is not None
        smoothness_loss(table.weight).backward()
        optimizer.step()
        schedule.step()
    return table


def main() -> None:
    """Write the table."""
    summary, _, details = (__doc__ or '').partition('\n')
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path, help='of the embedding')
    parser.add_argument('--seed', type=int, default=42, help='default: %(default)s')
    args = parser.parse_args()
    smooth_table(args.seed).save_pretrained(args.folder)


if __name__ == '__main__':
    main()
