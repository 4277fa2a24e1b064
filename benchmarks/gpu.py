"""Measure on a GPU what P2BE costs there: ratios to RGB within one run, memory, errors, and whether two runs agree.

    python benchmarks/gpu.py [--budget SECONDS] [--json FILE] [--only TEXT]
    python benchmarks/gpu.py --dry      # all of it, cut down, on a CPU: its figures mean nothing

The most valuable figure comes first; the JSON is written after every one, and none is begun after --budget seconds.
Training steps are those of recipes/cifar10.yaml (a clean and two AugMix views, CE + 12 JSD + smoothness) and, with one
view, of an ImageNet network, in bfloat16 autocast and channels_last, on pictures with as much of level 0 as AugMix
leaves. Networks take turns, and a ratio is the median over the turns. Graphs are those of --torchcompile
reduce-overhead (in the dry run, dynamo's alone: no compiler is called).
"""

import argparse
import json
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from lookup_variants import PerPixelConv2d
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import timm_p2be
from timm_p2be.lookup import lookup_conv2d
from timm_p2be.lookup.operators import SWITCH
from timm_p2be.task import P2BETask

Call = Callable[[], Any]
ROUNDS, SECONDS = 7, 0.4  # turns of each network, and how long one takes at least


class Case(NamedTuple):
    """A network, and the batch that it trains on."""

    network: str
    classes: int
    views: int
    batch: int
    side: int


SMALL, PHOTOGRAPHS = Case('wrn40_2', 10, 3, 128, 32), Case('resnet50', 1000, 1, 256, 224)
LARGE, FEWER = SMALL._replace(batch=1024), PHOTOGRAPHS._replace(batch=64)  # 25 GB of latents, the authors' way
DRY = {SMALL: Case('wrn10_2', 10, 3, 2, 16), LARGE: Case('wrn10_2', 10, 3, 3, 16)}
DRY |= dict.fromkeys((PHOTOGRAPHS, FEWER), Case('wrn10_2', 10, 1, 4, 16))


