#!/usr/bin/env python3
"""Train a small CNN with certificates (IBPTask) on pixel values and on codes, certify it, attack what is certified.

    python benchmarks/certificates.py --data CIFAR10_FOLDER --json FILE [--eps 1 2] [--epochs 10] [--images 1000]

FOLDER has train-*.parquet and test-*.parquet of CIFAR-10 (columns img and label). All networks have the same layers,
seed, batches and crops; only the stem differs. A network in the JSON file is not trained again. Figures are of the
first --images test images: clean and certified accuracy, widths of the intervals of stem and logits, what the attacks
leave, and how many certified images fell to one of them, which must be none; seconds of CPU time an epoch (eps 0 is
plain training).
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from torch import Tensor, nn

from timm_p2be import convert, find_embedding
from timm_p2be.encodings.statistics import code_statistics
from timm_p2be.robustness.attacks import APGD, DGA, LSPGA, Attack, Square
from timm_p2be.robustness.attacks.judge import attack_batch, seeded
from timm_p2be.robustness.certify import IBPTask, IntervalNetwork, certified
from timm_p2be.robustness.evaluation.results import environment
from timm_p2be.robustness.pixel_model import PixelModel

# name -> encoding and kind of the table it starts from (evidence/tables.py); None reads pixel values
STEMS: dict[str, tuple[str, str | None] | None] = {
    'rgb': None,
    'onehot': ('onehot', None),
    'thermometer': ('thermometer', None),
    'p2be-normal': ('p2be', 'normal'),
    'p2be-smooth': ('p2be', 'smooth'),
}
sys.path.insert(0, str(Path(__file__).with_name('evidence')))
from tables import build_table  # noqa: E402

BATCH, LR, KAPPA = 128, 1e-3, 0.5


def small_cnn(stem: str, seed: int) -> nn.Module:
    """Return three convolutions and two linear layers, the first reading what `stem` says."""
    torch.manual_seed(seed)
    model = nn.Sequential()
    for name, module in (
        ('conv1', nn.Conv2d(3, 32, 3, padding=1)),
        ('act1', nn.ReLU()),
        ('conv2', nn.Conv2d(32, 32, 4, stride=2, padding=1)),
        ('act2', nn.ReLU()),
        ('conv3', nn.Conv2d(32, 64, 4, stride=2, padding=1)),
        ('act3', nn.ReLU()),
        ('flatten', nn.Flatten()),
        ('fc1', nn.Linear(64 * 8 * 8, 128)),
        ('act4', nn.ReLU()),
        ('fc', nn.Linear(128, 10)),
    ):
        model.add_module(name, module)
    model.num_classes = 10  # type: ignore[assignment]
    cfg = {
        'first_conv': 'conv1',
        'mean': (0.0,) * 3,
        'std': (1.0,) * 3,
        'input_size': (3, 32, 32),
        'architecture': stem,
    }
    model.pretrained_cfg = cfg  # type: ignore[assignment]
    if (encoding := STEMS[stem]) is not None:
        convert(model, encoding[0])
    if encoding is not None and encoding[1] is not None:
        find_embedding(model).load_state_dict(build_table(encoding[1], seed, length=64).state_dict())
    return model


def load(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return uint8 images (N, 3, 32, 32) and labels (N,)."""
    data = load_dataset('parquet', data_files=str(folder / f'{split}-*.parquet'), split='train')
    images = np.stack([np.asarray(image.convert('RGB')) for image in data['img']])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(data['label'])


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return randomly shifted (up to 4 pixels, zeros come in) and mirrored images, uint8."""
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (2, len(images), 1), generator=generator)
    rows = (top + torch.arange(32)).view(-1, 1, 32, 1)
    columns = (left + torch.arange(32)).view(-1, 1, 1, 32)
    flip = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(3), columns)
    number = torch.arange(len(images)).view(-1, 1, 1, 1)
    return padded[number, torch.arange(3).view(1, 3, 1, 1), rows, columns]


def train(model: nn.Module, eps: int, epochs: int, images: Tensor, labels: Tensor, seed: int) -> dict[str, Any]:
    """Train by IBPTask, or by cross-entropy with eps 0; return what it cost."""
    generator = torch.Generator().manual_seed(seed)
    updates = epochs * (len(images) // BATCH)
    task = IBPTask(model, eps, KAPPA, warmup=updates // 2) if eps else None
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    start = time.process_time()
    parts: dict[str, Tensor] = {}
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for number in order[: len(images) // BATCH * BATCH].split(BATCH):
            batch = crop_and_flip(images[number], generator)
            if task is not None:
                parts = task(batch, labels[number])
            else:
                parts = {'loss': nn.functional.cross_entropy(model(batch / 255), labels[number])}
            optimizer.zero_grad()
            parts['loss'].backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            schedule.step()
    return {'seconds_per_epoch': round((time.process_time() - start) / epochs, 1)}


def neighbor_distance(model: nn.Module, stem: str) -> float | None:
    """Return the mean number of bits that flip from one level to the next; None for pixel values."""
    if STEMS[stem] is None:
        return None
    return round(code_statistics(find_embedding(model).codes()).neighbors[1], 3)


def judge(model: nn.Module, eps: int, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return clean, certified and attacked accuracy in percent, and mean widths of intervals."""
    pixel_model = PixelModel(model.eval())
    proven = torch.cat(
        [certified(model, *some, eps) for some in zip(images.split(500), labels.split(500), strict=True)]
    )
    with torch.no_grad():
        bounds = IntervalNetwork(pixel_model).propagate(images[:100], eps)
        standing = pixel_model(images).argmax(dim=1) == labels
    figures: dict[str, Any] = {
        'clean': round(100 * standing.float().mean().item(), 2),
        'certified': round(100 * proven.float().mean().item(), 2),
        'stem_width': round((bounds.stem.upper - bounds.stem.lower).mean().item(), 5),
        'logit_width': round((bounds.logits.upper - bounds.logits.lower).mean().item(), 5),
    }
    suite: list[Attack] = [
        LSPGA.official(pixel_model, eps),
        DGA(pixel_model, eps),
        APGD(pixel_model, eps, loss='margin'),
        Square(pixel_model, eps, queries=1000),
    ]
    fallen_certified = 0
    for attack in suite:
        # all images, certified or not: what still stands, and every certified one by every attack
        some = (standing | proven).nonzero().squeeze(1)
        if len(some) == 0:
            break
        _, fell = attack_batch(pixel_model, attack, images[some], labels[some], eps, seeded(attack.name))
        hit = some[torch.from_numpy(fell)]
        fallen_certified += int(proven[hit].sum())
        standing[hit] = False
    figures['attacked'] = round(100 * standing.float().mean().item(), 2)
    figures['certified_that_fell'] = fallen_certified
    return figures


