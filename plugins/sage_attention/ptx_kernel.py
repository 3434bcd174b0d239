"""PTX of one thread, for kernels whose warps go their own ways: Gluon's forms act for the whole program.

Values are scalars, and each thread has its own: arrays of registers are tuples of them. What is not pure keeps the
order in which it is written. Shared memory is addressed in bytes.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from plugins.gluon_ptx import shared_base


@gluon.jit
def shared_space(BYTES: gl.constexpr):
    """BYTES of shared memory and their address. Triton names its shared memory only where it writes some itself."""
    ROWS: gl.constexpr = (BYTES + 127) // 128
    memory = gl.allocate_shared_memory(gl.int8, [ROWS + 1, 128], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    memory.index(ROWS).store(gl.zeros([128], gl.int8, gl.BlockedLayout([1], [32], [4], [0])))
    return memory, shared_base()


@gluon.jit
def thread_number():
    """The thread's number in its program."""
    return gl.inline_asm_elementwise("mov.u32 $0, %tid.x; // $1", "=r,r", [0], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def thread_number_here():
    """thread_number, read where this stands: nothing computed from it is held from before."""
    return gl.inline_asm_elementwise("mov.u32 $0, %tid.x; // $1", "=r,r", [0], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def program_numbers():
    """gl.program_id(0), gl.program_id(1), read where this stands: nothing computed from them is held from before."""
    return gl.inline_asm_elementwise(
        "mov.u32 $0, %ctaid.x; mov.u32 $1, %ctaid.y; // $2",
        "=r,=r,r",
        [0],
        dtype=(gl.int32, gl.int32),
        is_pure=False,
        pack=1,
    )


@gluon.jit
def load_four(address, OFFSET: gl.constexpr = 0):
    """Four words of shared memory; an offset in the instruction takes no register."""
    return gl.inline_asm_elementwise(
        "ld.shared.v4.b32 {$0, $1, $2, $3}, [$4+$5];",
        "=r,=r,=r,=r,r,n",
        [address, OFFSET],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32),
        is_pure=False,
        pack=1,
    )


@gluon.jit
def load_transposed(address, OFFSET: gl.constexpr):
    """ldmatrix: four 8×8 matrices of 16-bit numbers, transposed; a thread gives the address of one of their 32 rows."""
    return gl.inline_asm_elementwise(
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {$0, $1, $2, $3}, [$4+$5];",
        "=r,=r,=r,=r,r,n",
        [address, OFFSET],
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32),
        is_pure=False,
        pack=1,
    )


