"""PTX of one thread, where Gluon's own forms would put a barrier of the whole program around each step.

Values are tensors with one element a thread, and scalars that may differ between warps. Shared memory is addressed in
bytes from the program's first one: a kernel that uses this module has one allocation.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def warp_number():
    """The warp's number, a scalar."""
    return gl.inline_asm_elementwise(
        "{ .reg .u32 warp; mov.u32 warp, %tid.x; shr.u32 warp, warp, 5; shfl.sync.idx.b32 $0, warp, $1, 31, -1; }",
        "=r,r",
        [0],
        dtype=gl.int32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def sm_count():
    """How many SMs the GPU has."""
    return gl.inline_asm_elementwise("mov.u32 $0, %nsmid; // $1", "=r,r", [0], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def load_matrices(address):
    """Four 8×8 matrices of 16 bits, as mma.sync wants them: a register of each."""
    return gl.inline_asm_elementwise(
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0, $1, $2, $3}, [$4];",
        "=r,=r,=r,=r,r",
        [address],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32),
        is_pure=False,
        pack=1,
    )


@gluon.jit
def arrive(barrier, thread):
    """One arrival a warp at an mbarrier."""
    gl.inline_asm_elementwise(
        "{ .reg .u32 lane; .reg .pred first; and.b32 lane, $2, 31; setp.eq.u32 first, lane, 0;"
        " @first mbarrier.arrive.shared::cta.b64 _, [$1]; mov.u32 $0, 0; }",
        "=r,r,r",
        [barrier, thread],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def wait(barrier, phase):
    """Wait until an mbarrier has completed the phase of this parity."""
    gl.inline_asm_elementwise(
        "{ .reg .pred done; waiting: mbarrier.try_wait.parity.shared::cta.b64 done, [$1], $2;"
        " @!done bra.uni waiting; mov.u32 $0, 0; }",
        "=r,r,r",
        [barrier, phase],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def init_barrier(barrier, arrivals: gl.constexpr):
    """An mbarrier of that many arrivals a phase; before anyone uses it the program's threads must meet."""
    gl.inline_asm_elementwise(
        "{ .reg .u32 thread; .reg .pred first; mov.u32 thread, %tid.x; setp.eq.u32 first, thread, 0;"
        " @first mbarrier.init.shared::cta.b64 [$1], $2; @first fence.mbarrier_init.release.cluster; mov.u32 $0, 0; }",
        "=r,r,r",
        [barrier, arrivals],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def describe(made, to, base, size0, size1, size4, stride1, stride2, stride3, stride4, box1, box2, box3, box4):
    """Write the tensor map of 128-byte wide boxes of bytes, 128-byte swizzle, zeros outside; by the first warp.

    Sizes of the two middle dimensions are their boxes'. ``made``: 128 zeroed bytes of shared memory, ``to``: 128 bytes
    of global memory, where copies read the map.
    """
    gl.inline_asm_elementwise(
        "{ .reg .pred one; .reg .u64 map; .reg .u32 thread; mov.u32 thread, %tid.x; setp.eq.u32 one, thread, 0;"
        " cvt.u64.u32 map, $1;"
        " @one tensormap.replace.tile.global_address.shared::cta.b1024.b64 [map], $3;"
        " @one tensormap.replace.tile.rank.shared::cta.b1024.b32 [map], 4;"
        " @one tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [map], 0, 128;"
        " @one tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [map], 1, $11;"
        " @one tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [map], 2, $12;"
        " @one tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [map], 3, $13;"
        " @one tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [map], 4, $14;"
        " @one tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [map], 0, $4;"
        " @one tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [map], 1, $5;"
        " @one tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [map], 2, $12;"
        " @one tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [map], 3, $13;"
        " @one tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [map], 4, $6;"
        " @one tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [map], 0, $7;"
        " @one tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [map], 1, $8;"
        " @one tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [map], 2, $9;"
        " @one tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [map], 3, $10;"
        " @one tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [map], 0, 1;"
        " @one tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [map], 1, 1;"
        " @one tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [map], 2, 1;"
        " @one tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [map], 3, 1;"
        " @one tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [map], 4, 1;"
        " @one tensormap.replace.tile.elemtype.shared::cta.b1024.b32 [map], 0;"
        " @one tensormap.replace.tile.interleave_layout.shared::cta.b1024.b32 [map], 0;"
        " @one tensormap.replace.tile.swizzle_mode.shared::cta.b1024.b32 [map], 3;"
        " @one tensormap.replace.tile.fill_mode.shared::cta.b1024.b32 [map], 0;"
        " bar.warp.sync -1;"
        " tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [$2], [map], 128;"
        " fence.proxy.tensormap::generic.acquire.gpu [$2], 128;"
        " mov.u32 $0, 0; }",
        "=r,r,l,l,r,r,r,l,l,l,l,r,r,r,r",
        [made, to, base, size0, size1, size4, stride1, stride2, stride3, stride4, box1, box2, box3, box4],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def copy_box(to, tensor_map, barrier, at0, at1, at4, BYTES: gl.constexpr, pred):
    """Start copying a map's box, by one thread of the warp where pred; the barrier awaits its bytes."""
    gl.inline_asm_elementwise(
        "{ .reg .pred one, any; elect.sync _|one, -1; setp.ne.u32 any, $8, 0; and.pred one, one, any;"
        " @one mbarrier.arrive.expect_tx.shared::cta.b64 _, [$3], $7;"
        " @one cp.async.bulk.tensor.5d.shared::cta.global.mbarrier::complete_tx::bytes"
        " [$1], [$2, {$4, $5, $9, $9, $6}], [$3]; mov.u32 $0, 0; }",
        "=r,r,l,r,r,r,r,r,r,r",
        [to, tensor_map, barrier, at0, at1, at4, BYTES, pred, 0],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def store16(address, v0, v1, v2, v3, pred):
    """Store four registers where pred, at a global address of 64 bits."""
    gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.u32 p, $6, 0; @p st.global.v4.b32 [$1], {$2, $3, $4, $5}; mov.u32 $0, 0; }",
        "=r,l,r,r,r,r,r",
        [address, v0, v1, v2, v3, pred],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def store8(address, v0, v1, pred):
    """Store two registers where pred, at a global address of 64 bits."""
    gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.u32 p, $4, 0; @p st.global.v2.b32 [$1], {$2, $3}; mov.u32 $0, 0; }",
        "=r,l,r,r,r",
        [address, v0, v1, pred],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def bf16_pair(low, high):
    """Two fp32 numbers rounded to bf16, in one register."""
    return gl.inline_asm_elementwise(
        "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [low, high], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def low_bytes(v0, v1, v2, v3):
    """The lowest bytes of four registers in one."""
    return gl.inline_asm_elementwise(
        "{ .reg .b32 x, y; prmt.b32 x, $1, $2, 0x0040; prmt.b32 y, $3, $4, 0x0040; prmt.b32 $0, x, y, 0x5410; }",
        "=r,r,r,r,r",
        [v0, v1, v2, v3],
        dtype=gl.int32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def maximum_of_four_warps(value, slots, warp, thread):
    """The largest of non-negative fp32 values among warps 0, 1, 4, 5 or 2, 3, 6, 7; slots: 32 bytes of shared memory.

    Who comes again before the others have read must bring other slots.
    """
    return gl.inline_asm_elementwise(
        "{ .reg .b32 best, other, at, name, lane; .reg .pred first;"
        " redux.sync.max.s32 best, $1, -1;"
        " and.b32 lane, $4, 31; setp.eq.u32 first, lane, 0;"
        " shl.b32 at, $3, 2; add.u32 at, at, $2; @first st.shared.b32 [at], best;"
        " shr.u32 name, $3, 1; and.b32 name, name, 1;"
        " shl.b32 at, name, 3; add.u32 at, at, $2; add.u32 name, name, 1; bar.sync name, 128;"
        " ld.shared.b32 best, [at];"
        " ld.shared.b32 other, [at + 4]; max.s32 best, best, other;"
        " ld.shared.b32 other, [at + 16]; max.s32 best, best, other;"
        " ld.shared.b32 other, [at + 20]; max.s32 $0, best, other; }",
        "=r,r,r,r,r",
        [value, slots, warp, thread],
        dtype=gl.float32,
        is_pure=False,
        pack=1,
    )