def main() -> None:
    """Train, certify, attack, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--json', type=Path, required=True)
    parser.add_argument('--stems', nargs='+', choices=STEMS, default=list(STEMS))
    parser.add_argument('--eps', type=int, nargs='+', default=[0, 1, 2], help='levels; 0 trains without certificates')
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--images', type=int, default=1000, help='test images to certify and attack')
    parser.add_argument('--train-images', type=int, default=50_000)
    parser.add_argument('--seed', type=int, default=42)
    args = parser.parse_args()
    config = {name: getattr(args, name) for name in ('epochs', 'images', 'train_images', 'seed')}
    content = {'config': config, 'environment': environment(), 'networks': {}}
    if args.json.is_file():
        content = json.loads(args.json.read_text())
        if content['config'] != config:
            raise SystemExit(f'certificates.py: error: {args.json} holds figures of {content["config"]}; name another.')
    train_set, test_set = load(args.data, 'train'), load(args.data, 'test')
    for eps in args.eps:
        for stem in args.stems:
            name = f'{stem}-eps{eps}'
            if name in content['networks']:
                continue
            model = small_cnn(stem, args.seed)
            before = neighbor_distance(model, stem)
            cost = train(model, eps, args.epochs, *(part[: args.train_images] for part in train_set), args.seed)
            bits = {'neighbor_distance': [before, neighbor_distance(model, stem)]} if STEMS[stem] else {}
            test = [part[: args.images] for part in test_set]
            # a network without certified training is judged at 1 level
            content['networks'][name] = cost | bits | judge(model, max(eps, 1), *test)
            args.json.write_text(json.dumps(content, indent=1) + '\n')
            print(name, content['networks'][name], flush=True)


if __name__ == '__main__':
    main()
