"""Estimate, without a GPU, what P2BE costs on an H200: nothing is measured, all is counted from what a step calls.

    python benchmarks/gpu_estimate.py            # two minutes; --json FILE for every number

A training step (or a forward pass) runs on fake tensors, which have shapes and no numbers, and each operator is noted
with its bytes and FLOPs. An operator takes as long as its slowest part: its bytes from memory, its products, or the
least that a kernel takes. Triton's kernels are compiled for sm_90, and what they execute is counted in the compiled
code, loop by loop; rows that the caches hold are charged at the speed of L2. Eagerly, a step takes the longer of the
kernels' time and the time in which the host issues them; in graphs, operators on single numbers are free (fused).
Rates of an H200: NVIDIA's data sheet (nvidia.com/en-us/data-center/h200: 4.8 TB/s, 989 TFLOP/s in dense bfloat16, 67 in
float32) and the whitepaper of the H100 (132 multiprocessors of four schedulers and 128 float32 units each; the clock
follows). The constants marked "assumed" are no more than that. The same count for an A100 (2.04 TB/s, 312 TFLOP/s) is
set against what NVIDIA measured on one: 2470 images/s of ResNet-50 training (NVIDIA/DeepLearningExamples,
PyTorch/Classification/ConvNets/resnet50v1.5/README.md).
"""

import argparse
import copy
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import triton_compile
from gpu import LARGE, PHOTOGRAPHS, SMALL, Case
from lookup_variants import PerPixelConv2d
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import timm_p2be
from timm_p2be.lookup import operators, triton_gpu
from timm_p2be.task import P2BETask

MEMORY, PRODUCTS, SMS, SCHEDULERS = 4.8e12, 989e12, 132, 4
A100 = 2.04e12, 312e12, 2470  # bytes and FLOPs a second, images a second
CLOCK = 67e12 / (SMS * 128 * 2)
L2 = 5.5e12  # assumed, bytes a second
SHARE = {'memory': 0.8, 'products': 0.6, 'issue': 0.6}  # assumed, of each peak
KERNEL = 2e-6  # assumed, seconds that the smallest kernel takes, in a graph too
HOST = {'operator': 5e-6, 'Triton': 15e-6, 'custom operator': 40e-6}  # assumed, seconds to issue one
ADDITION = 0.4e-6  # assumed, seconds for a read of memory that the next one waits for
FUSED = 4  # kernels that a compiled step adds for levels and smoothness loss: assumed
ALONE = ('convolution', 'batch_norm', 'mm', 'pool')  # what a compiled step does not fuse


class Operation(NamedTuple):
    """What was called: its bytes (tensors read and written), FLOPs, and a Triton kernel's programs and arguments."""

    name: str
    bytes: int
    flops: int
    programs: int = 0
    arguments: tuple[Any, ...] = ()


def bytes_of(*values: Any) -> int:
    """Return the bytes of all tensors in `values`; what is expanded counts once."""
    tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
    numbers = [[n for n, stride in zip(t.shape, t.stride(), strict=True) if stride] for t in tensors]
    return sum(torch.Size(shape).numel() * t.element_size() for shape, t in zip(numbers, tensors, strict=True))


class Recorder(TorchDispatchMode):
    """Notes every operator that computes; the package's own are replaced by the kernels they launch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Operation] = []
        self.custom = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        if function.namespace == 'timm_p2be':
            self.custom += 1
            with self:
                return getattr(operators, name)._init_fn(*args, **kwargs)
        found = function(*args, **kwargs)
        if not (function.is_view or name in ('detach', '_unsafe_view', 'device', 'lift_fresh') or 'empty' in name):
            count = flop_registry.get(function.overloadpacket)
            flops = count(*args, **kwargs, out_val=found) if count else 0
            self.seen.append(Operation(name, bytes_of(args, kwargs, found), flops))
        return found

    def __getattr__(self, name: str) -> Any:
        """Stand in for the module of Triton's kernels: note what would be launched."""
        if name.startswith('_'):
            raise AttributeError(name)
        counter = self

        class Kernel:
            def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
                def launch(*args: Any, **kwargs: Any) -> None:
                    values = (*args, *kwargs.values())
                    counter.seen.append(Operation(name, bytes_of(values), 0, torch.Size(grid).numel(), values))

                return launch

        return Kernel()


