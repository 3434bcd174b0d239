"""SageAttention and SageSLA: references against naive attention, kernels in the interpreter, compilation for every SM.

Not covered without a GPU: the Gluon kernels (flash_attention_mma, sage_sla_hopper) and the compiled code's values.
"""

from __future__ import annotations

import math

import pytest
import torch

from plugins.compile import compile_kernel
from plugins.expr import symbol
from plugins.op import Op
from plugins.sage_attention.kernel import CONFIGS, MmaConfig
from plugins.sage_attention.op import SAGE_ATTENTION
from plugins.sage_attention.reference import reference as dense_reference
from plugins.sage_sla.op import SAGE_SLA_QUANTIZE
from plugins.sage_sla.reference import kept_blocks, selection_scores
from plugins.sage_sla.reference import reference as sparse_reference
from plugins.sms import SHARED_LIMIT, SMS
from tests.support.interpret import Case
from tests.support.interpret_attention import cases
from tests.support.interpreter_process import Interpreter

STACK_LIMIT = 128  # bytes a thread: a few spills outside the loop; hundreds mean a wrong config


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    return bool((got.double() - want).norm() <= 4e-3 * want.norm())


@pytest.mark.parametrize(("length", "keys", "width"), [(40, 40, 256), (200, 77, 768)])
def test_dense_reference(length: int, keys: int, width: int) -> None:
    q, k, v = random(length, 256, seed=1), random(keys, 256, seed=2), random(keys, width, seed=3)
    got = dense_reference(q, k, v)
    for h in (0, 1):
        c, last = slice(128 * h, 128 * h + 128), slice(width - 256 + 128 * h, width - 128 + 128 * h)
        p = torch.softmax(q[:, c].double() @ k[:, c].double().T / math.sqrt(128), -1)
        assert close(got[:, c], p @ v[:, last].double())


@pytest.mark.parametrize(("length", "topk_milli", "width"), [(40, 100, 256), (200, 500, 768), (1000, 300, 256)])
def test_sparse_reference(length: int, topk_milli: int, width: int) -> None:
    """Against full attention under a mask, with pooling by a Python loop."""
    q, k, v = random(length, 256, seed=1), random(length, 256, seed=2), random(length, width, seed=3)
    weight, bias = random(128, 128, seed=4).float() / 11, random(128, seed=5).float()
    got = sparse_reference(q, k, v, weight, bias, topk_milli=topk_milli)
    for h in (0, 1):
        c, last = slice(128 * h, 128 * h + 128), slice(width - 256 + 128 * h, width - 128 + 128 * h)
        qh, kh, vh = q[:, c].double(), k[:, c].double(), v[:, last].double()
        mask = torch.zeros(length, length, dtype=torch.bool)
        pooled = torch.stack([x.mean(0) for x in (kh - kh.mean(0)).split(64)])
        for start in range(0, length, 128):
            scores = pooled @ qh[start : start + 128].mean(0)
            for block in scores.topk(max(1, len(pooled) * topk_milli // 1000)).indices.tolist():
                mask[start : start + 128, 64 * block : 64 * block + 64] = True
        p = torch.softmax((qh @ kh.T / math.sqrt(128)).masked_fill(~mask, -math.inf), -1)
        phi_q, phi_k = torch.softmax(qh, -1), torch.softmax(kh, -1)
        linear = phi_q @ (phi_k.T @ vh) / (1e-5 + phi_q @ phi_k.sum(0))[:, None]
        assert close(got[:, c], p @ vh + linear @ weight.double().T + bias.double())


def test_selection_shapes_and_ties() -> None:
    q, k = random(200, 128, seed=1), torch.ones(200, 128).bfloat16()
    assert selection_scores(q, k).shape == (1, 2, 4)
    assert kept_blocks(q, k, 500).tolist() == [[[0, 1], [0, 1]]]


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_kernels_in_the_interpreter(case: Case, interpreter: Interpreter) -> None:
    interpreter.run(case)


@pytest.mark.parametrize("config", [c for c in CONFIGS.values() if isinstance(c, MmaConfig)], ids=str)
def test_fp16_sums_of_a_block_cannot_overflow(config: MmaConfig) -> None:
    """64 products of the largest v and the largest probability, for any length: blocks are added in fp32."""
    assert 64 * config.v_max * 2 ** (config.floor + config.slack) < torch.finfo(torch.float16).max


@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("precision", ["int8", "bf16"])
@pytest.mark.parametrize("op", [SAGE_ATTENTION, SAGE_SLA_QUANTIZE], ids=lambda op: op.name)
def test_kernels_compile(op: Op, precision: str, sm: int) -> None:
    """Every kernel compiles within the SM's shared memory, with next to no stack."""
    from importlib import import_module

    text = op is SAGE_ATTENTION and precision == "bf16"  # as Wan's 1.3B model has them, which test_sass compiles, too
    static = {"D": 1536, "E": 3072 if text else 1536}
    dims = {name: static.get(name) or symbol(name) for name in op.symbol_sources()}
    make = getattr(import_module(f"plugins.{op.folder}.kernel"), op.plan_function)
    plan = make(dims, op.attribute_values({"precision": precision}), sm)
    dtypes = {t.name: t.dtype for t in (*op.inputs, *op.outputs, *plan.buffers)}
    for launch in plan.launches:
        image = compile_kernel(launch, dtypes, sm)
        assert image.shared <= SHARED_LIMIT[sm] * 1024, (image.name, image.shared)
        assert image.spills <= STACK_LIMIT, (image.name, image.registers, image.spills)
