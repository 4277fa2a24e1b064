"""Measure LS-PGA: the window form against the dense form over all 256 levels, in images/s and in peak memory.

    python benchmarks/lspga.py [--threads 2] [--json FILE]

The dense form is re-created from its description (docs/protocol.md; nutszebra/Pixel-to-Binary-Embedding, lspga.py):
logits for all 256 levels of every pixel value, illegal ones masked, and the expected code as the sum over an array of
B x 3 x 256 x H x W x M numbers, differentiated by autograd. That array alone takes 25.8 GB at batch 128, so the dense
form is timed on a small batch. 'dense, one product' replaces the sum by a matrix product. The attack is the official
one, 7 steps at eps 8, on an untrained network and random pixels: neither changes the work. Rounds alternate, medians
are given; memory is measured in a process of its own, above what the network's own forward and backward pass of the
same batch takes.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor

import timm_p2be  # noqa: F401  registers the models
from timm_p2be.robustness.attacks import LSPGA
from timm_p2be.robustness.attacks.code_model import CodeModel
from timm_p2be.robustness.pixel_model import PixelModel

ROUNDS = 5
STEPS, EPS, RATE = 7, 8, 1.2


def build(name: str) -> PixelModel:
    """Return an untrained network."""
    torch.manual_seed(0)
    return PixelModel(timm.create_model(name, num_classes=10))


def batch(size: int) -> tuple[Tensor, Tensor]:
    """Return random images and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 10, (size,), generator=generator)


def dense(model: PixelModel, images: Tensor, labels: Tensor, product: bool) -> Tensor:
    """Attack with logits over all 256 levels."""
    network = CodeModel(model)
    table = network.table()
    illegal = (torch.arange(256) - images.unsqueeze(-1).int()).abs() > EPS
    logits = torch.randn(*images.shape, 256) - illegal * 1e10
    temperature = 1.0
    for _ in range(STEPS):
        logits.requires_grad_()
        shares = torch.softmax(logits / temperature, dim=-1)
        codes = shares @ table if product else (shares.unsqueeze(-1) * table).sum(dim=-2)
        loss = torch.nn.functional.cross_entropy(network(codes.permute(0, 2, 3, 1, 4)), labels)
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits + gradient.sign()).detach()
        temperature *= RATE
    return logits.argmax(dim=-1).to(torch.uint8)


def network_pass(model: PixelModel, images: Tensor, labels: Tensor) -> None:
    """Run the network itself forward and backward, as a training step without an attack does."""
    torch.nn.functional.cross_entropy(model(images), labels).backward()


def jobs(name: str) -> dict[str, tuple[int, Callable[[Tensor, Tensor], object]]]:
    """Return what is measured: name -> (batch size, attack)."""
    model = build(name)
    return {
        'window': (128, LSPGA.official(model, EPS)),
        'window, small batch': (4, LSPGA.official(model, EPS)),
        'dense': (4, lambda images, labels: dense(model, images, labels, product=False)),
        'dense, one product': (4, lambda images, labels: dense(model, images, labels, product=True)),
    }


def speeds(name: str) -> dict[str, float]:
    """Return images/s, medians of alternating rounds."""
    seconds: dict[str, list[float]] = {}
    for round_ in range(ROUNDS + 1):
        for job, (size, attack) in jobs(name).items():
            images, labels = batch(size)
            start = time.perf_counter()
            attack(images, labels)
            if round_:
                seconds.setdefault(job, []).append((time.perf_counter() - start) / size)
    return {job: 1 / statistics.median(times) for job, times in seconds.items()}


def peak(job: str, name: str, size: int) -> float:
    """Return the peak memory, MiB, of this process after one run of a job (Linux)."""
    images, labels = batch(size)
    model = build(name)
    if job == 'network':
        network_pass(model, images, labels)
    else:
        LSPGA.official(model, EPS)(images, labels)
    # not getrusage: a child starts with its parent's peak there
    status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    return int(status['VmHWM'].split()[0]) / 1024


def memory(name: str, threads: int, size: int = 128) -> dict[str, float]:
    """Return peaks in MiB, each measured in a new process, and the difference."""
    peaks = {}
    for job in ('network', 'window'):
        command = [sys.executable, __file__, '--peak', job, '--model', name, '--threads', str(threads)]
        peaks[job] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {**peaks, 'above the network': peaks['window'] - peaks['network'], 'batch': size}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='wrn40_2_p2be', help='default: %(default)s')
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='default: %(default)s')
    parser.add_argument('--json', type=Path, help='write the figures there, too')
    parser.add_argument('--peak', help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(peak(args.peak, args.model, 128))
        return
    rates, peaks = speeds(args.model), memory(args.model, args.threads)
    print(f'{args.model}, official attack, eps {EPS}, {args.threads} threads, torch {torch.__version__}')
    print('| form | batch | images/s | window / this |\n|---|---|---|---|')
    for job, (size, _) in jobs(args.model).items():
        print(f'| {job} | {size} | {rates[job]:.2f} | {rates["window"] / rates[job]:.1f} |')
    print('Peak memory, MiB: ' + ', '.join(f'{job} {value:.0f}' for job, value in peaks.items()))
    if args.json:
        content = {'model': args.model, 'threads': args.threads, 'torch': torch.__version__, 'steps': STEPS, 'eps': EPS}
        content |= {'machine': platform.processor() or platform.machine(), 'images_per_second': rates, 'memory': peaks}
        args.json.write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
    main()