def executed(assembly: str, trips: tuple[float, ...]) -> float:
    """Return how many instructions a warp executes if the loops, in the order of their ends, run so many times."""
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    number = 0
    for line in assembly.splitlines():
        if label := re.match(r'(\.L_x_\d+):', line.strip()):
            labels[label[1]] = number
        elif instruction := re.match(r'\s*/\*[0-9a-f]{4,}\*/\s+(.*?);', line):
            number += 1
            target = re.search(r'BRA.*\((\.L_x_\d+)\)', instruction[1])
            if target and number - labels.get(target[1], number) > 2:  # a branch to itself ends every program
                loops.append((labels[target[1]], number))
    assert len(loops) == len(trips), (loops, trips)
    times = [1.0] * number
    for (first, last), count in zip(loops, trips, strict=True):
        times[first:last] = [max(time, count) for time in times[first:last]]
    return sum(times)


class Kernels:
    """What Triton's kernels of a stem take, compiled for sm_90 in bfloat16."""

    def __init__(self, case: Case, channels: int, width: int, stride: int) -> None:
        self.pixels = case.views * case.batch * case.side**2
        self.outputs, self.taps, self.channels, self.width = self.pixels // stride**2, 3 * width**2, channels, width
        self.phase = self.pixels // stride**2  # pixels of a color that one tap reads
        self.cases = triton_compile.cases('bfloat16', channels, width, stride)
        self.compiled: dict[str, str] = {}

    def trips(self, kernel: Operation) -> tuple[float, ...]:
        match kernel.name:
            case 'gather_sum':
                return 3 * self.width, self.width
            case 'partition':
                return (8,)
            case 'bucket_sum':
                keys, chunks, per_group = self.cases['bucket_sum'][1]['K'], *kernel.arguments[14:16]
                lists = self.phase / chunks / 16  # keys of a chunk in one range; half a block is wasted
                return per_group * (lists / keys + 0.5), per_group
            case 'code_table':
                return (2,)
        return ()

    def seconds(self, kernel: Operation) -> dict[str, float]:
        """Return the time of each part; the longest counts."""
        pointers, constants, warps = self.cases[kernel.name]
        if kernel.name not in self.compiled:
            usage = triton_compile.compile_kernel(kernel.name, 90, pointers, constants, warps)
            self.compiled[kernel.name] = usage.assembly
        instructions = executed(self.compiled[kernel.name], self.trips(kernel)) * warps
        turns = max(1.0, kernel.programs / SMS)
        rows = {'gather_sum': self.outputs, 'bucket_sum': self.phase}.get(kernel.name, 0)
        return {
            'issue': instructions * turns / (SCHEDULERS * CLOCK * SHARE['issue']),
            'L2': rows * self.taps * self.channels * 2 / L2,
            'memory': kernel.bytes / (MEMORY * SHARE['memory']),
            'launch': KERNEL,
        }


def plain_seconds(operation: Operation, memory: float = MEMORY, products: float = PRODUCTS) -> float:
    """Return how long an operator of torch takes."""
    parts = operation.bytes / (memory * SHARE['memory']), operation.flops / (products * SHARE['products'])
    return max(*parts, KERNEL)


class Estimate:
    """A step, or a forward pass, of a network; seconds, first with rows from L2, then with rows from L1."""

    def __init__(self, seen: list[Operation], custom: int, kernels: Kernels) -> None:
        self.seen = seen
        self.triton = {op.name: kernels.seconds(op) for op in seen if op.programs}
        torchs = [op for op in seen if not op.programs]
        alone = sum(plain_seconds(op) for op in torchs if any(part in op.name for part in ALONE))
        plain, fused = sum(map(plain_seconds, torchs)), FUSED * KERNEL if 'smoothness' in self.triton else 0.0
        issued = len(torchs) * HOST['operator'] + len(self.triton) * HOST['Triton']
        self.host = issued + custom * HOST['custom operator']
        self.kernels, self.graph = [], []
        for left_out in ('', 'L2'):
            lookup = {
                name: max(value for part, value in parts.items() if part != left_out)
                for name, parts in self.triton.items()
            }
            self.kernels.append(plain + sum(lookup.values()))
            self.graph.append(alone + fused + sum(lookup.values()) - lookup.get('smoothness', 0.0))
        self.eager = [max(kernels, self.host) for kernels in self.kernels]