@gluon.jit
def store_four(address, a, b, c, d):
    """Four words to shared memory."""
    gl.inline_asm_elementwise(
        "st.shared.v4.b32 [$1], {$2, $3, $4, $5}; mov.u32 $0, 0;",
        "=r,r,r,r,r,r",
        [address, a, b, c, d],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def copy_bytes(address, pointer, SIZE: gl.constexpr):
    """Start the copy of SIZE bytes from global to shared memory by the program's 128 threads."""
    offset = thread_number_here() * 16
    address += offset
    pointer += offset
    for _ in gl.static_range(SIZE // 8192):
        gl.inline_asm_elementwise(
            "cp.async.cg.shared.global [$1], [$2], 16; cp.async.cg.shared.global [$1+2048], [$2+2048], 16;"
            " cp.async.cg.shared.global [$1+4096], [$2+4096], 16; cp.async.cg.shared.global [$1+6144], [$2+6144], 16;"
            " mov.u32 $0, 0;",
            "=r,r,l",
            [address, pointer],
            dtype=gl.int32,
            is_pure=False,
            pack=1,
        )
        address += 8192
        pointer += 8192


@gluon.jit
def copy_or_clear(address, TO: gl.constexpr, pointer, FROM: gl.constexpr, size):
    """Start the copy of 16 bytes from global to shared memory, or with size 0 of as many zeros; at constant offsets."""
    gl.inline_asm_elementwise(
        "cp.async.cg.shared.global [$1+$4], [$2+$5], 16, $3; mov.u32 $0, 0;",
        "=r,r,l,r,n,n",
        [address, pointer, size, TO, FROM],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def or_lowest(s, key, left):
    """s where key < left, else negative infinity's bits. Not pure: a compiler would do it for every block."""
    return gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.lt.s32 p, $2, $3; selp.b32 $0, $1, 0xff800000, p; }",
        "=r,r,r,r",
        [s, key, left],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def any_of_program(flag):
    """1 in every thread of a program if flag is not 0 in one of them, else 0; all threads have come here."""
    return gl.inline_asm_elementwise(
        "{ .reg .pred p, q; setp.ne.s32 p, $1, 0; bar.red.or.pred q, 0, p; selp.b32 $0, 1, 0, q; }",
        "=r,r",
        [flag],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def commit():
    """What was copied since the last one is a group."""
    gl.inline_asm_elementwise(
        "cp.async.commit_group; mov.u32 $0, 0; // $1", "=r,r", [0], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def arrived(LEFT: gl.constexpr):
    """Wait until at most LEFT (0 or 1) groups of copies of this thread are under way, then for all threads."""
    if LEFT == 0:
        gl.inline_asm_elementwise(
            "cp.async.wait_group 0; bar.sync 0; mov.u32 $0, 0; // $1",
            "=r,r",
            [0],
            dtype=gl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        gl.inline_asm_elementwise(
            "cp.async.wait_group 1; bar.sync 0; mov.u32 $0, 0; // $1",
            "=r,r",
            [0],
            dtype=gl.int32,
            is_pure=False,
            pack=1,
        )


@gluon.jit
def store_word(address, OFFSET: gl.constexpr, x):
    """A word to shared memory."""
    gl.inline_asm_elementwise(
        "st.shared.b32 [$1+$2], $3; mov.u32 $0, 0;",
        "=r,r,n,r",
        [address, OFFSET, x],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def store_half(address, OFFSET: gl.constexpr, x):
    """The lower half of a word to shared memory."""
    gl.inline_asm_elementwise(
        "{ .reg .b16 l, h; mov.b32 {l, h}, $3; st.shared.b16 [$1+$2], l; mov.u32 $0, 0; }",
        "=r,r,n,r",
        [address, OFFSET, x],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def store_global(address, a, b, c, d, flag):
    """16 bytes to a global address of 64 bits, if flag is not 0."""
    gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $6, 0; @p st.global.v4.b32 [$1], {$2, $3, $4, $5}; mov.u32 $0, 0; }",
        "=r,l,r,r,r,r,r",
        [address, a, b, c, d, flag],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def meet():
    """All threads of the program have come here."""
    gl.inline_asm_elementwise("bar.sync 0; mov.u32 $0, 0; // $1", "=r,r", [0], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def in_order():
    """No load of shared memory moves over this place: ptxas would load far ahead of use, and spill for it."""
    gl.inline_asm_elementwise(
        "bar.warp.sync -1; mov.u32 $0, 0; // $1", "=r,r", [0], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def any_of_warp(flag):
    """1 in every thread of a warp if flag is not 0 in one of them, else 0."""
    return gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $1, 0; vote.sync.any.pred p, p, -1; selp.b32 $0, 1, 0, p; }",
        "=r,r",
        [flag],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def from_lane(x, MASK: gl.constexpr):
    """fp32 x of the thread whose number in the warp differs in MASK (1, 2, 4, 8 or 16)."""
    return gl.inline_asm_elementwise(
        "shfl.sync.bfly.b32 $0, $1, $2, 31, -1;", "=f,f,n", [x, MASK], dtype=gl.float32, is_pure=False, pack=1
    )


@gluon.jit
def exp2(x):
    """2^x, 2 ulp; denormals are zero."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def multiply_add(a, b, c):
    """a·b + c, rounded once."""
    return gl.inline_asm_elementwise(
        "fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f", [a, b, c], dtype=gl.float32, is_pure=True, pack=1
    )
