"""Mutated files against all code that reads files of strangers: `python benchmarks/fuzz.py --inputs 100000 --seed 0`.

Checkpoints, networks, tables, configs, recipes, grids, runs, results, cards, images and arrays are made, mutated (bytes
flipped, cut, moved and repeated; entries of JSON, YAML and pickles replaced, dropped, nested and repeated) and read. It
counts errors that are not this package's own (a ValueError raised in timm_p2be, or argparse's exit with 2), inputs that
took longer than --seconds, and files written, processes started and connections made outside the folder it works in.
Input i of a seed is the same in every run: `--first i --inputs 1` repeats it.
"""

import argparse
import contextlib
import copy
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import yaml
from PIL import Image

import timm_p2be
from timm_p2be.checkpoints import read_checkpoint
from timm_p2be.data.image_files import open_image
from timm_p2be.encodings import PixelEmbedding
from timm_p2be.encodings.table_file import read_table_file
from timm_p2be.files import content_of
from timm_p2be.hub.card import render_card
from timm_p2be.hub.find_table import find_table
from timm_p2be.hub.repository import read_contents, verify
from timm_p2be.hub.results import collect_results
from timm_p2be.hub.run_folder import read_run
from timm_p2be.reproduce.grid import TABLES, read_grid
from timm_p2be.robustness.corruptions.stored_sets import open_corrupted
from timm_p2be.robustness.evaluation.attack_report import attack_report
from timm_p2be.robustness.evaluation.attack_results import AttackResults
from timm_p2be.robustness.evaluation.corruption_report import corruption_report
from timm_p2be.robustness.evaluation.results import read_json
from timm_p2be.robustness.pixel_model import load_model
from timm_p2be.task import P2BETask
from timm_p2be.training.arguments import RECIPES, command_line, parse_args
from timm_p2be.training.checkpoints import check_checkpoint, fit_position, read_resumed, resume, resume_ema
from timm_p2be.training.saver import Saver

ROOT = Path(__file__).parents[1]
PACKAGE = str(Path(timm_p2be.__file__).parent)
NASTY: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    10**30,
    1e308,
    0.5,
    float('nan'),
    float('inf'),
    '',
    'a' * 3000,
    '../../victim',
]
NASTY += ['\x00', '\ud800', '<script>', '/etc/passwd', [], {}, [[]], {'': {}}, '{axis}', '%s', '&a [*a]', '1' * 5000]
FORMATS = {'PNG': {}, 'JPEG': {}, 'BMP': {}, 'GIF': {}, 'TIFF': {'compression': 'tiff_lzw'}, 'WEBP': {}, 'PPM': {}}
WATCHED = ('open', 'os.remove', 'os.rename', 'os.mkdir', 'os.rmdir', 'os.symlink', 'os.link', 'os.truncate', 'os.chmod')
STARTED = (
    'subprocess.Popen',
    'os.system',
    'os.exec',
    'os.posix_spawn',
    'os.fork',
    'socket.connect',
)
WEIGHTS = {'0' * 64: 'as published'}


class Slow(BaseException):
    """An input took too long."""


