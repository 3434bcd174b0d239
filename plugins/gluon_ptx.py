"""PTX of one thread that Gluon kernels of several ops are written with; each op's own lies beside it.

Shared memory is addressed in bytes. Where a kernel calls what is not pure, that keeps its place in the order.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def shared_base():
    """Address of the program's shared memory. The name is Triton's."""
    return gl.inline_asm_elementwise(
        "mov.u32 $0, global_smem; // $1", "=r,r", [0], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def load16(address, pred):
    """Four registers from a global address of 64 bits, zeros where not pred."""
    return gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.u32 p, $5, 0; mov.u32 $0, 0; mov.u32 $1, 0; mov.u32 $2, 0; mov.u32 $3, 0;"
        " @p ld.global.v4.b32 {$0, $1, $2, $3}, [$4]; }",
        "=&r,=&r,=&r,=&r,l,r",
        [address, pred],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32),
        is_pure=False,
        pack=1,
    )


@gluon.jit
def int8_product(a, b0, b1, c0, c1, c2, c3):
    """int32 c [16,8] + int8 a [16,32] · b [32,8] of a warp; a: a tuple of four registers."""
    return gl.inline_asm_elementwise(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};",
        "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r,r",
        [a[0], a[1], a[2], a[3], b0, b1, c0, c1, c2, c3],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32),
        is_pure=False,
        pack=1,
    )
