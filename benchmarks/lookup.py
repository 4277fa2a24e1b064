"""Measure what a stem over binary pixel codes costs: time and memory, of the stem alone and of whole networks.

    python benchmarks/lookup.py [--json FILE] [--rounds N] [--threads N] [--only TEXT]

Set P2BE_DATA to a folder with cifar10/ and imagenet_sample/ to use photographs from there; otherwise crops of
scikit-image's astronaut are used. Random pixels are the worst case for a lookup: neighbors seldom share a table row.
Each round times every variant once, one after another; medians leave out the first round, which warms up. All networks
run in channels_last memory, the faster layout for the RGB network on a CPU. Other work on the machine lengthens steps
many times over, since threads wait for each other: leave it idle. On two cores this takes about 20 minutes.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from lookup_variants import (
    CASES,
    GROWTH,
    MEASURES,
    PHOTOGRAPHS,
    RANDOM,
    VARIANTS,
    Call,
    Case,
    Variant,
    load_images,
    lookup_path,
    random_pixels,
    shortage,
)
from torch import Tensor

SCHEMA = 1
STEM_ROUNDS = 11  # a stem takes milliseconds
PRECISIONS = ('float32', 'bfloat16')


@dataclass(frozen=True)
class Job:
    """What is compared between variants; `images` is '' for memory, where they do not matter."""

    section: str
    measure: str
    case: Case
    precision: str
    images: str

    @property
    def title(self) -> str:
        """The name that `--only` looks at."""
        parts = (self.section, self.measure, self.case.network, self.precision, self.images)
        return ', '.join(part for part in parts if part)

    def variants(self) -> list[Variant]:
        """Return the variants to compare."""
        return list(GROWTH) if self.section == 'growth' else [v for v in VARIANTS if self._includes(v)]

    def rounds(self, variant: Variant, limit: int | None) -> int:
        """Return in how many rounds after the first `variant` is timed, `limit` being the user's choice."""
        if variant.builds_planes:
            return min(self.case.plane_rounds, limit or self.case.plane_rounds)
        return limit or (STEM_ROUNDS if self.section == 'stem' else self.case.rounds)

    def _includes(self, variant: Variant) -> bool:
        if variant.folded:
            return self.measure == 'inference'
        if variant.builds_planes and self.case.side > 32:  # a step takes up to a minute
            training = self.measure == 'training step' and self.precision == 'float32'
            return self.images != RANDOM and (self.section == 'stem' or training)
        return True


