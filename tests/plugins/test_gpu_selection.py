"""SageSLA's own selection on a CUDA device against the fp32 oracle's, and its output given the same kept blocks."""

from __future__ import annotations

import pytest
import torch

from plugins.compile import plan_bytes
from plugins.expr import evaluate
from plugins.plan import shape_of
from plugins.registry import OPS
from plugins.sage_sla.reference import kept_blocks, reference, selection_scores
from plugins.torch_op import device_sm, executor

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

SELECTION_TOLERANCE = 1e-3  # of a row's score range: what semantics.md calls an equal selection


def run_with_table(inputs: list[torch.Tensor], precision: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The op's output and the kept blocks [H, nq, K] it left in its workspace, which starts poisoned."""
    op, sm = OPS["SageSLA"], device_sm()
    shapes = [tuple(tensor.shape) for tensor in inputs]
    loaded = executor(plan_bytes(op, op.bind(shapes), {"precision": precision}, sm), torch.cuda.current_device())
    symbols = loaded.plan.bind(shapes)
    out = torch.full_like(inputs[0], float("nan"))
    workspace = torch.full((loaded.workspace_bytes(shapes),), 255, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    loaded.run(shapes, [t.data_ptr() for t in inputs], [out.data_ptr()], workspace.data_ptr(), stream)
    torch.cuda.synchronize()
    slot = [spec.name for spec in loaded.plan.buffers].index("lut")
    offset = sum(evaluate(size, symbols) for size in loaded.plan.workspace[:slot])
    shape = shape_of(loaded.plan.buffers[slot], symbols)
    count = shape[0] * shape[1] * shape[2]
    return out, workspace[offset : offset + 4 * count].view(torch.int32).view(shape).long()


def selections_equal(got: torch.Tensor, want: torch.Tensor, scores: torch.Tensor) -> bool:
    """Whether every swapped block's score lies within the tolerance of the row's last kept score."""
    span = (scores.amax(-1) - scores.amin(-1)).clamp(min=1e-20)
    worst_got = scores.gather(-1, got).amin(-1)
    worst_want = scores.gather(-1, want).amin(-1)
    return bool(((worst_want - worst_got) <= SELECTION_TOLERANCE * span).all())


@pytest.mark.parametrize("precision", ["int8", "bf16"])
@pytest.mark.parametrize(("length", "heads"), [(40, 12), (200, 12), (1000, 12), (32760, 12), (75600, 4)])
def test_same_blocks_same_output(length: int, heads: int, precision: str) -> None:
    torch.manual_seed(length)
    d = 128 * heads
    mean = torch.randn(3, d, device="cuda")
    q, k = ((torch.randn(length, d, device="cuda") + mean[i]).bfloat16() for i in range(2))
    v = (torch.randn(length, 3 * d, device="cuda") + mean[2].repeat(3)).bfloat16()
    weight, bias = torch.randn(128, 128, device="cuda") / 128**0.5, torch.randn(128, device="cuda")
    inputs = [q, k, v, weight, bias]
    out, kept = run_with_table(inputs, precision)
    want = kept_blocks(q, k)
    assert kept.shape == want.shape
    assert bool((kept.diff(dim=-1) > 0).all()), "kept blocks must be distinct and ascending"
    assert selections_equal(kept, want, selection_scores(q, k))
    expected = reference(*inputs, kept=kept).float()
    relative = float((out.float() - expected).norm() / expected.norm())
    assert bool(out.isfinite().all())
    assert relative <= OPS["SageAttention"].bound({"precision": precision}).test, relative  # the selection is shared
