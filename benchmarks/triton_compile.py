"""Compile the GPU kernels of the lookup convolution without a GPU; print registers, spills and shared memory.

    python benchmarks/triton_compile.py            # sm_80, sm_90, sm_100 and sm_120
    python benchmarks/triton_compile.py 90         # only sm_90

Needs Triton, which comes with torch's CUDA wheels for Linux. Nothing is run: registers, stack and shared memory are
what cuobjdump says of the compiled code, and a spill is a store to local memory in it.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from timm_p2be.lookup import triton_gpu, triton_kernels

TARGETS = (80, 90, 100, 120)
STEMS = ((16, 3, 1), (64, 7, 2), (96, 4, 4))  # channels, kernel, stride
TYPES = {'float32': '*fp32', 'bfloat16': '*bf16', 'float16': '*fp16'}


class Usage(NamedTuple):
    """What a compiled kernel takes; registers of a thread, bytes. And its instructions, as nvdisasm writes them."""

    registers: int
    stack: int
    shared: int
    spills: int
    assembly: str


def compile_kernel(name: str, target: int, pointers: dict[str, str], constants: dict[str, Any], warps: int) -> Usage:
    """Compile one kernel, its pointers and pitch divisible by 16 as those of whole tensors are."""
    kernel = getattr(triton_kernels, name)
    signature = {argument: pointers.get(argument, 'i32') for argument in kernel.arg_names}
    signature |= dict.fromkeys(constants, 'constexpr')
    aligned = [name for name, kind in signature.items() if kind.startswith('*') or name == 'pitch']
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(key),): value for key, value in constants.items()},
        attrs={(kernel.arg_names.index(key),): [['tt.divisibility', 16]] for key in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget('cuda', target, 32), options={'num_warps': warps})
    tools = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / 'kernel.cubin'
        cubin.write_bytes(compiled.asm['cubin'])
        usage = _run(tools / 'cuobjdump', '-res-usage', cubin)
        assembly = _run(tools / 'nvdisasm', '-c', cubin)
    registers, stack = (int(re.search(rf'{key}:(\d+)', usage)[1]) for key in ('REG', 'STACK'))  # type: ignore[index]
    return Usage(registers, stack, compiled.metadata.shared, len(re.findall(r'\bSTL\b', assembly)), assembly)


def _run(*command: Any) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


def cases(
    dtype: str, channels: int, width: int, stride: int = 1, bits: int = 64
) -> dict[str, tuple[dict[str, str], dict[str, Any], int]]:
    """Return pointers, constants and warps of the kernels of a square convolution as `Kernels` launches them."""
    launched = triton_gpu.Kernels(channels, getattr(torch, dtype))
    common = {'KW': width, 'OUT': channels, 'BO': launched.block}
    product = {'PRECISION': triton_gpu.PRECISION, 'INTERPRETED': False}
    rows, sums = TYPES[dtype], '*fp32'
    return {
        'code_table': (
            {'codes': sums, 'weight': sums, 'table': rows},
            {**common, 'M': bits, 'BK': 32, 'BM': 32, 'LATENT': True},
            4,
        ),
        'through_sign': (
            {'grad': sums, 'latents': sums, 'found': sums},
            {'N': 1024},
            4,
        ),
        'smoothness': (
            {'weights': sums, 'angles': sums, 'gradient': sums, 'share': 'fp32'},
            {'BM': bits},
            4,
        ),
        'code_product': (
            {'levels': '*u8', 'codes': rows, 'taps': rows, 'features': rows},
            {
                **common,
                **product,
                'KH': width,
                'M': bits,
                'BP': 128,
                'BM': launched.at_once,
                'BO': launched.product_block,
            },
            8,
        ),
        'gather_sum': (
            {'levels': '*u8', 'table': rows, 'features': rows},
            {**common, 'KH': width, 'BP': launched.pixels_at_once},
            4,
        ),
        'partition': (
            {'levels': '*u8', 'keys': '*i16', 'starts': '*i32'},
            {'CHUNK': triton_gpu.CHUNK},
            8,
        ),
        'bucket_sum': (
            {'keys': '*i16', 'starts': '*i32', 'grad': rows, 'partial': sums},
            {**common, **product, 'KH': width, 'CHUNK': triton_gpu.CHUNK, **launched.at_a_time(width, stride)},
            4,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('targets', type=int, nargs='*', default=TARGETS, help='compute capabilities, such as 90')
    print(f'Triton {triton.__version__}, torch {torch.__version__}')
    print('| kernel | for | dtype | target | registers | stack, B | shared, B | spills |')
    print('|---|---|---|---|---|---|---|---|')
    for target in parser.parse_args().targets:
        for channels, width, stride in STEMS:
            for dtype in ('float32', 'bfloat16'):
                for name, case in cases(dtype, channels, width, stride).items():
                    numbers = ' | '.join(map(str, compile_kernel(name, target, *case)[:4]))
                    print(f'| {name} | {width}x{width}, {channels} | {dtype} | sm_{target} | {numbers} |', flush=True)


if __name__ == '__main__':
    main()
