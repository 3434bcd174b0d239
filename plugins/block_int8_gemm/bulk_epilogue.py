"""What bulk_kernel.py does with a tile's products: bias, then GELU and quantization, or gate and residual, or nothing.

For one thread, as there. A thread has 2 × 32 pieces of a row: eight neighbouring columns in each half of 64.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from plugins.block_int8_gemm import ptx
from plugins.block_int8_gemm.gluon_parts import gelu_tanh
from plugins.gluon_ptx import load16
from plugins.triton_math import MAGIC


@gluon.jit
def _place(warp, thread, row_tile, column_tile):
    """First row and column of a thread's pieces."""
    lane = thread % 32
    row = row_tile * 128 + warp // 4 * 64 + lane // 4
    return row, column_tile * 256 + warp % 4 // 2 * 128 + warp % 2 * 32 + lane % 4 * 8


@gluon.jit
def _piece(acc, HALF: gl.constexpr, M16: gl.constexpr, UPPER: gl.constexpr):
    """Eight neighbouring columns of row 16·M16 + 8·UPPER + lane/4."""
    found = ()
    for s in gl.static_range(4):
        found += (acc[(HALF * 4 + s) * 16 + M16 * 4 + UPPER * 2], acc[(HALF * 4 + s) * 16 + M16 * 4 + UPPER * 2 + 1])
    return found


@gluon.jit
def _eight(pointer, columns, inside):
    """Eight neighbouring fp32 numbers of a vector, zeros where not inside."""
    address = pointer.to(gl.int64) + columns.to(gl.int64) * 4
    low, high = load16(address, inside), load16(address + 16, inside)
    found = ()
    for j in gl.static_range(4):
        found += (low[j].to(gl.float32, bitcast=True),)
    for j in gl.static_range(4):
        found += (high[j].to(gl.float32, bitcast=True),)
    return found


@gluon.jit
def _stored(y, address, inside):
    """Eight values as bf16."""
    ptx.store16(
        address,
        ptx.bf16_pair(y[0], y[1]),
        ptx.bf16_pair(y[2], y[3]),
        ptx.bf16_pair(y[4], y[5]),
        ptx.bf16_pair(y[6], y[7]),
        inside,
    )


@gluon.jit
def _plus_residual(y, gate, old):
    """residual + gate·y; old: its four registers of bf16 pairs."""
    new = ()
    for j in gl.static_range(4):
        low = (old[j] << 16).to(gl.float32, bitcast=True)
        high = (old[j] & -65536).to(gl.float32, bitcast=True)
        new += (low + gate[2 * j] * y[2 * j], high + gate[2 * j + 1] * y[2 * j + 1])
    return new


@gluon.jit
def residuals(residual_ptr, warp, thread, row_tile, column_tile, M, N):
    """A thread's sixteen pieces of the residual, four registers of bf16 pairs each, asked for at once."""
    first_row, columns = _place(warp, thread, row_tile, column_tile)
    found = ()
    for half in gl.static_range(2):
        for eight in gl.static_range(8):
            row = first_row + eight * 8
            at = columns + half * 64
            inside = ((row < M) & (at < N)).to(gl.int32)
            found += (load16(residual_ptr.to(gl.int64) + (row.to(gl.int64) * N + at) * 2, inside),)
    return found


@gluon.jit
def _bf16(acc, old, bias_ptr, gate_ptr, y_ptr, first_row, columns, M, N, EPILOGUE, UNIT):
    """Store y, or residual + gate·y."""
    for half in gl.static_range(2):
        at = columns + half * 64
        inside_n = (at < N).to(gl.int32)
        bias = _eight(bias_ptr, at, inside_n)
        if EPILOGUE == "residual":
            gate = _eight(gate_ptr, at, inside_n)
        for m in gl.static_range(4):
            for upper in gl.static_range(2):
                row = first_row + m * 16 + upper * 8
                piece = _piece(acc, half, m, upper)
                y = ()
                for j in gl.static_range(8):
                    y += (piece[j] * UNIT + bias[j],)
                if EPILOGUE == "residual":
                    y = _plus_residual(y, gate, old[half * 8 + m * 2 + upper])
                inside = ((row < M) & (at < N)).to(gl.int32)
                _stored(y, y_ptr.to(gl.int64) + (row.to(gl.int64) * N + at) * 2, inside)


@gluon.jit
def _activated(acc, bias_ptr, first_row, columns, M, N, UNIT):
    """gelu_tanh(y), zero outside the tensor, as 16 pieces; and the thread's largest magnitude."""
    new = ()
    largest = gl.full([256], 0.0, gl.float32, first_row.type.layout)
    for half in gl.static_range(2):
        at = columns + half * 64
        bias = _eight(bias_ptr, at, (at < N).to(gl.int32))
        for m in gl.static_range(4):
            for upper in gl.static_range(2):
                inside = (first_row + m * 16 + upper * 8 < M) & (at < N)
                piece = _piece(acc, half, m, upper)
                for j in gl.static_range(8):
                    y = gl.where(inside, gelu_tanh(piece[j] * UNIT + bias[j]), 0.0)
                    largest = gl.maximum(largest, gl.abs(y))
                    new += (y,)
    return new, largest


@gluon.jit
def _rounded(y, inverse):
    """The int8 of y in a register's low byte; only y = amax would become 128."""
    return (gl.minimum(y * inverse, 127.0) + MAGIC).to(gl.int32, bitcast=True)


@gluon.jit
def _quantized(y, largest, y_ptr, first_row, columns, M, N):
    """Store int8 values of a quantization block whose largest magnitude is this."""
    inverse = 128.0 / largest
    for half in gl.static_range(2):
        at = columns + half * 64
        for m in gl.static_range(4):
            for upper in gl.static_range(2):
                row = first_row + m * 16 + upper * 8
                q = ()
                for j in gl.static_range(8):
                    q += (_rounded(y[((half * 4 + m) * 2 + upper) * 8 + j], inverse),)
                ptx.store8(
                    y_ptr.to(gl.int64) + row.to(gl.int64) * N + at,
                    ptx.low_bytes(q[0], q[1], q[2], q[3]),
                    ptx.low_bytes(q[4], q[5], q[6], q[7]),
                    ((row < M) & (at < N)).to(gl.int32),
                )


@gluon.jit
def finish(
    acc,
    old,
    bias_ptr,
    gate_ptr,
    y_ptr,
    y_scale_ptr,
    slots,
    warp,
    thread,
    row_tile,
    column_tile,
    M,
    N,
    EPILOGUE: gl.constexpr,
    EXACT: gl.constexpr,
):
    """The tile's outputs; old: its residuals; slots: 32 bytes of shared memory, not those of the tile before."""
    UNIT: gl.constexpr = 1.0 if EXACT else 2.0**53
    first_row, columns = _place(warp, thread, row_tile, column_tile)
    if EPILOGUE == "gelu":
        y, largest = _activated(acc, bias_ptr, first_row, columns, M, N, UNIT)
        largest = gl.maximum(ptx.maximum_of_four_warps(largest, slots, warp, thread), 1e-8)
        _quantized(y, largest, y_ptr, first_row, columns, M, N)
        n_blocks = gl.cdiv(N, 128)
        block = column_tile * 2 + warp % 4 // 2
        one = (thread % 32 == 0) & (warp // 4 == 0) & (warp % 2 == 0) & (block < n_blocks)
        gl.store(y_scale_ptr + row_tile * n_blocks + block + thread % 32, largest / 128.0, mask=one)
    else:
        _bf16(acc, old, bias_ptr, gate_ptr, y_ptr, first_row, columns, M, N, EPILOGUE, UNIT)