@dataclass(frozen=True)
class Timing:
    """The time of every round of a variant, the first included."""

    section: str
    measure: str
    network: str
    precision: str
    images: str
    variant: str
    seconds: list[float]

    @property
    def milliseconds(self) -> list[float]:
        """Of the rounds that count."""
        return [1000 * value for value in self.seconds[1:]]


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process before its first step, and at its peak during two steps."""

    measure: str
    network: str
    precision: str
    variant: str
    bytes_before: int
    bytes_peak: int


def plan() -> list[Job]:
    """Return everything there is to measure, in the order in which it is reported."""
    stem, model = ('stem forward', 'stem forward + backward'), ('training step', 'inference')
    times = [
        Job(section, measure, case, precision, images)
        for section, measures in (('stem', stem), ('network', model))
        for case, precision, images in product(CASES, PRECISIONS, (PHOTOGRAPHS, RANDOM))
        for measure in measures
    ]
    growth = Job('growth', 'training step', CASES[0], 'float32', PHOTOGRAPHS)
    memory = [
        Job('memory', measure, case, precision, '') for case, precision, measure in product(CASES, PRECISIONS, model)
    ]
    return [*times, growth, *memory]


def timed(call: Call, variant: Variant) -> float:
    """Return the seconds that one call takes."""
    with lookup_path(variant):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def measure_times(job: Job, images: Tensor, limit: int | None, skipped: list[str]) -> list[Timing]:
    """Time the variants in turn; append to `skipped` what does not fit into memory."""
    calls: dict[Variant, Call] = {}
    for variant in job.variants():
        if reason := shortage(job.case, variant):
            skipped.append(f'{job.title}, {variant.name}: {reason}')
        else:
            calls[variant] = MEASURES[job.measure](job.case, variant, job.precision, images)
    rounds = {variant: job.rounds(variant, limit) for variant in calls}
    seconds: dict[Variant, list[float]] = {variant: [] for variant in calls}
    for number in range(max(rounds.values()) + 1):
        for variant, call in calls.items():
            if number <= rounds[variant]:
                seconds[variant].append(timed(call, variant))
    labels = job.section, job.measure, job.case.network, job.precision, job.images
    return [Timing(*labels, variant.name, values) for variant, values in seconds.items()]


def resident_bytes() -> tuple[int, int]:
    """Return the resident memory of this process and its peak (where the system only knows that, twice the peak)."""
    status = Path('/proc/self/status')
    if status.exists():
        fields = dict(line.split(':', 1) for line in status.read_text().splitlines())
        now, peak = (int(fields[name].split()[0]) * 1024 for name in ('VmRSS', 'VmHWM'))
        return now, peak
    import resource  # absent on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
    return peak, peak


def print_memory(network: str, precision: str, variant_name: str, measure: str) -> None:
    """Run two steps in this process and print its resident memory before them and its peak, in bytes."""
    case = next(case for case in CASES if case.network == network)
    variant = next(variant for variant in VARIANTS if variant.name == variant_name)
    call = MEASURES[measure](case, variant, precision, random_pixels(case))
    with contextlib.suppress(OSError):  # no such file but on Linux
        Path('/proc/self/clear_refs').write_text('5')  # forgets the peak, which importing torch may have left
    before, _ = resident_bytes()
    with lookup_path(variant):
        call()
        call()
    print(json.dumps([before, resident_bytes()[1]]))


def measure_memory(job: Job, skipped: list[str]) -> list[Memory]:
    """Run each variant in a process of its own; append to `skipped` those that fail or do not fit."""
    measured = []
    for variant in job.variants():
        labels = job.case.network, job.precision, variant.name
        reason = shortage(job.case, variant)
        if not reason:
            command = [sys.executable, __file__, '--threads', str(torch.get_num_threads()), '--memory-of', *labels]
            child = subprocess.run([*command, job.measure], capture_output=True, text=True, check=False)
            if child.returncode == 0:
                numbers = json.loads(child.stdout.splitlines()[-1])
                measured.append(Memory(job.measure, *labels, *numbers))
                continue
            reason = f'exit code {child.returncode}, {(child.stderr.splitlines() or ["no message"])[-1]}'
        skipped.append(f'{job.title}, {variant.name}: {reason}')
    return measured


def ratio(numerator: float | None, denominator: float | None) -> str:
    """Return the quotient for a table cell."""
    return '-' if numerator is None or denominator is None else f'{numerator / denominator:.2f}'


def cell(values: Sequence[float]) -> str:
    """Return median, minimum and maximum for a table cell."""
    middle = statistics.median(values)
    digits = 2 if middle < 10 else 1 if middle < 100 else 0
    median, low, high = (f'{value:.{digits}f}' for value in (middle, min(values), max(values)))
    return f'{median} ({low} to {high})'


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print Markdown."""
    for row in (columns, ['---'] * len(columns), *rows):
        print(f'| {" | ".join(row)} |')
    print()


def print_times(timings: Sequence[Timing], reference: str, speed_up: bool) -> None:
    """Print a row for each variant and its inputs, with each measure's median and its ratio to `reference`."""
    measured = {(t.network, t.precision, t.images, t.variant, t.measure): t.milliseconds for t in timings}
    medians = {key: statistics.median(values) for key, values in measured.items()}
    measures = list(dict.fromkeys(timing.measure for timing in timings))
    columns = ['network', 'precision', 'images', 'variant']
    for measure in measures:
        columns += [f'{measure}, ms', f'ratio to {reference}', *(['per pixel / this'] if speed_up else [])]
    rows = []
    for inputs, variant in dict.fromkeys((key[:3], key[3]) for key in measured):
        row = [*inputs, variant]
        for measure in measures:
            values, median = measured.get((*inputs, variant, measure)), medians.get((*inputs, variant, measure))
            row += [cell(values) if values else '-', ratio(median, medians.get((*inputs, reference, measure)))]
            if speed_up:
                row.append(ratio(medians.get((*inputs, 'per pixel', measure)), median))
        rows.append(row)
    print_table(columns, rows)


def print_memories(memories: Sequence[Memory]) -> None:
    """Print a row for each process."""
    peaks = {(m.measure, m.network, m.precision, m.variant): m.bytes_peak for m in memories}
    rows = []
    for m in memories:
        growth = (m.bytes_peak - m.bytes_before) / 2**20
        reference = peaks.get((m.measure, m.network, m.precision, 'RGB'))
        numbers = [f'{m.bytes_peak / 2**20:.0f}', ratio(m.bytes_peak, reference), f'{growth:.0f}']
        rows.append([m.network, m.precision, m.measure, m.variant, *numbers])
    print_table(['network', 'precision', 'measure', 'variant', 'peak, MiB', 'ratio to RGB', 'growth, MiB'], rows)


