"""Our dense INT8 attention beside the sageattention package's own Triton kernel, a second oracle on a CUDA device."""

from __future__ import annotations

import pytest
import torch

from plugins import torch_op
from plugins.registry import OPS

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

HEADS, HEAD_DIM = 12, 128
#: Relative L2 from exact attention, which either side may miss by as much (INT8 scores; ours has P·V in FP8 too).
TOLERANCE = OPS["SageAttention"].bound({"precision": "int8"}).test


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.float() - want.float()).norm() / want.float().norm())


@pytest.mark.parametrize(("length", "keys"), [(256, 256), (1000, 512), (32760, 32760)])
def test_both_compute_the_same_attention(length: int, keys: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    sageattention = pytest.importorskip("sageattention")  # 1.0.6 itself is 1e-1 off at L = 200, seen on the H200
    generator = torch.Generator("cuda").manual_seed(0)

    def random(rows: int) -> torch.Tensor:
        """bf16 [rows, D] with a mean by channel, as projections with a bias have: smoothing k then matters."""
        size = HEADS * HEAD_DIM
        bias = torch.randn(size, device="cuda", generator=generator)
        return (torch.randn(rows, size, device="cuda", generator=generator) + bias).bfloat16()

    q, k, v = random(length), random(keys), random(keys)
    ours = torch_op.call("SageAttention", q, k, v, precision="int8")
    # Clones: it subtracts k's mean in place.
    heads = (tensor.clone().view(1, -1, HEADS, HEAD_DIM) for tensor in (q, k, v))
    theirs = sageattention.sageattn(*heads, tensor_layout="NHD").reshape(length, -1)
    exact = torch_op.reference(OPS["SageAttention"])(q, k, v)
    assert relative(theirs, exact) <= TOLERANCE
    assert relative(ours, exact) <= TOLERANCE
    assert relative(ours, theirs) <= TOLERANCE
