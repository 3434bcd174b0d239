"""W8A8 block-128 GEMM for sm_90 in Gluon: a TMA producer warp feeds two consumer warpgroups from a ring of stages.

Each consumer owns 128 of a tile's 256 rows, as two halves of 64: while one warpgroup turns its int32 products into
fp32 and scales them, the other's run on the tensor cores. A 256×128 tile reads 0.75 bytes of L2 for each of a 128×128
tile's; its 128×128 halves are the quantization blocks of the output. The grid is persistent.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from plugins.block_int8_gemm.gluon_parts import gelu_tanh, tile_of
from plugins.triton_math import MAGIC


@gluon.jit
def _produce(x, weight, a_ring, b_ring, full, empty, M, N, K, group_m):
    """Keep the ring of [256,128] and [128,128] tiles full."""
    STAGES: gl.constexpr = full.shape[0]
    k_blocks, n_tiles = gl.cdiv(K, 128), gl.cdiv(N, 128)
    a_rows = tma.make_tensor_descriptor(x, [M, K], [K, 1], [256, 128], a_ring.type.layout)
    b_rows = tma.make_tensor_descriptor(weight, [N, K], [K, 1], [128, 128], b_ring.type.layout)
    m_tiles = gl.cdiv(M, 256)
    step = 0
    for tile in range(gl.program_id(0), m_tiles * n_tiles, gl.num_programs(0)):
        row, column = tile_of(tile, m_tiles, n_tiles, group_m)
        for k in range(k_blocks):
            stage = step % STAGES
            ready = full.index(stage)
            mbarrier.wait(empty.index(stage), ((step // STAGES) & 1) ^ 1)
            mbarrier.expect(ready, (256 + 128) * 128)
            tma.async_copy_global_to_shared(a_rows, [row * 256, k * 128], ready, a_ring.index(stage))
            tma.async_copy_global_to_shared(b_rows, [column * 128, k * 128], ready, b_ring.index(stage))
            step += 1


@gluon.jit
def _multiply(a, b, acc, scale, LAYOUT: gl.constexpr):
    """acc + scale·(a·b) of int8 a [64,128] and b [128,128], the products exact in int32."""
    zeros = gl.zeros([64, 128], gl.int32, LAYOUT)
    product = warpgroup_mma(a, b, zeros, use_acc=False, is_async=True)
    product = warpgroup_mma_wait(0, deps=[product])
    return acc + product.to(gl.float32) * scale


@gluon.jit
def _store(y, value, first, column, M, N):
    """Store [64,128] at row ``first`` and column tile ``column``, 16 bytes a thread where a row's columns allow it."""
    WIDTH: gl.constexpr = 128 // value.dtype.primitive_bitwidth
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, WIDTH], [32 * WIDTH // 128, 128 // WIDTH], [4, 1], [1, 0])
    value = gl.convert_layout(value, LAYOUT)
    rows = first + gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))
    columns = column * 128 + gl.arange(0, 128, gl.SliceLayout(0, LAYOUT))
    offsets = rows.to(gl.int64)[:, None] * N + columns[None, :]
    gl.store(y + offsets, value, mask=(rows < M)[:, None] & (columns < N)[None, :])


@gluon.jit
def _residual(acc, gate, residual, first, columns, M, N, LAYOUT: gl.constexpr):
    """residual + gate·acc, bf16 [64,128]."""
    rows = first + gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))
    offsets = rows.to(gl.int64)[:, None] * N + columns[None, :]
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    old = gl.load(residual + offsets, mask=inside, other=0.0).to(gl.float32)
    return (old + gate[None, :] * acc).to(gl.bfloat16)


@gluon.jit
def _gelu_masked(acc, first, columns, M, N, LAYOUT: gl.constexpr):
    """gelu_tanh(acc), zero outside the tensor."""
    rows = first + gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))
    return gl.where((rows < M)[:, None] & (columns < N)[None, :], gelu_tanh(acc), 0.0)


@gluon.jit
def _quantized(y, amax):
    """semantics.md's int8 of a block whose largest magnitude is amax."""
    q = gl.minimum(gl.maximum(y * (128.0 / amax), -128.0), 127.0)
    return (q + MAGIC).to(gl.int32, bitcast=True).to(gl.int8)


