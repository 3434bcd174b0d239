"""LayerNorm + modulation + block-128 quantization for sm_90 in Gluon: x crosses the memory bus once.

A program keeps whole rows in shared memory, so that their statistics are its own. What it lacks are the largest
magnitudes of the 128×128 blocks, which the programs of 128 rows make together: by atomic maxima of their bits, which
are exact in any order. Programs number themselves by a ticket: who waits, waits for programs that have started or come
next. Seven SMs hold the 32 programs of 128 rows at once at D = 5,120; with fewer the kernel would never end.

Bound by instructions as much as by memory: on the H200 0.38 ms without the wait and 0.41 ms with it at L = 75,600,
D = 5,120, where 1.16 GB at the rate of a copy take 0.27.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

from plugins.triton_math import MAGIC

STRIDE = gl.constexpr(32)  # int32 between two counters: a line each, for what polls one must not delay another
barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # the second until Triton 3.7 is the oldest we take


@gluon.jit
def _halves(x):
    """The two bf16 of each int32, as fp32: the lower half is the even column."""
    return (x << 16).to(gl.float32, bitcast=True), (x & -65536).to(gl.float32, bitcast=True)


@gluon.jit
def _columns(pointer, start, CHUNK: gl.constexpr, LAYOUT: gl.constexpr):
    """fp32 of CHUNK even and of CHUNK odd columns from column 2·start, each [1, CHUNK]."""
    LINE: gl.constexpr = gl.BlockedLayout([8], [32], [gl.num_warps()], [0])
    values = gl.load(pointer + 2 * start + gl.arange(0, 2 * CHUNK, LINE))
    even, odd = gl.split(gl.reshape(values, [CHUNK, 2]))
    ROW: gl.constexpr = gl.SliceLayout(0, LAYOUT)
    return gl.convert_layout(even, ROW)[None, :], gl.convert_layout(odd, ROW)[None, :]


@gluon.jit
def _modulated(x, rstd, shift, weight, bias, start, CHUNK: gl.constexpr, LAYOUT: gl.constexpr):
    """(x·rstd + shift)·weight + bias of a chunk's even and odd columns.

    ``shift`` is rounded once: a row's zero is off by 2⁻²⁴·|mean|/σ, which bf16 rows keep below 2⁻¹⁵ unless σ nears the
    1e-3 of eps. One that is constant, at 100 say, gives 1.7e-3 where the reference has 0.
    """
    w0, w1 = _columns(weight, start, CHUNK, LAYOUT)
    b0, b1 = _columns(bias, start, CHUNK, LAYOUT)
    even, odd = _halves(x)
    return (even * rstd + shift) * w0 + b0, (odd * rstd + shift) * w1 + b1


@gluon.jit
def _statistics(x, first, D: gl.constexpr, LAYOUT: gl.constexpr):
    """Mean of x − first and 1/σ of each row, first being the row's first column.

    That lies within √D standard deviations of the mean, so that the cancellation in E[x²] − E[x]² costs at most
    D·2⁻²⁴ of the variance, however far the row is from zero.
    """
    CHUNKS: gl.constexpr = x.shape[0]
    ROWS: gl.constexpr = x.shape[1]
    CHUNK: gl.constexpr = x.shape[2]
    total = gl.zeros([ROWS, CHUNK], gl.float32, LAYOUT)
    squares = gl.zeros([ROWS, CHUNK], gl.float32, LAYOUT)
    for c in gl.static_range(CHUNKS):
        even, odd = _halves(x.index(c).load(LAYOUT))
        even -= first
        odd -= first
        total += even + odd
        squares += even * even
        squares += odd * odd
    mean = gl.sum(total, 1) * (1.0 / D)
    variance = gl.sum(squares, 1) * (1.0 / D) - mean * mean
    return mean[:, None], gl.rsqrt(variance + 1e-6)[:, None]


@gluon.jit
def _quantized(even, odd, largest, CHUNK: gl.constexpr, BLOCKS: gl.constexpr, LAYOUT: gl.constexpr):
    """Bytes of even and odd columns side by side, int16 [ROWS, CHUNK], for BLOCKS blocks' largest magnitudes."""
    inverse = gl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=r,r", [gl.maximum(largest, 1e-8)], dtype=gl.float32, is_pure=True, pack=1
    )
    scale = gl.zeros([BLOCKS, 64], gl.float32, _blocks_layout(gl.num_warps())) + (128.0 * inverse)[:, None]
    scale = gl.convert_layout(gl.reshape(scale, [CHUNK]), gl.SliceLayout(0, LAYOUT))[None, :]
    # The least is −128·(1 + 2⁻²³), which rounds to −128.
    even = (gl.minimum(even * scale, 127.0) + MAGIC).to(gl.int32, bitcast=True)
    odd = (gl.minimum(odd * scale, 127.0) + MAGIC).to(gl.int32, bitcast=True)
    both = gl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, 0x0040;", "=r,r,r", [even, odd], dtype=gl.int32, is_pure=True, pack=1
    )
    return both.to(gl.int16)