def pictures(case: Case, device: torch.device) -> Tensor:
    """Return smooth pictures with noise and a black border, (views B, 3, H, W) floats in [0, 1]."""
    shape, generator = (case.views * case.batch, 3), torch.Generator().manual_seed(0)
    coarse = torch.rand(*shape, max(case.side // 8, 2), max(case.side // 8, 2), generator=generator).to(device)
    images = nn.functional.interpolate(coarse, (case.side, case.side), mode='bicubic')
    images = (images + 0.03 * torch.randn_like(images)).clamp(0, 1)
    images[:, :, : case.side // 9] = 0
    return ((images * 255).round() / 255).contiguous(memory_format=torch.channels_last)


class Session:
    """The device, the time that is left, and the figures so far.

    Args:
        file: JSON, or None.
    """

    def __init__(self, dry: bool, budget: float, file: Path | None) -> None:
        self.dry, self.budget, self.file = dry, budget, file
        self.device = torch.device('cpu' if dry else 'cuda')
        self.start = time.perf_counter()
        versions = {module.__name__: str(module.__version__) for module in (torch, timm)}
        name = 'CPU, dry run' if dry else torch.cuda.get_device_name()
        self.report: dict[str, Any] = {'schema_version': 1, 'device': name, 'versions': versions, 'rows': []}
        self.report['versions']['cuda'] = torch.version.cuda

    def note(self, row: str, **figures: Any) -> None:
        """Print figures and write all of them so far."""
        seconds = round(time.perf_counter() - self.start, 1)
        self.report['rows'].append({'row': row, 'at': seconds, **figures})
        shown = ', '.join(f'{name} {f"{v:.4g}" if isinstance(v, float) else v}' for name, v in figures.items())
        print(f'[{seconds:6.1f} s] {row}: {shown}', flush=True)
        if self.file:
            self.file.write_text(json.dumps(self.report, indent=1) + '\n')

    def late(self) -> bool:
        return time.perf_counter() - self.start > self.budget

    def case(self, case: Case) -> Case:
        return DRY[case] if self.dry else case

    def wait(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def seconds(self, call: Call, number: int) -> float:
        """Return how long a call takes, of so many."""
        self.wait()
        start = time.perf_counter()
        for _ in range(number):
            call()
        self.wait()
        return (time.perf_counter() - start) / number

    def compare(self, row: str, calls: dict[str, Call], **more: Any) -> None:
        """Time calls in turn and note medians in milliseconds, and ratios to the first."""
        numbers = dict.fromkeys(calls, 1)
        for name, call in () if self.dry else calls.items():
            self.seconds(call, 5)
            numbers[name] = max(1, int(SECONDS / self.seconds(call, 1)))
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(1 if self.dry else ROUNDS):
            for name, call in calls.items():
                times[name].append(self.seconds(call, numbers[name]))
            if self.late():
                break
        first = next(iter(calls))
        for name, taken in times.items():
            ratio = statistics.median(one / base for one, base in zip(taken, times[first], strict=True))
            more |= {f'{name}, ms': 1e3 * statistics.median(taken)}
            more |= {f'{name} / {first}': ratio} if name != first else {}
        self.note(row, **more)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)


def network(session: Session, case: Case, suffix: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(case.network + suffix, num_classes=case.classes)
    return model.to(session.device, memory_format=torch.channels_last)


def training_step(session: Session, case: Case, suffix: str, graphs: bool, dynamic: bool | None = None) -> Call:
    """Return a call that makes one update; graphs that are not `dynamic` are compiled for the batch size."""
    model = network(session, case, suffix).train()
    alpha, smoothness = (12.0 if case.views > 1 else 0.0), float(suffix == '_p2be')
    task = P2BETask(model, alpha, smoothness, num_views=case.views, device=session.device, verbose=False)
    optimizer = create_optimizer_v2(model, opt='sgdp2be', lr=0.01, momentum=0.9, weight_decay=5e-4)
    images, labels = pictures(case, session.device), torch.arange(case.batch, device=session.device) % case.classes
    if graphs:
        task.compile('eager' if session.dry else 'inductor', None if session.dry else 'reduce-overhead', dynamic)

    def call() -> None:
        with session.autocast():
            loss = task(images, labels)['loss']
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def steps(session: Session, row: str, case: Case, graphs: bool, dynamic: bool | None = None) -> None:
    """Time training steps; without graphs, compare peak memory too."""
    case, calls, peaks = session.case(case), {}, {}
    torch.compiler.reset()
    for name, suffix in (('RGB', ''), ('P2BE', '_p2be')):
        before = 0 if session.dry else torch.cuda.memory_allocated()
        calls[name] = training_step(session, case, suffix, graphs, dynamic)
        session.seconds(calls[name], 1 if session.dry else 3)  # cuDNN tries what takes the least time, not memory
        if not (session.dry or graphs):
            torch.cuda.reset_peak_memory_stats()
            session.seconds(calls[name], 2)
            peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
    more = {f'{name}, peak MiB': peak for name, peak in peaks.items()}
    more |= {'P2BE / RGB, peak': peaks['P2BE'] / peaks['RGB']} if peaks else {}
    session.compare(row, calls, **more)


def kernels(session: Session, row: str) -> None:
    """Compare values and gradients with float64, where planes are convolved, in Frobenius norms."""
    side = 12 if session.dry else 40
    for channels, width, stride in ((16, 3, 1), (64, 7, 2), (96, 4, 4)):
        generator = torch.Generator().manual_seed(0)
        levels = torch.randint(0, 256, (2, 3, side, side), generator=generator).to(session.device, torch.uint8)
        sizes = (256, 64), (channels, 192, width, width), (channels,)
        latents, weight, slope = (torch.randn(size, generator=generator).to(session.device) for size in sizes)
        for dtype in (torch.float32, torch.bfloat16):
            results = []
            for kind in (torch.float64, dtype):
                table = latents.to(torch.promote_types(kind, torch.float32), copy=True)
                leaves = [table.requires_grad_(), weight.to(dtype).to(kind, copy=True).requires_grad_()]
                features = lookup_conv2d(levels, *leaves, stride=stride, padding=1, latent=True)
                features.backward(slope.to(dtype).to(kind)[:, None, None].expand_as(features))
                results.append([features.detach(), *(leaf.grad for leaf in leaves)])
            errors = {
                name: float((found.double() - exact).norm() / exact.norm())
                for name, found, exact in zip(('values', 'table', 'kernel'), results[1], results[0], strict=True)
            }
            session.note(row, stem=f'{width}x{width}/{stride}, {channels}', dtype=str(dtype)[6:], **errors)


def stems(session: Session, row: str, case: Case) -> None:
    """Time forward and backward of the stem alone, against convolved planes and the authors' form, in bfloat16."""
    case = session.case(case)
    calls, images = {}, pictures(case, session.device)
    rgb, ours = (network(session, case, suffix).get_submodule('conv1') for suffix in ('', '_p2be'))
    per_pixel = PerPixelConv2d(rgb, 64).to(session.device)  # type: ignore[arg-type]

    def call(stem: nn.Module, switch: str) -> None:
        os.environ[SWITCH] = switch
        with session.autocast():
            features = stem(images)
        features.backward(torch.ones_like(features))
        os.environ[SWITCH] = 'auto'

    calls['P2BE'] = lambda: call(ours, 'auto')
    calls['RGB'] = lambda: call(rgb, 'auto')
    calls['planes'] = lambda: call(ours, 'plain')
    calls['per pixel'] = lambda: call(per_pixel, 'auto')
    session.compare(row, calls)


def inference(session: Session, row: str, case: Case) -> None:
    case = session.case(case)
    images = pictures(case, session.device)
    rgb, ours = (network(session, case, suffix).eval() for suffix in ('', '_p2be'))

    def call(model: nn.Module) -> None:
        with torch.inference_mode(), session.autocast():
            model(images)

    folded = timm_p2be.fold(ours)
    models = {'RGB': rgb, 'folded': folded, 'P2BE': ours}
    session.compare(row, {name: lambda model=model: call(model) for name, model in models.items()})


def equality(session: Session, row: str, case: Case) -> None:
    """Back-propagate twice and compare the gradients of table and first convolution bit for bit."""
    case = session.case(case)
    images, found = pictures(case, session.device), []
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False  # of the network above the stem
    for _ in range(2):
        model = network(session, case, '_p2be').train()
        with session.autocast():
            model(images).square().sum().backward()
        parameters = timm_p2be.find_embedding(model).weight, model.get_submodule('conv1').weight
        found.append([parameter.grad for parameter in parameters])  # type: ignore[union-attr]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    session.note(row, table=torch.equal(found[0][0], found[1][0]), kernel=torch.equal(found[0][1], found[1][1]))


def launches(session: Session, row: str, case: Case) -> None:
    """Count the kernels of a step, and what waits for the device in it."""
    for suffix in ('', '_p2be'):
        call = training_step(session, session.case(case), suffix, graphs=False)
        session.seconds(call, 1 if session.dry else 6)  # the pixels' range is looked at in the first four
        if session.dry:
            session.note(row, network=suffix or 'RGB', kernels=None, waits=None)
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            torch.cuda.set_sync_debug_mode('warn')
            call()
            torch.cuda.set_sync_debug_mode('default')
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            call()
            session.wait()
        kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        session.note(row, network=suffix or 'RGB', kernels=len(kernels), waits=len(caught))


def registers(session: Session, row: str) -> None:
    """Note what each kernel that has run takes."""
    if session.dry:
        session.note(row, kernels='only those on a GPU: benchmarks/triton_compile.py needs none')
        return
    from timm_p2be.lookup import triton_kernels

    for name, kernel in vars(triton_kernels).items():
        for cache in getattr(kernel, 'device_caches', {}).values():
            for compiled in cache[0].values():
                session.note(row, kernel=name, registers=compiled.n_regs, spills=compiled.n_spills)


ROWS: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {
    'kernels against float64, relative error': (kernels, ()),
    'training step, wrn40_2, 3 x 128, graphs': (steps, (SMALL, True)),
    'training step, wrn40_2, 3 x 128, eager': (steps, (SMALL, False)),
    'gradients of two runs equal': (equality, (SMALL,)),
    'training step, resnet50, 256, eager': (steps, (PHOTOGRAPHS, False)),
    'training step, resnet50, 256, graphs': (steps, (PHOTOGRAPHS, True)),
    'inference, resnet50, 256': (inference, (PHOTOGRAPHS,)),
    'stem, forward and backward, wrn40_2, 3 x 128': (stems, (SMALL,)),
    'training step, wrn40_2, 3 x 1024, graphs': (steps, (LARGE, True)),
    'training step, wrn40_2, 3 x 1024, eager': (steps, (LARGE, False)),
    'stem, forward and backward, resnet50, 64': (stems, (FEWER,)),
    'training step, wrn40_2, 3 x 128, graphs of one batch size': (steps, (SMALL, True, False)),
    'launches in a step, wrn40_2, 3 x 128': (launches, (SMALL,)),
    'registers and spills': (registers, ()),
}


def main() -> int:
    """Measure, and return 1 if some row failed."""
    summary, _, details = (__doc__ or '').partition('\n')
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--dry', action='store_true', help='cut down, on a CPU')
    parser.add_argument('--budget', type=float, default=420, metavar='SECONDS', help='default: %(default)s')
    parser.add_argument('--json', type=Path, metavar='FILE', help='default: none')
    parser.add_argument('--only', default='', metavar='TEXT', help='only rows whose name holds this')
    args = parser.parse_args()
    if not (args.dry or torch.cuda.is_available()):
        parser.error('this PyTorch finds no CUDA device; --dry tries the script on a CPU')
    if args.dry:
        torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True  # as train.py sets them
    session, failed = Session(args.dry, args.budget, args.json), False
    for row, (measure, arguments) in ROWS.items():
        if args.only not in row or session.late():
            continue
        try:
            measure(session, row, *arguments)
        except Exception as error:
            failed = True
            traceback.print_exc()
            session.note(row, failed=f'{type(error).__name__}: {str(error)[:200]}')
        if not args.dry:
            torch.cuda.empty_cache()
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