def ratios(ours: Estimate, rgb: Estimate, slower: float) -> dict[str, str]:
    """Return P2BE / RGB: all as counted, and with rows from L1 and an RGB network as much slower than counted."""
    found = {}
    for name in ('eager', 'graph'):
        one, other = getattr(ours, name), getattr(rgb, name)
        low = 1 + (one[1] - other[1]) / (other[1] * slower)
        found[name] = f'{low:.3f} to {one[0] / other[0]:.3f}'
    return found


def stem(case: Case) -> tuple[int, int, int]:
    return (16, 3, 1) if case.network.startswith('wrn') else (64, 7, 2)


def fake_batch(case: Case) -> tuple[Tensor, Tensor]:
    images = torch.rand(case.views * case.batch, 3, case.side, case.side)
    return images.contiguous(memory_format=torch.channels_last), torch.zeros(case.batch, dtype=torch.long)


def count(case: Case, model: nn.Module, call: Callable[[nn.Module, Tensor, Tensor], Any]) -> tuple[Recorder, int]:
    """Return what a call on a fake copy of a model calls, and the bytes it keeps for the backward pass."""
    for module in model.modules():
        if hasattr(module, '_range_checks'):
            module._range_checks = 4  # type: ignore[assignment]
    mode, counter, kept = FakeTensorMode(allow_non_fake_inputs=True), Recorder(), {}
    with FakeCopyMode(mode):
        model = copy.deepcopy(model)
    triton_gpu.triton_kernels = counter  # type: ignore[assignment]

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with mode:
        images, labels = fake_batch(case)
        for dtype in (torch.float32, torch.bfloat16):
            triton_gpu.check(images.device, dtype)
        counter.seen.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), counter:
            call(model, images, labels)
    return counter, sum(kept.values())