@gluon.constexpr_function
def _blocks_layout(warps):
    """Of [blocks, 64 int32]: what CHUNK int32 in a row, four a thread, become when they are cut into blocks."""
    return gl.BlockedLayout([1, 4], [2, 16], [warps, 1], [1, 0])


@gluon.jit
def clear_counters(counters, COUNT, BLOCK: gl.constexpr):
    """counters int32 [COUNT] = 0."""
    i = gl.program_id(0) * BLOCK + gl.arange(0, BLOCK, gl.BlockedLayout([4], [32], [gl.num_warps()], [0]))
    gl.store(counters + i, gl.zeros_like(i), mask=i < COUNT)


@gluon.jit
def layer_norm_quantize_hopper(
    x_ptr, weight_ptr, bias_ptr, y_ptr, y_scale_ptr, counters, L, D: gl.constexpr, ROWS: gl.constexpr
):
    """ROWS rows of the quantized result. ``counters``, int32 and zero: STRIDE for the ticket, STRIDE for each of the
    ⌈L/128⌉ row blocks' count of arrived programs, then fp32 bits [⌈L/128⌉, D/128] of the largest magnitudes.
    """
    PEERS: gl.constexpr = 128 // ROWS
    WARPS: gl.constexpr = gl.num_warps()
    CHUNK: gl.constexpr = 128 * WARPS  # in pairs of columns
    CHUNKS: gl.constexpr = D // (2 * CHUNK)
    BLOCKS: gl.constexpr = CHUNK // 64
    LAYOUT: gl.constexpr = gl.BlockedLayout([ROWS, 4], [1, 32], [1, WARPS], [1, 0])
    COPY: gl.constexpr = gl.BlockedLayout([1, 4], [1, 32], [WARPS, 1], [1, 0])
    x = gl.allocate_shared_memory(gl.int32, [CHUNKS, ROWS, CHUNK], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    ticket = gl.atomic_add(counters, 1, sem="relaxed", scope="gpu")
    row_block = ticket // PEERS
    pairs = x_ptr.to(gl.pointer_type(gl.int32))
    # Rows past the last are the last one again: the same bytes to the same place, and no masks.
    copied = gl.minimum(ticket * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, COPY)), L - 1).to(gl.int64)
    source = pairs + copied[:, None] * (D // 2) + gl.arange(0, CHUNK, gl.SliceLayout(0, COPY))[None, :]
    for c in gl.static_range(CHUNKS):
        async_copy.async_copy_global_to_shared(x.index(c), source + c * CHUNK)
    async_copy.commit_group()
    rows = gl.minimum(ticket * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT)), L - 1).to(gl.int64)
    first, _ = _halves(gl.load(pairs + rows * (D // 2)))
    first = first[:, None]
    async_copy.wait_group(0)
    barrier()
    mean, rstd = _statistics(x, first, D, LAYOUT)
    shift = -(first + mean) * rstd

    arrived = counters + STRIDE * (1 + row_block)
    amax = counters + STRIDE * (1 + gl.cdiv(L, 128)) + row_block * (D // 128)
    for c in gl.static_range(CHUNKS):
        even, odd = _modulated(x.index(c).load(LAYOUT), rstd, shift, weight_ptr, bias_ptr, c * CHUNK, CHUNK, LAYOUT)
        largest = gl.max(gl.maximum(gl.abs(even), gl.abs(odd)), 0)
        largest = gl.max(gl.reshape(largest, [BLOCKS, 64]), 1)
        block = c * BLOCKS + gl.arange(0, BLOCKS, largest.type.layout)
        gl.atomic_max(amax + block, largest.to(gl.int32, bitcast=True), sem="relaxed", scope="gpu")
    barrier()  # every thread's maxima before the one thread that says so
    gl.atomic_add(arrived, 1, sem="release", scope="gpu")
    peers = gl.minimum(PEERS, gl.cdiv(L - row_block * 128, ROWS))
    while gl.atomic_add(arrived, 0, sem="acquire", scope="gpu") < peers:
        pass
    barrier()

    y = y_ptr.to(gl.pointer_type(gl.int16)) + rows[:, None] * (D // 2)
    y += gl.arange(0, CHUNK, gl.SliceLayout(0, LAYOUT))[None, :]
    block = gl.arange(0, BLOCKS, gl.SliceLayout(1, _blocks_layout(WARPS)))
    for c in gl.static_range(CHUNKS):
        even, odd = _modulated(x.index(c).load(LAYOUT), rstd, shift, weight_ptr, bias_ptr, c * CHUNK, CHUNK, LAYOUT)
        largest = gl.load(amax + c * BLOCKS + block, cache_modifier=".cg").to(gl.float32, bitcast=True)
        gl.store(y + c * CHUNK, _quantized(even, odd, largest, CHUNK, BLOCKS, LAYOUT))
    if ticket % PEERS == 0:
        for c in gl.static_range(CHUNKS):
            largest = gl.load(amax + c * BLOCKS + block, cache_modifier=".cg").to(gl.float32, bitcast=True)
            scales = y_scale_ptr + row_block * (D // 128) + c * BLOCKS
            gl.store(scales + block, gl.maximum(largest, 1e-8) / 128.0)
