"""Compile LLVM IR in memory (llvmlite) and run it on torch's own threads.

Compiling takes a fraction of a second in each process, so nothing is cached on disk. A compiled function runs in
torch's OpenMP team: no second pool of threads fights with the first, and several Python threads at once are as safe as
with torch's own operators. Where torch's OpenMP does not offer GNU's entry point, Python threads do the work. In a
forked process, where the team's threads do not exist, the calling thread runs the function alone.
"""

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import torch

from timm_p2be.lookup.llvm_ir import Shape
from timm_p2be.lookup.window import LOADED_IN

_lock = threading.Lock()
_compiled: dict[tuple[str, Shape], 'Function'] = {}

if hasattr(os, 'register_at_fork'):  # not on Windows
    # nobody compiles during a fork: the child would inherit the locks, LLVM's own among them, of threads it has not
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Function:
    """The function void `name`(int64 *arguments) of the LLVM IR `text`, of which several threads can share one call."""

    def __init__(self, text: str, name: str) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly(text)
        module.verify()
        self._machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=_cpu_features(), opt=3
        )
        # the loops are vectorized by hand
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization = options.slp_vectorization = False
        passes = llvm.create_pass_builder(self._machine, options)
        passes.getModulePassManager().run(module, passes)
        self._engine = llvm.create_mcjit_compiler(module, self._machine)  # owns the code
        self._engine.finalize_object()
        self._function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._engine.get_function_address(name))

    def run(self, arguments: int, threads: int) -> None:
        """Call the function with a pointer to its arguments on `threads` threads; the GIL is released."""
        if threads == 1:
            self._function(arguments)
        elif team := _openmp_team():
            team(ctypes.cast(self._function, ctypes.c_void_p), arguments, threads, 0)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(self._function, [arguments] * threads))


def compile_function(build: Callable[[Shape], str], shape: Shape) -> Function:
    """Return the function whose IR `build(shape)` returns; each is compiled once in a process."""
    name = build.__name__
    with _lock:
        if (name, shape) not in _compiled:
            _compiled[name, shape] = Function(build(shape), name)
        return _compiled[name, shape]


def _cpu_features() -> str:
    """Return the processor's features, or '' where LLVM cannot tell and goes by the processor's name."""
    try:
        return llvm.get_host_cpu_features().flatten()
    except RuntimeError:
        return ''


def num_threads() -> int:
    """Return how many threads to use: as many as torch, and one after a fork."""
    return torch.get_num_threads() if os.getpid() == LOADED_IN else 1


@functools.cache
def _openmp_team() -> Any:
    """Return GOMP_parallel(function, argument, threads, flags) of the OpenMP library torch runs on, or None."""
    for name in ('libtorch_cpu.so', 'libtorch_cpu.dylib'):
        library = Path(torch.__file__).parent / 'lib' / name
        if library.exists():
            # looks the symbol up in the library torch is linked to, of which a process may hold several
            team = getattr(ctypes.CDLL(str(library)), 'GOMP_parallel', None)
            if team is not None:
                team.restype = None
                team.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            return team
    return None


def description() -> str:
    """Return what compiles and runs the functions, for a log line."""
    version = '.'.join(str(number) for number in llvm.llvm_version_info)
    threads = "torch's OpenMP threads" if _openmp_team() else 'Python threads'
    return f'llvmlite {llvmlite.__version__} (LLVM {version}, {llvm.get_host_cpu_name()}), {threads}'