def training_step(case: Case, suffix: str, kernels: Kernels) -> tuple[Estimate, float]:
    """Return the estimate of a step, and of its peak memory: weights, gradients, momentum and what is kept."""
    model = timm.create_model(case.network + suffix, num_classes=case.classes).to(memory_format=torch.channels_last)
    alpha, learned = (12.0 if case.views > 1 else 0.0), suffix == '_p2be'

    def call(model: nn.Module, images: Tensor, labels: Tensor) -> None:
        task = P2BETask(model, alpha, float(learned), num_views=case.views, verbose=False)
        task._labels_checked = True
        with torch.autocast('cpu', torch.bfloat16):
            loss = task(images, labels)['loss']
        loss.backward()

    counter, kept = count(case, model.train(), call)
    optimizer = create_optimizer_v2(model, opt='sgdp2be', lr=0.1, momentum=0.9, weight_decay=5e-4, foreach=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    update = Recorder()
    with update:
        optimizer.step()
    on_cpu = ('_local_scalar_dense', 'item')  # AdamW's number of steps
    seen = [*counter.seen, *(op for op in update.seen if op.name not in on_cpu and op.bytes > 8)]
    return Estimate(seen, counter.custom, kernels), kept + 3 * bytes_of([*model.parameters()])


def inference(case: Case, kind: str, kernels: Kernels) -> Estimate:
    model = timm.create_model(case.network + ('_p2be' if kind else ''), num_classes=case.classes).eval()
    if kind == 'folded':
        model = timm_p2be.fold(model)

    def call(model: nn.Module, images: Tensor, labels: Tensor) -> None:
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            model(images)

    counter, _ = count(case, model, call)
    return Estimate(counter.seen, counter.custom, kernels)


def stem_alone(case: Case, kind: str, kernels: Kernels) -> tuple[Estimate, float]:
    """Return the estimate of a stem's forward and backward pass, and what the authors' form adds up one by one."""
    rgb = timm.create_model(case.network).get_submodule('conv1')
    ours = timm.create_model(f'{case.network}_p2be').get_submodule('conv1')
    stem = {'per pixel': PerPixelConv2d(rgb, 64), 'P2BE': ours}[kind]  # type: ignore[arg-type]

    def call(stem: nn.Module, images: Tensor, labels: Tensor) -> None:
        with torch.autocast('cpu', torch.bfloat16):
            features = stem(images)
        features.backward(torch.ones_like(features))

    counter, _ = count(case, nn.Sequential(stem), call)
    # PyTorch's Embedding.cu adds a level's gradients by tens, then the partial sums of the level one after the other
    serial = 0.11 * kernels.pixels * 3 / 10 * ADDITION if kind == 'per pixel' else 0.0
    return Estimate(counter.seen, counter.custom, kernels), serial


def main() -> None:
    summary, _, details = (__doc__ or '').partition('\n')
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='default: none')
    args = parser.parse_args()
    os.environ[operators.SWITCH] = 'triton'
    triton_gpu.is_interpreted = lambda: True  # type: ignore[assignment]  # no driver is asked
    triton_gpu.description = lambda device: 'nothing'  # type: ignore[assignment]
    report: dict[str, Any] = {}

    def note(row: str, **figures: Any) -> None:
        report[row] = figures
        print(f'{row}: {", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())}')

    slower = 1.0
    for case in (PHOTOGRAPHS, SMALL, LARGE):
        kernels = Kernels(case, *stem(case))
        name = f'{case.network}, {case.views} x {case.batch}'
        (rgb, least), (ours, most) = (training_step(case, suffix, kernels) for suffix in ('', '_p2be'))
        if case is PHOTOGRAPHS:
            counted, measured = sum(plain_seconds(op, *A100[:2]) for op in rgb.seen), case.batch / A100[2]
            slower = measured / counted
            note('resnet50 on an A100', counted=1e3 * counted, measured=1e3 * measured, slower=slower)
        for label, one in (('RGB', rgb), ('P2BE', ours)):
            times = {'kernels': 1e3 * one.kernels[0], 'host': 1e3 * one.host, 'graph': 1e3 * one.graph[0]}
            flops, read = sum(op.flops for op in one.seen) / 1e12, sum(op.bytes for op in one.seen) / 1e9
            note(f'{name}, {label}, ms', launches=len(one.seen), TFLOP=flops, GB=read, **times)
        more = Counter(op.name for op in ours.seen)
        more.subtract(op.name for op in rgb.seen)
        note(f'{name}, operators that P2BE adds', **{key: value for key, value in more.items() if value})
        for kernel, parts in ours.triton.items():
            note(f'{name}, {kernel}, us', **{key: 1e6 * value for key, value in parts.items()})
        note(f'{name}, ratios', **ratios(ours, rgb, slower), memory=most / least)
    kernels = Kernels(PHOTOGRAPHS, *stem(PHOTOGRAPHS))
    rgb, folded, ours = (inference(PHOTOGRAPHS, kind, kernels) for kind in ('', 'folded', 'P2BE'))
    note('inference, resnet50, RGB, ms', eager=1e3 * rgb.eager[0], graph=1e3 * rgb.graph[0])
    for label, one in (('folded', folded), ('P2BE', ours)):
        note(f'inference, resnet50, {label}', **ratios(one, rgb, slower))
    for case in (SMALL, PHOTOGRAPHS):
        kernels = Kernels(case, *stem(case))
        (authors, serial), (ours, _) = (stem_alone(case, kind, kernels) for kind in ('per pixel', 'P2BE'))
        times = {'per pixel': authors.kernels[0], 'serial sums': serial, 'P2BE': ours.kernels[0]}
        quotients = {'ratio': (authors.kernels[0] + serial) / ours.kernels[0]}
        quotients['ratio without serial sums'] = authors.kernels[0] / ours.kernels[0]
        note(f'stem, {case.network}, ms', **{key: 1e3 * value for key, value in times.items()}, **quotients)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
