"""What follows flash_attention_mma's loop: its registers as tiles, the linear branch, the output tile."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from plugins.sage_attention import ptx_kernel as ptx
from plugins.sage_attention.primitives_kernel import LOG2E as _LOG2E
from plugins.triton_math import MAGIC

LOG2E = gl.constexpr(_LOG2E.value)
MMA = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [4, 1], [16, 8]))
COLUMNS = gl.constexpr(16)  # of a part of the accumulator
DEPTH = gl.constexpr(16)  # channels of the linear branch at a time: with more, registers spill
FEATURES = gl.constexpr(gl.DotOperandLayout(0, MMA.value, 4))


@gluon.jit
def _register(x):
    """A scalar of each thread as a tensor [128] of them."""
    return gl.full([128], x, gl.float32, gl.BlockedLayout([1], [32], [4], [0]))


@gluon.jit
def _pair(acc, at: gl.constexpr, scales):
    """Two neighbours in a row, [128,2]."""
    scale = scales[at // 2 % 4]
    return gl.join(_register(acc[at] * scale), _register(acc[at + 1] * scale))


@gluon.jit
def _block(acc, at: gl.constexpr, scales):
    """Rows r and r + 8, [128,2,2]: of a pair, 8 rows."""
    return gl.join(_pair(acc, at, scales), _pair(acc, at + 2, scales))


@gluon.jit
def as_parts(acc, total):
    """The accumulator's registers, each row divided by its sum, as tiles [128,16] in MMA. ``total``: of each thread."""
    inverse = ()
    for row in gl.static_range(4):
        sums = total[row] + ptx.from_lane(total[row], 1)
        inverse += (1.0 / (sums + ptx.from_lane(sums, 2)),)
    parts = ()
    for part in gl.static_range(8):
        blocks = ()
        for i in gl.static_range(4):  # 8 columns, 16 rows
            blocks += (_block(acc, part * 16 + i // 2 * 8 + i % 2 * 4, inverse),)
        x = gl.join(gl.join(blocks[0], blocks[1]), gl.join(blocks[2], blocks[3]))
        x = x.reshape([4, 8, 4, 2, 2, 2, 2]).permute((0, 5, 4, 1, 6, 2, 3)).reshape([128, COLUMNS])
        parts += (gl.convert_layout(x, MMA),)
    return parts


@gluon.jit
def scaled_values(acc, v_scale, head):
    """The parts times the scales of their columns."""
    column = head * 128 + gl.arange(0, COLUMNS, gl.SliceLayout(0, MMA))
    parts = ()
    for part in gl.static_range(8):
        parts += (acc[part] * gl.load(v_scale + part * COLUMNS + column)[None, :],)
    return parts


@gluon.jit
def _features(q, rows, head, start, L, D: gl.constexpr):
    """fp32 [128,DEPTH]: channels start… of one head's queries, in the order of the linear branch's operand."""
    LAYOUT: gl.constexpr = FEATURES
    rows = rows + gl.arange(0, 128, gl.SliceLayout(1, LAYOUT))
    columns = head * 128 + start + gl.arange(0, DEPTH, gl.SliceLayout(0, LAYOUT))
    pointers = q + rows.to(gl.int64)[:, None] * D + columns[None, :]
    return gl.load(pointers, mask=(rows < L)[:, None], other=0.0).to(gl.float32)


@gluon.jit
def add_linear_branch(acc, q, kv_proj, z, bias, first_row, head, L, D: gl.constexpr):
    """acc + φ(q)·KV_proj / (1e-5 + φ(q)·z) + bias: flash_kernel.add_linear_branch; kv_proj is [H,column,channel]."""
    A: gl.constexpr = FEATURES
    B: gl.constexpr = gl.DotOperandLayout(1, MMA, 4)
    top = gl.full([128], float("-inf"), gl.float32, gl.SliceLayout(1, A))
    for start in range(0, 128, DEPTH):
        top = gl.maximum(top, gl.max(_features(q, first_row, head, start, L, D), 1))
    below = gl.zeros([128], gl.float32, gl.SliceLayout(1, A))
    for start in range(0, 128, DEPTH):
        x = _features(q, first_row, head, start, L, D)
        weights = 1e-5 + gl.load(z + head * 128 + start + gl.arange(0, DEPTH, gl.SliceLayout(0, A)))
        below += gl.sum(gl.exp2((x - top[:, None]) * LOG2E) * weights[None, :], 1)
    inverse = 1.0 / below
    column = gl.arange(0, COLUMNS, gl.SliceLayout(0, MMA))
    parts = ()
    channel, row = gl.arange(0, DEPTH, gl.SliceLayout(1, B)), gl.arange(0, COLUMNS, gl.SliceLayout(0, B))
    matrix = kv_proj + head * (128 * 128) + row[None, :] * 128 + channel[:, None]
    for part in gl.static_range(8):
        parts += (acc[part] + gl.load(bias + part * COLUMNS + column)[None, :],)
    for start in gl.static_range(0, 128, 4 * DEPTH):
        phi, sums = (), ()
        for i in gl.static_range(4):
            x = _features(q, first_row, head, start + i * DEPTH, L, D)
            phi += ((gl.exp2((x - top[:, None]) * LOG2E) * inverse[:, None]).to(gl.bfloat16),)
        for part in gl.static_range(8):
            tile = parts[part]
            for i in gl.static_range(4):
                tile = mma_v2(phi[i], gl.load(matrix + (part * (COLUMNS * 128) + i * DEPTH) + start), tile)
            sums += (tile,)
        parts = sums
    return parts


@gluon.jit
def store_output(o, o_scale, acc, q_block, head, L, D: gl.constexpr, QUANTIZE: gl.constexpr):
    """The rows of acc's parts that are of the L, to o: bf16, or with QUANTIZE int8 and the tile's scale."""
    rows = q_block * 128 + gl.arange(0, 128, gl.SliceLayout(1, MMA))
    real = (rows < L)[:, None]
    columns = head * 128 + gl.arange(0, COLUMNS, gl.SliceLayout(0, MMA))
    pointers = o + rows.to(gl.int64)[:, None] * D + columns[None, :]
    if QUANTIZE:
        top = gl.max(gl.abs(acc[0]), 1)
        for part in gl.static_range(1, 8):
            top = gl.maximum(top, gl.max(gl.abs(acc[part]), 1))
        amax = gl.maximum(gl.max(gl.where(rows < L, top, 0.0), 0), 1e-8)
        for part in gl.static_range(8):
            y = gl.minimum(gl.maximum(acc[part] * (128.0 / amax), -128.0), 127.0)
            y = (y + MAGIC).to(gl.int32, bitcast=True).to(gl.int8)
            gl.store(pointers + part * COLUMNS, y, mask=real)
        gl.store(o_scale + q_block * (D // 128) + head, amax / 128.0)
    else:
        for part in gl.static_range(8):
            gl.store(pointers + part * COLUMNS, acc[part].to(gl.bfloat16), mask=real)
