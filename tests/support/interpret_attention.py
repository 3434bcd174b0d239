"""The attention plans under Triton's interpreter against their references: cases(), each a test of its own.

With the arithmetic of interpreter_numbers, for one SM of each kind. Where the last kernel is Gluon (the RTX parts' with
INT8 scores), tests/support/fragments.py stands in for it. The compiled code itself is not covered, and neither are
Gluon kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from plugins.block_int8_quantize.reference import reference as quantize
from plugins.expr import Expr, symbol
from plugins.registry import OPS
from plugins.sage_attention import kernel as dense
from plugins.sage_attention import reference as dense_reference
from plugins.sage_sla import kernel as sparse
from plugins.sage_sla import reference as sparse_reference
from tests.support.fragments import attend
from tests.support.interpret import Case, case, run_plan

#: Largest relative L2 error by (precision, SM): INT8 q·kᵀ, and P·V with 11, 4 or 8 bits of mantissa.
TOLERANCE = {("int8", 80): 1e-2, ("int8", 86): 1e-2, ("int8", 89): 3e-2, ("int8", 100): 3e-2, ("bf16", 100): 4e-3}
WHOLE = 100  # whose kernels the interpreter knows, all of them
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
    assert relative < TOLERANCE[precision, sm], f"{name}: error {relative:.3e}, tolerance {TOLERANCE[precision, sm]}"


def finished(bound: dict[str, torch.Tensor], precision: str, sm: int, length: int, keys: int) -> torch.Tensor:
    """The output, by plain torch where the SM's last kernel is Gluon."""
    config = dense.CONFIGS[precision, sm]
    return attend(bound, config, length, keys) if isinstance(config, dense.MmaConfig) else bound["o"]


def run_dense(length: int, keys: int, precision: str, sm: int, wide: bool) -> None:
    d = 128 * HEADS
    e = 3 * d if wide else d
    q, k, v = make(length, d, 1), make(keys, d, 2), make(keys, e, 3)
    dims: dict[str, int | Expr] = {"L": symbol("L"), "S": symbol("S"), "D": d, "E": e}
    plan = dense.launch_plan(dims, {"precision": precision}, sm)
    o = torch.full_like(q, float("nan"))
    bound = run_plan(plan, {"q": q, "k": k, "v": v, "o": o}, {"L": length, "S": keys})
    o = finished(bound, precision, sm, length, keys)
    check(f"SageAttention L={length} S={keys} E={e}", o, dense_reference.reference(q, k, v), precision, sm)


def check_selection(name: str, lut: torch.Tensor, q: torch.Tensor, k: torch.Tensor, topk_milli: int) -> None:
    """The kept set is the reference's, but for pairs whose scores differ by rounding (1e-5 of the row's range)."""
    want = sparse_reference.kept_blocks(q, k, topk_milli)
    scores = sparse_reference.selection_scores(q, k)
    span = scores.amax(-1) - scores.amin(-1)
    assert lut.shape == want.shape, f"{name}: LUT {tuple(lut.shape)} is not {tuple(want.shape)}"
    assert bool((lut.diff(dim=-1) > 0).all()), f"{name}: LUT is not ascending"
    got_scores, want_scores = (scores.gather(-1, x.long()).sort(-1).values for x in (lut, want))
    worst = ((got_scores - want_scores).abs().amax(-1) / span.clamp_min(1e-9)).max()
    assert worst <= 1e-5, f"{name}: kept blocks differ from the reference by {worst:.2e} of the score range"


def run_sparse(length: int, topk_milli: int, precision: str, sm: int, wide: bool) -> None:
    d = 128 * HEADS
    e = 3 * d if wide else d
    q, k, v = make(length, d, 1), make(length, d, 2), make(length, e, 3)
    weight, bias = torch.randn(128, 128) / 128**0.5, torch.randn(128)
    dims: dict[str, int | Expr] = {"L": symbol("L"), "D": d, "E": e}
    plan = sparse.launch_plan(dims, {"topk_milli": topk_milli, "precision": precision}, sm)
    o = torch.full_like(q, float("nan"))
    tensors = {"q": q, "k": k, "v": v, "proj_weight": weight, "proj_bias": bias, "o": o}
    bound = run_plan(plan, tensors, {"L": length})
    lut, o = bound["lut"], finished(bound, precision, sm, length, length)
    name = f"SageSLA L={length} topk={topk_milli} E={e}"
    check_selection(name, lut, q, k, topk_milli)
    check(name, o, sparse_reference.reference(q, k, v, weight, bias, topk_milli=topk_milli, kept=lut), precision, sm)


def run_quantized(name: str, length: int, precision: str, sm: int) -> None:
    """The op with an INT8 output gives the other's output, quantized: bf16 rounding moves an element by one at most."""
    d = 128 * HEADS
    tensors = {"q": make(length, d, 1), "k": make(length, d, 2), "v": make(length, d, 3)}
    if name == "SageSLA":
        tensors |= {"proj_weight": torch.randn(128, 128) / 128**0.5, "proj_bias": torch.randn(128)}
    o = torch.full((length, d), float("nan")).bfloat16()
    q = torch.full((length, d), -113, dtype=torch.int8)
    scale = torch.full((-(-length // 128), HEADS), float("nan"))
    symbols = {"L": length, "S": length}
    for outputs in ({"o": o}, {"o": q, "o_scale": scale}):
        made = OPS[name + ("Quantize" if len(outputs) == 2 else "")]
        dims = {dim: {"D": d, "E": d}.get(dim) or symbol(dim) for dim in made.symbol_sources()}
        module = sparse if name == "SageSLA" else dense
        plan = getattr(module, made.plan_function)(dims, made.attribute_values({"precision": precision}), sm)
        run_plan(plan, tensors | outputs, {dim: symbols[dim] for dim in made.dynamic})
    want, want_scale = quantize(o)
    worst = int((q.int() - want.int()).abs().max())
    assert worst <= 1, f"off by {worst}"
    assert torch.allclose(scale, want_scale, rtol=2**-8, atol=0), f"scales {scale} not {want_scale}"


def ties() -> None:
    """Equal scores keep the lower block index; infinities and negatives order as numbers."""
    scores = torch.tensor([[[1.0, 3.0, 1.0, 1.0, -2.0, 3.0]], [[-1.0, -5.0, -1.0, float("-inf"), -1.0, -0.5]]])
    lut = torch.full((2, 1, 4), -1, dtype=torch.int32)
    sparse.select_blocks[(1, 2)](scores, lut, 6, 4, BLOCKS=sparse.MAX_BLOCKS)
    assert lut.flatten(1).tolist() == [[0, 1, 2, 5], [0, 2, 4, 5]]


def cases() -> Iterator[Case]:
    yield case(ties)
    for precision, sm in TOLERANCE:
        yield case(run_dense, 130, 77, precision, sm, wide=False)
        yield case(run_sparse, 200, 500, precision, sm, wide=True)
    for precision in ("int8", "bf16"):
        for length, keys, wide in ((40, 40, False), (200, 512, True)):
            yield case(run_dense, length, keys, precision, WHOLE, wide=wide)
        for length, topk_milli, wide in ((40, 100, False), (1000, 300, False), (640, 1000, True)):
            yield case(run_sparse, length, topk_milli, precision, WHOLE, wide=wide)
        for op in ("SageAttention", "SageSLA"):
            yield case(run_quantized, op, 200, precision, WHOLE)
