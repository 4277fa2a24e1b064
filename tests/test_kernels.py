"""The compiled loops around their arithmetic: rounding, forks, threads, missing compilers, graphs and bad arguments."""

import ctypes
import logging
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from threading import Barrier, Event

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from timm_p2be import lookup
from timm_p2be.lookup import llvm_cpu, llvm_ir, llvm_jit, lookup_conv2d, operators, table_conv2d
from timm_p2be.lookup.operators import code_table
from timm_p2be.lookup.window import slide
from timm_p2be.stem import EncodedConv2d

OPERATORS = ('lookup_conv2d', 'lookup_conv2d_backward', 'table_conv2d')
GEOMETRY = ([2, 1], [1, 0, 2, 1], [1, 2])  # stride, (left, right, top, bottom), dilation
TIMEOUT = 60  # seconds until a process counts as hung

can_fork = pytest.mark.skipif(
    'fork' not in multiprocessing.get_all_start_methods(), reason='this system cannot fork a process'
)
# Python 3.12 warns of what is tested here
forks_with_threads = pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')


def _example(channels: int = 16, seed: int = 0, size: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Return levels of two colors, codes of 4 bits and a kernel."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(256, (3, 2, size, size + 2), generator=generator, dtype=torch.uint8)
    codes = torch.randn(256, 4, generator=generator)
    return levels, codes, torch.randn(channels, 8, 3, 2, generator=generator)


def _inputs(channels: int = 8, dtype: torch.dtype = torch.float32, seed: int = 0, size: int = 9) -> tuple[Tensor, ...]:
    """Return levels, a table and a gradient of the feature map for `_loops`."""
    levels, codes, weight = _example(channels, seed, size)
    table = code_table(codes, weight, 2).to(dtype)
    return levels, table, table_conv2d(levels, table, *GEOMETRY).sin()


def _loops(levels: Tensor, table: Tensor, grad: Tensor) -> list[Tensor]:
    """Return the feature map of a table and the table's gradient: the two loops, and no large operator of torch."""
    window = slide(levels, table.shape[0:3:2], *GEOMETRY)
    scatter_add = llvm_cpu.Kernels(table.shape[4], table.dtype).scatter_add
    return [table_conv2d(levels, table, *GEOMETRY), scatter_add(window, grad.permute(0, 2, 3, 1).contiguous())]


def _results(levels: Tensor, codes: Tensor, weight: Tensor, function: Callable[..., Tensor] = lookup_conv2d):
    """Return the feature map and the gradients of codes and weight."""
    codes, weight = codes.clone().requires_grad_(), weight.clone().requires_grad_()
    features = function(levels, codes, weight, *GEOMETRY)
    features.square().sum().backward()
    return features.detach(), codes.grad, weight.grad


def _equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what is compiled and what has been logged, before and after."""

    def forget() -> None:
        operators._compiled_kernels.cache_clear()
        operators._say_once.cache_clear()

    monkeypatch.setattr(llvm_jit, '_compiled', {})
    forget()
    yield
    forget()


# shapes


def test_blocks_divide_the_channels_and_fit_the_registers():
    for channels, size in product(range(1, 301), (2, 4)):
        shape = llvm_ir.shape_for(channels, size)
        assert channels % shape.block == 0
        assert shape.block == shape.lanes * shape.vectors <= llvm_ir.MAX_ROW
        assert shape.size == size
    wanted = {16: 16, 24: 24, 48: 48, 64: 64, 96: 48, 100: 20, 128: 64, 192: 64, 7: 7, 127: 1}  # as many as possible
    assert {channels: llvm_ir.shape_for(channels, 4).block for channels in wanted} == wanted


# bfloat16


@pytest.mark.parametrize('channels', [1, 2, 3, 8, 48])
def test_every_float32_becomes_the_bfloat16_that_torch_makes_of_it(channels):
    """Denormal numbers, both zeros and NaNs with any payload among them: 0x7FFFFFFF must not round up to -0."""
    function = llvm_ir._Function('narrow', llvm_ir.shape_for(channels, 2))
    function.write(function.read(function.pointer('table'), 4), function.pointer('features'), 2)
    function.builder.ret_void()
    narrow = llvm_jit.Function(str(function.module), 'narrow')
    uppers = torch.tensor([0, 1, 0x007F, 0x0080, 0x3F80, 0x3F81, 0x7F7F, 0x7F80, 0x7F81, 0x7FBF, 0x7FC0, 0x7FFF])
    patterns = (uppers[:, None] * 2**16 + torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])).flatten()
    random = torch.randint(2**31, (9600 - 2 * len(patterns),), generator=torch.Generator().manual_seed(0))
    numbers = torch.cat([patterns, patterns - 2**31, random]).int().view(torch.float32)
    rounded = torch.empty(len(numbers), dtype=torch.bfloat16)
    for some, result in zip(numbers.split(channels), rounded.split(channels), strict=True):
        arguments = llvm_cpu._Arguments(table=some.data_ptr(), features=result.data_ptr())
        narrow.run(ctypes.addressof(arguments), 1)
    expected, nan = numbers.bfloat16(), numbers.isnan()
    assert torch.equal(rounded[~nan].view(torch.int16), expected[~nan].view(torch.int16))
    assert nan.any()
    assert rounded[nan].isnan().all()


def _sums_of_rows(rows: list[Tensor], channels: int) -> Tensor:
    """Return the features (256, channels) of pixels 0..255 whose three colors each add a row of `rows`."""
    table = torch.zeros(1, 3, 1, 257, channels, dtype=rows[0].dtype)
    for color, values in enumerate(rows):
        table[0, color, 0, :256] = values[:, None]
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    return table_conv2d(levels, table)[0, :, 0].T


def test_overflow_and_undefined_sums():
    largest, inf = torch.full((256,), torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16), torch.inf
    assert (_sums_of_rows([largest, largest], 16) == inf).all()
    assert (_sums_of_rows([-largest, -largest], 16) == -inf).all()
    assert _sums_of_rows([largest + inf, -largest - inf], 16).isnan().all()


def test_bfloat16_gradients_are_added_up_in_float32():
    """1 + 256 steps of 2^-8: in bfloat16 the sum would stay at 1."""
    grad = torch.full((1, 1, 257, 16), 2.0**-8, dtype=torch.bfloat16)
    grad[0, 0, 0] = 1
    levels = torch.full((1, 1, 1, 257), 7, dtype=torch.uint8)
    window = slide(levels, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
    table = llvm_cpu.Kernels(16, torch.bfloat16).scatter_add(window, grad)
    assert table.dtype == torch.float32
    assert (table[0, 7] == 2).all()
    assert table.count_nonzero() == 16


# forked processes


def _exit_code_of_fork(function: Callable[[], bool]) -> int | None:
    """Run it in a forked process: 0 if it returns true, 1 if not, None if it hangs."""
    process = multiprocessing.get_context('fork').Process(target=lambda: sys.exit(not function()))
    process.start()
    process.join(TIMEOUT)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return code


@can_fork
@forks_with_threads
def test_a_fork_waits_for_no_thread_that_it_has_not_and_no_lock_of_one(two_threads):
    """It uses what its parent compiled, and compiles on its own."""
    inputs, others = _inputs(), _inputs(5)
    expected = _loops(*inputs)
    held = Event()

    def hold() -> None:
        with llvm_jit._lock:
            held.set()
            time.sleep(0.5)

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        assert held.wait(TIMEOUT)
        assert _exit_code_of_fork(lambda: _equal(_loops(*inputs), expected) and bool(_loops(*others))) == 0
        holding.result()
    assert _equal(_loops(*inputs), expected)


# threads


def _at_once(count: int, function: Callable[[int], object]) -> list:
    """Return function(0), function(1), ..., called by `count` threads that start together."""
    barrier = Barrier(count)

    def call(index: int) -> object:
        barrier.wait(TIMEOUT)
        return function(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_four_threads_do_not_disturb_each_other(dtype, two_threads):
    inputs = [_inputs(16, dtype, seed, 33) for seed in range(4)]
    expected = [_loops(*args) for args in inputs]
    for _ in range(5):
        found = _at_once(4, lambda index: _loops(*inputs[index]))
        assert all(_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_threads_that_come_first_together_compile_once(nothing_compiled, monkeypatch):
    inputs = [_inputs(channels, seed=channels) for channels in (16, 8, 16, 8)]
    compiled = []

    class Function(llvm_jit.Function):
        def __init__(self, text: str, name: str) -> None:
            compiled.append(name)
            super().__init__(text, name)

    monkeypatch.setattr(llvm_jit, 'Function', Function)
    monkeypatch.setattr(llvm_jit, '_compiled', {})
    found = _at_once(4, lambda index: _loops(*inputs[index]))
    assert sorted(compiled) == ['backward', 'backward', 'forward', 'forward']
    assert all(_equal(one, _loops(*args)) for one, args in zip(found, inputs, strict=True))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_without_openmp_python_threads_do_the_work(dtype, two_threads, monkeypatch):
    inputs = _inputs(24, dtype, size=20)
    expected = _loops(*inputs)
    pools = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, count: int) -> None:
            pools.append(count)
            super().__init__(count)

    monkeypatch.setattr(llvm_jit, 'ThreadPoolExecutor', Pool)
    monkeypatch.setattr(llvm_jit, '_openmp_team', lambda: None)
    assert _equal(_loops(*inputs), expected)
    assert pools == [2, 2]  # forward and backward
    assert 'Python threads' in llvm_jit.description()


# which path runs


def _hide_llvmlite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'llvmlite', None)
    for name in ('llvm_cpu', 'llvm_ir', 'llvm_jit'):
        monkeypatch.delitem(sys.modules, f'timm_p2be.lookup.{name}')
        monkeypatch.delattr(lookup, name)


def _break_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(text: str, name: str) -> None:
        raise RuntimeError('unknown processor')

    monkeypatch.setattr(llvm_jit, 'Function', refuse)


@pytest.mark.parametrize(('break_it', 'reason'), [
    (_hide_llvmlite, 'ModuleNotFoundError: .*llvmlite'),
    (_break_compiler, 'RuntimeError: unknown processor'),
])  # fmt: skip
def test_without_a_compiler_planes_are_convolved(break_it, reason, nothing_compiled, monkeypatch, caplog):
    examples = [_example(channels) for channels in (16, 5, 16)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(operators.SWITCH, 'plain')
        expected = [_results(*example) for example in examples]
    break_it(monkeypatch)
    caplog.clear()  # the plain path, asked for, may have been said here first
    with caplog.at_level(logging.WARNING):
        found = [_results(*example) for example in examples]
    assert all(_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert len(caplog.messages) == 1
    assert re.search(rf'compiled CPU kernels are not available \({reason}', caplog.text)
    assert 'pip install' in caplog.text


def test_an_unknown_choice_is_an_error(monkeypatch):
    monkeypatch.setenv(operators.SWITCH, 'cuda')
    with pytest.raises(ValueError, match=r"TIMM_P2BE_LOOKUP='cuda'.*allowed are \('auto', 'plain', 'triton'\)"):
        lookup_conv2d(*_example())


@pytest.mark.parametrize('choice', ['auto', 'plain', None])
def test_the_environment_chooses_the_path_and_the_log_names_it(choice, nothing_compiled, monkeypatch, caplog):
    if choice is None:
        monkeypatch.delenv(operators.SWITCH, raising=False)
    else:
        monkeypatch.setenv(operators.SWITCH, choice)
    with caplog.at_level(logging.INFO):
        for channels in (16, 5, 16):
            _results(*_example(channels))
    assert len(caplog.messages) == 1
    assert ('convolves code planes: TIMM_P2BE_LOOKUP=plain' in caplog.text) == (choice == 'plain')
    assert ('sums table rows in kernels compiled by llvmlite' in caplog.text) == (choice != 'plain')
    assert bool(llvm_jit._compiled) == (choice != 'plain')


def test_bfloat16_has_kernels_of_its_own(nothing_compiled):
    """Half the bytes of a table, hence twice as many of its rows in cache."""
    levels, codes, weight = _example()
    lookup_conv2d(levels, codes, weight.bfloat16(), *GEOMETRY)
    assert {shape.size for _, shape in llvm_jit._compiled} == {2}


def test_float64_is_computed_in_float64(monkeypatch):
    """Integers that float32 cannot hold, so that a single rounding would show; the loops would round."""
    levels, _, _ = _example()
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2**20, (256, 4), generator=generator).double()
    weight = torch.randint(-(2**28), 2**28, (16, 8, 3, 2), generator=generator).double()
    (down, right), (left, after, top, bottom), dilation = GEOMETRY
    planes = codes[levels.long()].permute(0, 4, 1, 2, 3).flatten(1, 2)  # bit, then color
    planes = F.pad(planes, (left, after, top, bottom))
    windows = F.unfold(planes, (3, 2), dilation, stride=(down, right)).long()
    expected = torch.einsum('ok,bkp->bop', weight.flatten(1).long(), windows)
    monkeypatch.setattr(operators, '_compiled_kernels', None)  # a call would fail
    features = lookup_conv2d(levels, codes, weight, *GEOMETRY)
    assert features.dtype == torch.float64
    assert torch.equal(features.flatten(2).long(), expected)
    assert torch.equal(table_conv2d(levels, code_table(codes, weight, 2), *GEOMETRY).flatten(2).long(), expected)


# files and imports


FIRST_USE = """
import os, signal, sys
import torch
import timm_p2be
assert not [name for name in sys.modules if name.startswith(('llvmlite', 'timm_p2be.lookup.llvm'))]
torch.set_num_threads(2)
torch.rand(2**20).sum()  # starts the threads
arguments = torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.ones(256, 2), torch.ones(16, 2, 3, 3)
child = os.fork() if hasattr(os, 'fork') else None
if child == 0:
    signal.alarm(30)
    timm_p2be.lookup_conv2d(*arguments)
    os._exit(0)
assert not child or os.waitpid(child, 0)[1] == 0, 'the fork waits for threads that it has not'
assert (timm_p2be.lookup_conv2d(*arguments) == 18).all()
assert 'llvmlite' in sys.modules
"""


@pytest.mark.slow
def test_first_use_compiles_also_in_a_fork_and_writes_nothing(tmp_path):
    """llvmlite is imported at the first call, and no cache appears where others put theirs."""
    homes = ('HOME', 'USERPROFILE', 'TMPDIR', 'TEMP', 'TMP', 'XDG_CACHE_HOME', 'LOCALAPPDATA')
    command = [sys.executable, '-W', 'error', '-c', FIRST_USE]
    environment = {**os.environ, **dict.fromkeys(homes, str(tmp_path))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


# graphs


def _names(graph: torch.fx.Graph) -> list[str]:
    """Return the calls of a graph that are not bookkeeping."""
    return [str(node.target) for node in graph.nodes if node.op == 'call_function']


@pytest.mark.parametrize('dynamic', [False, True])
def test_torch_compile_sees_one_operator(dynamic):
    graphs: list[torch.fx.Graph] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Tensor]:
        graphs.append(module.graph)
        return module.forward

    torch.compiler.reset()
    example = _example()
    compiled = torch.compile(lookup_conv2d, backend=backend, fullgraph=True, dynamic=dynamic)
    found = _results(*example, function=compiled)
    assert _equal(found, _results(*example))
    (graph,) = graphs
    assert sum('timm_p2be' in name for name in _names(graph)) == 1
    assert 'lookup_conv2d' in _names(graph)[-1]
    assert not any('conv2d' in name and 'timm_p2be' not in name for name in _names(graph))


@pytest.mark.parametrize('autocast', [False, True])
def test_gradients_of_a_compiled_function(autocast):
    torch.compiler.reset()
    example = _example()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        found = _results(*example, function=torch.compile(lookup_conv2d, backend='aot_eager', fullgraph=True))
        expected = _results(*example)
    assert found[0].dtype == (torch.bfloat16 if autocast else torch.float32)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_torch_export_keeps_one_operator():
    stem = EncodedConv2d(2, 16, 3, encoding='thermometer', num_bits=4, padding=1)
    levels, _, _ = _example()
    sizes = {0: torch.export.Dim('batch'), 2: torch.export.Dim('height', min=3), 3: torch.export.Dim('width', min=3)}
    program = torch.export.export(stem, (levels,), dynamic_shapes=({**sizes},))
    targets = [node.target for node in program.graph.nodes if node.op == 'call_function']
    assert targets.count(torch.ops.timm_p2be.lookup_conv2d.default) == 1
    assert not any('convolution' in str(target) or 'embedding' in str(target) for target in targets)
    for images in (levels, levels[:1, :, :5, :4]):
        assert torch.equal(program.module()(images), stem(images))


def _arguments(name: str, levels: Tensor, codes: Tensor, weight: Tensor) -> tuple:
    learned = codes.clone().requires_grad_(), weight.clone().requires_grad_()
    features = lookup_conv2d(levels, codes, weight, *GEOMETRY)
    return {
        'lookup_conv2d': (levels, *learned, *GEOMETRY, torch.float32, True),
        'lookup_conv2d_backward': (features, levels, codes, weight, *GEOMETRY, True, True),
        'table_conv2d': (levels, code_table(codes, weight, levels.shape[1]), *GEOMETRY, torch.bfloat16),
    }[name]


@pytest.mark.filterwarnings('ignore:The .grad attribute of a Tensor that is not a leaf')  # torch's own
@pytest.mark.parametrize('path', ['auto', 'plain'])
@pytest.mark.parametrize('name', OPERATORS)
def test_operators_keep_the_rules_of_torch(name, path, monkeypatch):
    """Schema, autograd registration, shapes and strides of fake tensors, and all of it under torch.compile."""
    monkeypatch.setenv(operators.SWITCH, path)
    torch.library.opcheck(getattr(operators, name), _arguments(name, *_example()))


@pytest.mark.parametrize('path', ['auto', 'plain'])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(('chans', 'bits'), [(2, 4), (1, 8), (8, 1)])
def test_gradients_have_the_strides_that_inductor_was_promised(chans, bits, memory_format, path, monkeypatch):
    monkeypatch.setenv(operators.SWITCH, path)
    levels, _, weight = _example()
    levels, weight = levels[:, :1].repeat(1, chans, 1, 1), weight.contiguous(memory_format=memory_format)
    arguments = _arguments('lookup_conv2d_backward', levels, torch.rand(256, bits), weight)
    torch.library.opcheck(operators.lookup_conv2d_backward, arguments, test_utils='test_faketensor')


# bad arguments


@pytest.mark.parametrize(('size', 'geometry', 'words'), [
    ((1, 8), {}, 'smaller than the kernel of 2x2'),
    ((8, 1), {}, 'smaller than the kernel of 2x2'),
    ((8, 0), {}, 'smaller than the kernel of 2x2'),
    ((8, 8), {'stride': 0}, 'stride.*at least'),
    ((8, 8), {'stride': (-1, 1)}, 'stride.*at least'),
    ((8, 8), {'dilation': (2, -1)}, 'dilation.*at least'),
    ((8, 8), {'padding': -1}, '(?s)padding.*at least'),
    ((8, 8), {'padding': (0, 0, -2, 0)}, '(?s)padding.*at least'),
])  # fmt: skip
def test_impossible_geometry_is_an_error(size, geometry, words):
    levels, codes, weight = torch.zeros(1, 2, *size, dtype=torch.uint8), torch.zeros(256, 4), torch.zeros(5, 8, 2, 2)
    for call, args in ((lookup_conv2d, (codes, weight)), (table_conv2d, (code_table(codes, weight, 2),))):
        with pytest.raises(ValueError, match=words):
            call(levels, *args, **geometry)


def test_an_image_that_is_all_padding_is_zeros():
    codes, weight = torch.ones(256, 4), torch.ones(5, 8, 2, 2)
    features = lookup_conv2d(torch.zeros(1, 2, 0, 8, dtype=torch.uint8), codes, weight, padding=2)
    assert torch.equal(features, torch.zeros(1, 5, 3, 11))


def test_a_table_of_another_shape_is_an_error():
    levels, codes, weight = _example()
    table = code_table(codes, weight, 2)
    for wrong in (table[:, :1], table[:, :, :, :256], table[0]):
        with pytest.raises(ValueError, match=r'table of shape.*\(kh, C, kw, 257, O\)'):
            table_conv2d(levels, wrong)


def test_images_on_another_device_are_an_error():
    levels, codes, weight = _example()
    table = code_table(codes, weight, 2)
    for call, args in ((lookup_conv2d, (codes, weight)), (table_conv2d, (table,))):
        with pytest.raises(ValueError, match=r"images on meta and a stem on cpu.*images.to\('cpu'\), or model.to"):
            call(levels.to('meta'), *args)


# what torch has been told


@pytest.fixture
def defaults() -> Iterator[None]:
    """Restore torch's default dtype and device."""
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)  # naming the device instead would leave a mode on that breaks torch.compile


@pytest.mark.parametrize(('setting', 'value'), [
    ('device', 'meta'),
    ('dtype', torch.float64),
    ('dtype', torch.bfloat16),
], ids=str)  # fmt: skip
def test_defaults_of_torch_change_nothing(setting, value, defaults):
    example = _example()
    expected = _results(*example)
    getattr(torch, f'set_default_{setting}')(value)
    assert _equal(_results(*example), expected)