@gluon.jit
def _consume(
    GROUP: gl.constexpr,
    x_scale,
    weight_scale,
    bias,
    gate,
    residual,
    y,
    y_scale,
    a_ring,
    b_ring,
    full,
    empty,
    M,
    N,
    K,
    group_m,
    EPILOGUE: gl.constexpr,
):
    """Rows 128·GROUP… of every tile, then the epilogue."""
    STAGES: gl.constexpr = full.shape[0]
    k_blocks, n_tiles = gl.cdiv(K, 128), gl.cdiv(N, 128)
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32])
    m_tiles = gl.cdiv(M, 256)
    step = 0
    for tile in range(gl.program_id(0), m_tiles * n_tiles, gl.num_programs(0)):
        row, column = tile_of(tile, m_tiles, n_tiles, group_m)
        row_block = row * 2 + GROUP
        x_scales = x_scale + gl.minimum(row_block, gl.cdiv(M, 128) - 1) * k_blocks  # the last tile may have one block
        w_scales = weight_scale + column * k_blocks
        upper = gl.zeros([64, 128], gl.float32, LAYOUT)
        lower = gl.zeros([64, 128], gl.float32, LAYOUT)
        scale = gl.load(x_scales) * gl.load(w_scales)
        for k in range(k_blocks):
            following = gl.minimum(k + 1, k_blocks - 1)
            next_x, next_w = gl.load(x_scales + following), gl.load(w_scales + following)
            stage = step % STAGES
            mbarrier.wait(full.index(stage), (step // STAGES) & 1)
            a, b = a_ring.index(stage), b_ring.index(stage).permute((1, 0))
            upper = _multiply(a.slice(GROUP * 128, 64, 0), b, upper, scale, LAYOUT)
            zeros = gl.zeros([64, 128], gl.int32, LAYOUT)
            product = warpgroup_mma(a.slice(GROUP * 128 + 64, 64, 0), b, zeros, use_acc=False, is_async=True)
            product = warpgroup_mma_wait(0, deps=[product])
            mbarrier.arrive(empty.index(stage), count=1)  # before the conversion: the producer may refill
            lower += product.to(gl.float32) * scale
            scale = next_x * next_w
            step += 1
        columns = column * 128 + gl.arange(0, 128, gl.SliceLayout(0, LAYOUT))
        offset = gl.load(bias + columns, mask=columns < N, other=0.0)[None, :]
        first = row_block * 128
        upper += offset
        lower += offset
        if EPILOGUE == "gelu":
            upper = _gelu_masked(upper, first, columns, M, N, LAYOUT)
            lower = _gelu_masked(lower, first + 64, columns, M, N, LAYOUT)
            amax = gl.maximum(gl.max(gl.max(gl.maximum(gl.abs(upper), gl.abs(lower)), 1), 0), 1e-8)
            _store(y, _quantized(upper, amax), first, column, M, N)
            _store(y, _quantized(lower, amax), first + 64, column, M, N)
            if first < M:
                gl.store(y_scale + row_block * n_tiles + column, amax / 128.0)
        elif EPILOGUE == "residual":
            scales = gl.load(gate + columns, mask=columns < N, other=0.0)
            _store(y, _residual(upper, scales, residual, first, columns, M, N, LAYOUT), first, column, M, N)
            _store(y, _residual(lower, scales, residual, first + 64, columns, M, N, LAYOUT), first + 64, column, M, N)
        else:
            _store(y, upper.to(gl.bfloat16), first, column, M, N)
            _store(y, lower.to(gl.bfloat16), first + 64, column, M, N)


@gluon.jit
def block_int8_gemm_hopper(
    x_ptr,
    x_scale_ptr,
    weight_ptr,
    weight_scale_ptr,
    bias_ptr,
    gate_ptr,
    residual_ptr,
    y_ptr,
    y_scale_ptr,
    M,
    N,
    K,
    group_m,
    EPILOGUE: gl.constexpr,
    STAGES: gl.constexpr,
):
    """y by 256×128 tiles; EPILOGUE is "bias", "gelu" or "residual". Any number of programs, one an SM is best."""
    TILE: gl.constexpr = gl.NVMMASharedLayout(128, 8, 2)
    a_ring = gl.allocate_shared_memory(gl.int8, [STAGES, 256, 128], TILE)
    b_ring = gl.allocate_shared_memory(gl.int8, [STAGES, 128, 128], TILE)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    # Two consumers, then the producer; Triton's compiler reads no starred arguments.
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    0,
                    x_scale_ptr,
                    weight_scale_ptr,
                    bias_ptr,
                    gate_ptr,
                    residual_ptr,
                    y_ptr,
                    y_scale_ptr,
                    a_ring,
                    b_ring,
                    full,
                    empty,
                    M,
                    N,
                    K,
                    group_m,
                    EPILOGUE,
                ),
            ),
            (
                _consume,
                (
                    1,
                    x_scale_ptr,
                    weight_scale_ptr,
                    bias_ptr,
                    gate_ptr,
                    residual_ptr,
                    y_ptr,
                    y_scale_ptr,
                    a_ring,
                    b_ring,
                    full,
                    empty,
                    M,
                    N,
                    K,
                    group_m,
                    EPILOGUE,
                ),
            ),
            (_produce, (x_ptr, weight_ptr, a_ring, b_ring, full, empty, M, N, K, group_m)),
        ],
        [4, 1],
        [232, 40],
    )