class Target(NamedTuple):
    """One way in: writes a mutated file into a folder, and what reads it."""

    write: Callable[[Path, random.Random], None]
    read: Callable[[Path], Any]


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return bytes after one to four changes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, count = rng.randrange(len(data) + 1), min(rng.choice((1, 2, 4, 8, 64, 1000)), len(data))
        kind = rng.randrange(6)
        if kind == 0:
            data[at : at + count] = rng.randbytes(count)
        elif kind == 1:
            del data[at : at + count]
        elif kind == 2:
            data[at:at] = data[:count]
        elif kind == 3:
            data[at : at + 4] = rng.choice((b'\xff' * 4, b'\x00' * 4, b'\x7f\xff\xff\xff', b'\xff\xff\xff\x7f'))
        elif kind == 4 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        else:
            del data[rng.randrange(len(data) // 2, len(data) + 1) :]
    return bytes(data)


def mutated(content: Any, rng: random.Random, nasty: list[Any]) -> Any:
    """Return a copy of nested containers after one to three changes, each at a random depth."""
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        place, depth = content, rng.randint(0, 5)
        while True:
            inner = vars(place) if isinstance(place, argparse.Namespace) else place
            keys = [*(inner if isinstance(inner, dict) else range(len(inner)))]
            if not keys:
                break
            key = rng.choice(keys)
            if depth and isinstance(inner[key], dict | list | argparse.Namespace):
                place, depth = inner[key], depth - 1
                continue
            _change(inner, key, rng, nasty)
            break
    return content


def _change(inner: Any, key: Any, rng: random.Random, nasty: list[Any]) -> None:
    kind = rng.randrange(8)
    if kind == 0:
        del inner[key]
    elif kind == 1 and isinstance(inner, dict):
        inner[rng.choice(['', 'x', '*', 'a?', key])] = copy.deepcopy(inner[key])
    elif kind == 2:
        inner[key] = [copy.deepcopy(inner[key])] * rng.choice((1, 3, 40))
    elif kind == 3:
        for _ in range(rng.choice((3, 60, 150))):
            inner[key] = [inner[key]] if rng.random() < 0.5 else {'x': inner[key]}
    elif kind == 4 and type(inner[key]) in (int, float):
        inner[key] = rng.choice((-inner[key], inner[key] * 10**9, inner[key] + 1, str(inner[key])))
    else:
        inner[key] = copy.deepcopy(rng.choice(nasty))


def _json(name: str, content: Any) -> Callable[[Path, random.Random], None]:
    """Return what writes a JSON file that is mutated as values, or as text."""
    text = json.dumps(content, indent=1)

    def write(folder: Path, rng: random.Random) -> None:
        if rng.random() < 0.3:
            (folder / name).write_bytes(mutated_bytes(text.encode(), rng))
        else:
            (folder / name).write_text(json.dumps(mutated(content, rng, NASTY)))

    return write


def _yaml(name: str, text: str) -> Callable[[Path, random.Random], None]:
    content = yaml.safe_load(text)

    def write(folder: Path, rng: random.Random) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        if rng.random() < 0.4:
            (folder / name).write_bytes(mutated_bytes(text.encode(), rng))
        else:
            plain = mutated(content, rng, NASTY)
            (folder / name).write_bytes(yaml.safe_dump(plain, allow_unicode=False).encode(errors='replace'))

    return write


def _torch(name: str, content: Any) -> Callable[[Path, random.Random], None]:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    once, twice = torch.zeros(3), torch.full((2, 2), float('inf'))
    nasty = [*NASTY, once, twice, torch.zeros(1).expand(10**6, 10**6), torch.zeros(0), torch.zeros(2, dtype=torch.int8)]
    nasty += [torch.zeros(()), argparse.Namespace(a=1), {1: 2}, (1,), {3}, torch.float32, torch.zeros(2, 2).T]

    def write(folder: Path, rng: random.Random) -> None:
        if rng.random() < 0.4:
            (folder / name).write_bytes(mutated_bytes(buffer.getvalue(), rng))
        else:
            torch.save(mutated(content, rng, nasty), folder / name)

    return write


def _both(*writers: Callable[[Path, random.Random], None]) -> Callable[[Path, random.Random], None]:
    """Return what lets one of several writers mutate its file; the others' are those of `beside`."""
    return lambda folder, rng: rng.choice(writers)(folder, rng)


def _image(folder: Path, rng: random.Random) -> None:
    buffer = io.BytesIO()
    kind = rng.choice([*FORMATS])
    size = rng.choice(((8, 8), (33, 5), (1, 1)))
    image = Image.frombytes('RGB', size, rng.randbytes(3 * size[0] * size[1]))
    image.convert(rng.choice(('RGB', 'L'))).save(buffer, kind, **FORMATS[kind])
    (folder / 'image.png').write_bytes(mutated_bytes(buffer.getvalue(), rng))


def _arrays(folder: Path, rng: random.Random) -> None:
    np.save(folder / 'labels.npy', np.tile(np.arange(4, dtype=np.int64), 5))
    np.save(folder / 'fog.npy', np.zeros((20, 32, 32, 3), np.uint8))
    name = rng.choice(('labels.npy', 'fog.npy'))
    head = (folder / name).read_bytes()
    (folder / name).write_bytes(mutated_bytes(head[:200], rng) + head[200:])


def _read_arrays(folder: Path) -> None:
    data = open_corrupted(folder, ['fog'], [1, 5])
    data.describe()


class Resumed:
    """What `train.py --resume` does with a checkpoint before it trains."""

    def __init__(self) -> None:
        words = ['--data-dir', 'x', '--model', 'encoded', '--model-kwargs', 'backbone=test_resnet', 'num_bits=8']
        words += ['--num-classes', '2', '--model-ema', '--opt', 'sgdp2be', '--lr', '0.1', '--mean', '0', '--std', '1']
        self.args = parse_args(words).args
        self.args.world_size, self.args.rank, self.args.local_rank, self.args.distributed = 1, 0, 0, False
        self.model = timm.create_model('encoded', backbone='test_resnet', num_bits=8, num_classes=2)
        self.task = P2BETask(self.model, verbose=False)
        self.task.setup_ema(decay=0.9)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.model(torch.zeros(2, 3, 32, 32)).sum().backward()
        self.optimizer.step()
        place = {'epoch': 0, 'update': 1, 'sums': {'loss': 1.0}, 'count': 8, 'updates_per_epoch': 3}
        self.entries = {
            'epoch': 0,
            'arch': 'encoded',
            'version': 2,
            'args': argparse.Namespace(**vars(self.args), position=place),
            'optimizer': self.optimizer.state_dict(),
            **self.task.get_checkpoint_state(),
            **self.task.get_checkpoint_state(ema=True),
            'metric': 50.0,
            'saver': {'checkpoint_files': [('../../victim', 1.0)], 'best_epoch': 0, 'best_metric': 99.0},
            'buffers': [{'state_dict': {}}],
        }

    def read(self, folder: Path) -> None:
        """Resume from a checkpoint, and rank it with others of its folder."""
        path, args = folder / 'last.pth.tar', self.args
        Saver(folder, 'top1', 1).restore(1)
        args.resume = str(path)
        found = read_resumed(args.resume)
        with content_of(f'--resume {path}'):
            check_checkpoint(found.raw, args, {'lr', 'opt_betas'})
            position = resume(found.raw, args, self.task, self.optimizer, None)
            fit_position(position, found.args, args, 3)
            resume_ema(found.raw, self.task)


def _read_results(folder: Path) -> None:
    path = folder / 'results.json'
    try:
        corruption_report(read_json(path, 'corruptions')).markdown()
    finally:
        collect_results(RUN, [path], WEIGHTS, 'test', 10)


def _read_attacks(folder: Path) -> None:
    path = folder / 'x.attacks.json'
    try:
        content = read_json(path, 'attacks')
        with content_of(str(path)):
            results = AttackResults(content)
            results.work_left()
            [results.left(part, attack['name']) for attack in content['attacks'] for part in ('alone', 'worst_case')]
        attack_report([read_json(path, 'attacks')]).markdown()
    finally:
        collect_results(RUN, [path], WEIGHTS, 'test', 10)


def _read_card(folder: Path) -> None:
    contents, config = read_contents(folder), json.loads((folder / 'config.json').read_text())
    if contents.is_ours:
        render_card(config, 'org/name')
    verify(folder)


RUN: Any = argparse.Namespace(error=3.5, epoch=0, path=Path('last.pth.tar'), folder=Path())


def targets(beside: Path) -> dict[str, Target]:
    """Return all ways in; `beside` gets sound files that some of them need besides the mutated one."""
    resumed = Resumed()
    torch.manual_seed(0)
    (beside / 'table').mkdir()
    PixelEmbedding('p2be', 16).save_pretrained(beside / 'table')
    config = json.loads((beside / 'table' / 'config.json').read_text())
    record = json.loads((ROOT / 'hub_cards' / 'p2be-m64-cifar10' / 'config.json').read_text())['provenance']
    weights = (beside / 'table' / 'model.safetensors').read_bytes()
    (beside / 'run').mkdir()
    flags = {**vars(resumed.args), 'resume': ''}
    torch.save(resumed.entries, beside / 'run' / 'last.pth.tar')
    (beside / 'run' / 'args.yaml').write_text(yaml.safe_dump(flags))
    (beside / 'run' / 'summary.csv').write_text('epoch,eval_top1\n0,50.0\n')
    corrupted = json.loads((ROOT / 'benchmarks/results/corruptions/results.json').read_text())
    attacked = json.loads((ROOT / 'benchmarks/results/attacks/p2be.attacks.json').read_text())
    for key in ('clean', 'results', 'summary'):
        corrupted[key] = {'rgb': corrupted[key]['rgb']}
    for model in (*corrupted['config']['models'], attacked['model']):
        model['weights_sha256'] = '0' * 64
    architecture = {'architecture': 'wrn16_2_p2be', 'num_classes': 10, 'model_args': {'num_bits': 16}}
    ours = {'format_version': 1, 'encoding': 'p2be', 'num_bits': 16, 'weights_sha256': None, 'provenance': record}
    model = {**architecture, 'pretrained_cfg': {'num_classes': 10, 'mean': [0, 0, 0]}, 'timm_p2be': ours}
    network = timm.create_model('test_resnet', num_classes=2).state_dict()
    recipes = sorted(RECIPES.glob('*.yaml'))
    grids = sorted(TABLES.glob('*.yaml'))

    def recipe(folder: Path, rng: random.Random) -> None:
        _yaml('recipe.yaml', rng.choice(recipes).read_text())(folder, rng)

    def grid(folder: Path, rng: random.Random) -> None:
        _yaml('grid.yaml', rng.choice(grids).read_text())(folder, rng)

    def table(folder: Path, rng: random.Random) -> None:
        shutil.copytree(beside / 'table', folder, dirs_exist_ok=True)
        _both(_json('config.json', {**config, 'provenance': record}), _json('config.json', model), safetensors)(
            folder, rng
        )

    def safetensors(folder: Path, rng: random.Random) -> None:
        (folder / 'model.safetensors').write_bytes(mutated_bytes(weights, rng))

    def run(folder: Path, rng: random.Random) -> None:
        shutil.copytree(beside / 'run', folder, dirs_exist_ok=True)
        csv = lambda folder, rng: (folder / 'summary.csv').write_bytes(  # noqa: E731
            mutated_bytes((folder / 'summary.csv').read_bytes(), rng)
        )
        _both(_yaml('args.yaml', yaml.safe_dump(flags)), csv)(folder, rng)

    def read_recipe(folder: Path) -> None:
        arguments = parse_args(['-c', str(folder / 'recipe.yaml'), '--data-dir', 'x'])
        command_line(vars(arguments.args))

    return {
        'checkpoint': Target(_torch('last.pth.tar', resumed.entries), resumed.read),
        'table in a checkpoint': Target(
            _torch('last.pth.tar', resumed.entries), lambda folder: find_table(str(folder / 'last.pth.tar'))
        ),
        'network': Target(
            _torch('net.pth', {'state_dict': network, 'args': argparse.Namespace(mean=[0.0], std=[1.0])}),
            lambda folder: load_model(f'test_resnet={folder / "net.pth"}'),
        ),
        'safetensors': Target(safetensors, lambda folder: read_checkpoint(folder / 'model.safetensors')),
        'table': Target(table, lambda folder: read_table_file(folder)),
        'config and card': Target(table, _read_card),
        'recipe': Target(recipe, read_recipe),
        'grid': Target(grid, lambda folder: read_grid(folder / 'grid.yaml', embedding='x')),
        'run': Target(run, read_run),
        'corruption results': Target(_json('results.json', corrupted), _read_results),
        'attack results': Target(_json('x.attacks.json', attacked), _read_attacks),
        'image': Target(_image, lambda folder: open_image(folder / 'image.png', 'it')),
        'arrays': Target(_arrays, _read_arrays),
    }


class Watch:
    """Notes what Python does outside of a folder: files written or removed, processes, connections."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.noted, self.on = str(folder), list[str](), False
        sys.addaudithook(self._heard)

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in STARTED:
            self.noted.append(f'{event} {args[:2]!r:.100}')
        if event not in WATCHED or (event == 'open' and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        for path in args[:2] if event in ('os.rename', 'os.link', 'os.symlink') else args[:1]:
            place = (
                str(Path(os.fsdecode(path)).absolute()) if isinstance(path, str | bytes | os.PathLike) else self.folder
            )
            if not place.startswith((self.folder, '/dev/')):
                self.noted.append(f'{event} {place}')


class Report(NamedTuple):
    """What came of all inputs."""

    inputs: Counter[str]
    refused: Counter[str]
    foreign: dict[str, int]  # errors that are not our own -> the first input that had them
    slow: list[int]
    outside: list[str]
    peak: int  # bytes, over what was there before the first input


def is_ours(error: BaseException) -> bool:
    """Return whether an error is one that this package means a user to read."""
    if isinstance(error, SystemExit):
        return error.code == 2
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError) and frames[-1].filename.startswith(PACKAGE)


def fuzz(count: int, seed: int, first: int = 0, seconds: float = 20.0, only: str = '') -> Report:
    """Read `count` mutated inputs, from number `first` on."""
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name, _alarm():
        work = Path(name).resolve()
        (work / 'beside').mkdir()
        ways = {key: target for key, target in targets(work / 'beside').items() if only in key}
        watch, report = Watch(work), Report(Counter(), Counter(), {}, [], [], 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(first, first + count):
            rng = random.Random(f'{seed} {number}')
            way = rng.choice([*ways])
            folder = work / 'input'
            folder.mkdir()
            with contextlib.suppress(RecursionError, UnicodeError):  # what cannot be written, nobody reads
                ways[way].write(folder, rng)
            report.inputs[way] += 1
            start, watch.on = time.monotonic(), True
            try:
                signal.setitimer(signal.ITIMER_REAL, seconds)
                with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                    ways[way].read(folder)
            except Slow:
                report.slow.append(number)
            except (Exception, SystemExit) as error:
                report.refused[way] += 1
                if not is_ours(error):
                    place = traceback.extract_tb(error.__traceback__)[-1]
                    key = f'{way}: {type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {error!s:.120}'
                    if report.foreign.setdefault(key, number) == number:
                        print(f'not our own, input {number}: {key}', flush=True)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                watch.on = False
            if time.monotonic() - start > seconds and number not in report.slow:
                report.slow.append(number)
            shutil.rmtree(folder)
        peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        logging.disable(logging.NOTSET)
        return report._replace(outside=watch.noted, peak=peak)


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Slow

    previous = signal.signal(signal.SIGALRM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, previous)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--inputs', type=int, default=1000, metavar='N', help='default: %(default)s')
    parser.add_argument('--seed', type=int, default=0, metavar='S', help='default: %(default)s')
    parser.add_argument('--first', type=int, default=0, metavar='I', help='number of the first input (default: 0)')
    parser.add_argument('--seconds', type=float, default=20.0, help='a hang takes longer (default: %(default)s)')
    parser.add_argument('--only', default='', metavar='WORD', help='ways in whose name holds it')
    args = parser.parse_args()
    start = time.monotonic()
    report = fuzz(args.inputs, args.seed, args.first, args.seconds, args.only)
    for way, count in sorted(report.inputs.items()):
        print(f'{way:22} {count:7} inputs, {report.refused[way]:7} refused')
    print(f'{sum(report.inputs.values())} inputs of seed {args.seed} in {time.monotonic() - start:.0f} s')
    print(f'errors that are not our own: {len(report.foreign)}; hangs: {report.slow or "none"}')
    print(
        f'outside the folder: {report.outside or "nothing"}; peak memory: {report.peak / 2**20:.0f} MiB above the start'
    )
    return 1 if report.foreign or report.slow or report.outside else 0


if __name__ == '__main__':
    sys.exit(main())