def environment(sources: dict[str, str]) -> dict[str, object]:
    """Return what the figures depend on."""
    cpu = platform.processor() or platform.machine()
    information = Path('/proc/cpuinfo')
    if information.exists():
        names = [line for line in information.read_text().splitlines() if line.startswith('model name')]
        cpu = names[0].partition(': ')[2] if names else cpu
    packages = ('torch', 'timm', 'numpy', 'llvmlite')
    return {
        'cpu': cpu,
        'instructions': torch.backends.cpu.get_cpu_capability(),
        'threads': torch.get_num_threads(),
        'load average at the start': round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None,
        'versions': {'python': platform.python_version(), **{name: version(name) for name in packages}},
        'batches': {case.network: f'{case.batch}x3x{case.side}x{case.side}' for case in CASES},
        'photographs': sources,
    }


def print_report(header: dict[str, object], timings: list[Timing], memories: list[Memory], skipped: list[str]) -> None:
    """Print all tables."""
    for name, value in header.items():
        entries = [f'{key} {entry}' for key, entry in value.items()] if isinstance(value, dict) else [str(value)]
        print(f'- {name}: {", ".join(entries)}')
    print('- times: median (minimum to maximum) over interleaved rounds; all networks in channels_last memory\n')
    for section, reference in (('stem', 'RGB'), ('network', 'RGB'), ('growth', GROWTH[0].name)):
        if chosen := [timing for timing in timings if timing.section == section]:
            print_times(chosen, reference, speed_up=section == 'stem')
    if memories:
        print_memories(memories)
    for line in skipped:
        print(f'Skipped: {line}')


def write_json(
    path: Path, header: dict[str, object], timings: list[Timing], memories: list[Memory], skipped: list[str]
) -> None:
    """Write every raw number; the first of a variant's seconds is its warm-up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lists = {'times': [asdict(timing) for timing in timings], 'memory': [asdict(memory) for memory in memories]}
    path.write_text(json.dumps({'schema': SCHEMA, **header, **lists, 'skipped': skipped}, indent=2) + '\n')


def parse_arguments() -> argparse.Namespace:
    """Return the options, with the `jobs` they select."""
    summary, _, details = (__doc__ or '').partition('\n')
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    results = Path(__file__).parent / 'results' / 'lookup.json'
    parser.add_argument('--json', type=Path, default=results, metavar='FILE', help='where every raw timing is written')
    rounds = (
        'timed rounds after the first (default: 11 for stems, 7 or 5 for networks); never more where planes are built'
    )
    parser.add_argument('--rounds', type=int, metavar='N', help=rounds)
    parser.add_argument('--threads', type=int, metavar='N', default=torch.get_num_threads(), help="default: torch's")
    only = "measure only what contains TEXT, for example 'stem' or 'memory, training step, resnet50'"
    parser.add_argument('--only', default='', metavar='TEXT', help=only)
    parser.add_argument('--memory-of', nargs=4, help=argparse.SUPPRESS)  # what a child process is to run
    args = parser.parse_args()
    if args.threads < 1 or (args.rounds is not None and args.rounds < 1):
        parser.error('--rounds and --threads must be at least 1')
    args.jobs = [job for job in plan() if args.only in job.title]
    if not args.jobs:
        parser.error('--only matches none of:\n' + '\n'.join(job.title for job in plan()))
    return args


def main() -> None:
    """Measure, print the tables and write every raw number as JSON."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.memory_of:
        print_memory(*args.memory_of)
        return
    batches, sources = load_images()
    header = environment(sources)
    timings: list[Timing] = []
    memories: list[Memory] = []
    skipped: list[str] = []
    start = time.perf_counter()
    for number, job in enumerate(args.jobs, 1):
        print(f'{time.perf_counter() - start:5.0f} s  {number}/{len(args.jobs)}  {job.title}', file=sys.stderr)
        if job.section == 'memory':
            memories += measure_memory(job, skipped)
        else:
            timings += measure_times(job, batches[job.case.network, job.images], args.rounds, skipped)
        # after each, so that a run that is broken off is not lost
        write_json(args.json, header, timings, memories, skipped)
    print_report(header, timings, memories, skipped)


if __name__ == '__main__':
    main()
