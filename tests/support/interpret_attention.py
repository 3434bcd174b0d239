"""The attention plans under Triton's interpreter against their references: one line a case, run by a test.

With the arithmetic of interpreter_numbers, for one SM of each kind: P·V in fp16 or fp8, added in fp32 or fp16. The
compiled code itself is not covered, and neither is sm_90's kernel.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from plugins.block_int8_quantize.reference import reference as quantize
from plugins.expr import symbol
from plugins.op import Op
from plugins.registry import OPS
from plugins.sage_attention import kernel as dense
from plugins.sage_attention import reference as dense_reference
from plugins.sage_attention.op import SAGE_ATTENTION
from plugins.sage_sla import kernel as sparse
from plugins.sage_sla import reference as sparse_reference
from plugins.sage_sla.op import SAGE_SLA
from tests.support import interpreter_numbers  # noqa: F401
from tests.support.interpret import run_plan, tell_kernels

#: Largest relative L2 error by (precision, SM): INT8 q·kᵀ, and P·V with 11, 4 or 8 bits of mantissa.
TOLERANCE = {("int8", 80): 1e-2, ("int8", 86): 1e-2, ("int8", 89): 3e-2, ("int8", 100): 3e-2, ("bf16", 80): 4e-3}
HEADS = 2


def make(length: int, width: int, seed: int) -> torch.Tensor:
    """bf16 [length, width] with a channel bias, as keys after RMSNorm have."""
    generator = torch.Generator().manual_seed(seed)
    bias = 2 * torch.randn(width, generator=generator)
    return (torch.randn(length, width, generator=generator) + bias).bfloat16()


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.float() - want.float()).norm() / want.float().norm())


def check(name: str, got: torch.Tensor, want: torch.Tensor, precision: str, sm: int) -> None:
    relative = error(got, want)
    print(f"{name} {precision} sm_{sm}: error {relative:.2e}")
    if not relative < TOLERANCE[precision, sm]:
        raise SystemExit(f"{name} {precision} sm_{sm}: error {relative:.3e}, tolerance {TOLERANCE[precision, sm]}")


def run_dense(length: int, keys: int, precision: str, sm: int, wide: bool) -> None:
    d = 128 * HEADS
    e = 3 * d if wide else d
    q, k, v = make(length, d, 1), make(keys, d, 2), make(keys, e, 3)
    dims = {"L": symbol("L"), "S": symbol("S"), "D": d, "E": e}
    plan = dense.launch_plan(dims, {"precision": precision}, sm)
    o = torch.full_like(q, float("nan"))
    run_plan(plan, {"q": q, "k": k, "v": v, "o": o}, {"L": length, "S": keys})
    check(f"SageAttention L={length} S={keys} E={e}", o, dense_reference.reference(q, k, v), precision, sm)


def check_selection(name: str, lut: torch.Tensor, q: torch.Tensor, k: torch.Tensor, topk_milli: int) -> None:
    """The kept set is the reference's, but for pairs whose scores differ by rounding (1e-5 of the row's range)."""
    want = sparse_reference.kept_blocks(q, k, topk_milli)
    scores = sparse_reference.selection_scores(q, k)
    span = scores.amax(-1) - scores.amin(-1)
    if lut.shape != want.shape or not bool((lut.diff(dim=-1) > 0).all()):
        raise SystemExit(f"{name}: LUT {tuple(lut.shape)} is not ascending or not {tuple(want.shape)}")
    got_scores, want_scores = (scores.gather(-1, x.long()).sort(-1).values for x in (lut, want))
    worst = ((got_scores - want_scores).abs().amax(-1) / span.clamp_min(1e-9)).max()
    if worst > 1e-5:
        raise SystemExit(f"{name}: kept blocks differ from the reference by {worst:.2e} of the score range")


def run_sparse(length: int, topk_milli: int, precision: str, sm: int, wide: bool) -> None:
    d = 128 * HEADS
    e = 3 * d if wide else d
    q, k, v = make(length, d, 1), make(length, d, 2), make(length, e, 3)
    weight, bias = torch.randn(128, 128) / 128**0.5, torch.randn(128)
    dims = {"L": symbol("L"), "D": d, "E": e}
    plan = sparse.launch_plan(dims, {"topk_milli": topk_milli, "precision": precision}, sm)
    o = torch.full_like(q, float("nan"))
    tensors = {"q": q, "k": k, "v": v, "proj_weight": weight, "proj_bias": bias, "o": o}
    lut = run_plan(plan, tensors, {"L": length})["lut"]
    name = f"SageSLA L={length} topk={topk_milli} E={e}"
    check_selection(name, lut, q, k, topk_milli)
    check(name, o, sparse_reference.reference(q, k, v, weight, bias, topk_milli=topk_milli, kept=lut), precision, sm)


def run_quantized(op: Op, length: int, precision: str, sm: int) -> None:
    """The op with an INT8 output gives the other's output, quantized: bf16 rounding moves an element by one at most."""
    d = 128 * HEADS
    tensors = {"q": make(length, d, 1), "k": make(length, d, 2), "v": make(length, d, 3)}
    if op is SAGE_SLA:
        tensors |= {"proj_weight": torch.randn(128, 128) / 128**0.5, "proj_bias": torch.randn(128)}
    o = torch.full((length, d), float("nan")).bfloat16()
    q = torch.full((length, d), -113, dtype=torch.int8)
    scale = torch.full((-(-length // 128), HEADS), float("nan"))
    symbols = {"L": length, "S": length}
    for outputs in ({"o": o}, {"o": q, "o_scale": scale}):
        made = OPS[op.name + ("Quantize" if len(outputs) == 2 else "")]
        dims = {name: {"D": d, "E": d}.get(name) or symbol(name) for name in made.symbol_sources()}
        module = sparse if op is SAGE_SLA else dense
        plan = getattr(module, made.plan_function)(dims, made.attribute_values({"precision": precision}), sm)
        run_plan(plan, tensors | outputs, {name: symbols[name] for name in made.dynamic})
    want, want_scale = quantize(o)
    worst = int((q.int() - want.int()).abs().max())
    print(f"{op.name}Quantize {precision} sm_{sm}: off by {worst}")
    if worst > 1 or not torch.allclose(scale, want_scale, rtol=2**-8, atol=0):
        raise SystemExit(f"{op.name}Quantize {precision} sm_{sm}: off by {worst}, scales {scale} not {want_scale}")


def ties() -> None:
    """Equal scores keep the lower block index; infinities and negatives order as numbers."""
    scores = torch.tensor([[[1.0, 3.0, 1.0, 1.0, -2.0, 3.0]], [[-1.0, -5.0, -1.0, float("-inf"), -1.0, -0.5]]])
    lut = torch.full((2, 1, 4), -1, dtype=torch.int32)
    sparse.select_blocks[(1, 2)](scores, lut, 6, 4, BLOCKS=sparse.MAX_BLOCKS)
    if lut.flatten(1).tolist() != [[0, 1, 2, 5], [0, 2, 4, 5]]:
        raise SystemExit(f"select_blocks: ties gave {lut.tolist()}")


def largest_sums(sm: int) -> None:
    """Equal scores and equal v: every p and every v has its largest value, and their sum must not overflow."""
    q, k = torch.zeros(128, 128).bfloat16(), make(128, 128, 1)
    v = torch.tensor([-7.0, 0.5]).repeat(64).expand(128, 128).bfloat16().contiguous()
    plan = dense.launch_plan({"L": symbol("L"), "S": symbol("S"), "D": 128, "E": 128}, {"precision": "int8"}, sm)
    o = torch.full_like(q, float("nan"))
    run_plan(plan, {"q": q, "k": k, "v": v, "o": o}, {"L": 128, "S": 128})
    if not torch.equal(o, v):
        raise SystemExit(f"sm_{sm}: the mean of equal rows is off by {error(o, v):.2e}")


def main() -> None:
    torch.manual_seed(0)
    ties()
    for precision, sm in TOLERANCE:
        run_dense(130, 77, precision, sm, wide=False)
        run_sparse(200, 500, precision, sm, wide=True)
        if precision == "int8":
            largest_sums(sm)
    for precision in ("int8", "bf16"):
        for length, keys, wide in ((40, 40, False), (200, 512, True)):
            run_dense(length, keys, precision, 80, wide)
        for length, topk_milli, wide in ((40, 100, False), (1000, 300, False), (640, 1000, True)):
            run_sparse(length, topk_milli, precision, 80, wide)
        for op in (SAGE_ATTENTION, SAGE_SLA):
            run_quantized(op, 200, precision, 80)
    run_quantized(SAGE_SLA, 200, "int8", 89)
    tell_kernels()


if __name__ == "__main__":
    main()
