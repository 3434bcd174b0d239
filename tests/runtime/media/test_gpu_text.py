"""umT5-xxl with block-INT8 Linears on a CUDA device, random weights: the compiled plans, the error, memory, and time.

Figures are printed as one JSON at the end. Run alone: pytest -m gpu -s tests/runtime/media/test_gpu_text.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.checkpoint.text_names import text_name, text_sources
from exporter.models import MODELS
from exporter.networks.text.encoder import TEXT_ENCODERS, text_block, text_norm, text_weights
from exporter.torch_backend.runner import TorchRunner
from plugins.registry import OPS
from plugins.torch_dtypes import torch_dtype
from plugins.torch_op import call
from runtime.media.text.relative_position import relative_buckets
from tests.support.media_bundle import bare_manifest, random_tensors
from tests.support.media_parts import text_encoder
from tests.support.quantized_text import dequantized, plain_block, quantized, rounded

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

MODEL = MODELS["wan2.1-14b-720p"]
TEXT = replace(TEXT_ENCODERS[MODEL.text_encoder], vocabulary=1000)  # only the rows looked up matter
TOKENS = 60
LENGTHS = (2, TOKENS, 130, 512)  # below, at and across the 128 rows of a quantization block
#: One Linear on the same input against the CPU: bf16's rounding of the output.
LINEAR_TOLERANCE = OPS["BlockInt8Gemm"].bound({}).test
#: What a whole block adds: sums of another order move values across a tie of bf16, those move others across one of
#: INT8, and four Linears follow each other. Two orders on the CPU gave 1.4e-2, no more than quantization's own noise.
BLOCK_TOLERANCE = 3e-2
#: All 24 layers against fp32, transformers' initialization; on the CPU bf16 gave 1.3e-2 and INT8 8.1e-2.
BF16_BOUND, INT8_BOUND = 3e-2, 0.18
#: What torch's allocator may hold besides what the plan counts: cuBLAS's workspaces and rounding.
SLACK_BYTES = 96 * 2**20


def relative(got: Any, want: Any) -> float:
    got, want = torch.as_tensor(got).double().cpu(), torch.as_tensor(want).double().cpu()
    return float((got - want).norm() / want.norm())


def seconds(function: Callable[[], Any]) -> float:
    """The best of three runs after one that is not counted."""
    found = []
    for _ in range(4):
        torch.cuda.synchronize()
        started = time.perf_counter()
        function()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found[1:])


def layer(weights: dict[str, Any], index: int) -> dict[str, Any]:
    prefix = f"blocks.{index}."
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def two_layers() -> dict[str, Any]:
    """Packed INT8 weights of two layers at full width, on the CPU; q and the bias as small as T5 initializes them."""
    short = replace(TEXT, layers=2)
    packed = random_tensors(text_weights(short), 1)
    for index in range(2):
        packed[f"blocks.{index}.attn.qkv.weight"][: TEXT.heads * TEXT.head_dim] /= TEXT.head_dim**0.5
        packed[f"blocks.{index}.pos_embedding.embedding.weight"] /= TEXT.dim**0.5
    return quantized(packed, short)


@torch.no_grad()
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["attn.qkv", "attn.o", "ffn.gate_fc1", "ffn.fc2"])
def test_a_linear_on_its_compiled_plans(name: str, length: int, two_layers: dict[str, Any]) -> None:
    """Quantization and product of the block's four shapes, with a large channel and a large row."""
    weights = layer(two_layers, 1)
    weight, scale = weights[f"{name}.int8_weight"], weights[f"{name}.scale"]
    x = torch.randn(length, weight.shape[1], generator=torch.Generator().manual_seed(length)).bfloat16()
    x[:, 5] *= 20
    x[-1] *= 9
    quantized_x = call("BlockInt8Quantize", x.cuda())
    got = call("BlockInt8Gemm", *quantized_x, weight.cuda(), scale.cuda(), torch.zeros(len(weight)).cuda())
    assert relative(got, rounded(x) @ dequantized(weights)[f"{name}.weight"].T) < LINEAR_TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("length", LENGTHS)
def test_the_block_on_its_compiled_plans(length: int, two_layers: dict[str, Any]) -> None:
    """The whole block, finite and near the same on the CPU."""
    weights = layer(two_layers, 0)
    x = torch.randn(length, TEXT.dim, generator=torch.Generator().manual_seed(length))
    x[:, 5] *= 20
    x[-1] *= 9
    buckets = torch.from_numpy(relative_buckets(length))
    on_device = {name: tensor.cuda() for name, tensor in weights.items()}
    got = text_block(x.cuda(), buckets.cuda(), on_device, TEXT, "int8").cpu()
    want = plain_block(x, buckets, dequantized(weights), TEXT)
    assert bool(torch.isfinite(got).all())
    assert relative(got - x, want - x) < BLOCK_TOLERANCE


@torch.no_grad()
def test_all_layers_against_transformers(figures: dict[str, Any]) -> None:
    """24 layers on a prompt's embeddings: both modes against fp32, and what each takes."""
    transformers = pytest.importorskip("transformers")
    config = transformers.UMT5Config(
        vocab_size=TEXT.vocabulary,
        d_model=TEXT.dim,
        d_kv=TEXT.head_dim,
        d_ff=TEXT.ffn_dim,
        num_layers=TEXT.layers,
        num_heads=TEXT.heads,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = transformers.UMT5EncoderModel(config).eval()
    x = torch.randn(TOKENS, TEXT.dim, device="cuda", generator=torch.Generator("cuda").manual_seed(2))
    want = model(inputs_embeds=x[None]).last_hidden_state[0].cpu()
    state = {text_name(name): tensor for name, tensor in model.state_dict().items()}
    packed = {  # on the device: a CPU takes minutes to quantize so much
        name: torch.cat([state[source] for source in text_sources(name)]).to(torch_dtype(spec.dtype))
        for name, spec in text_weights(TEXT).items()
    }
    del model, state
    torch.cuda.empty_cache()
    buckets = torch.from_numpy(relative_buckets(TOKENS)).cuda()
    found: dict[str, Any] = figures.setdefault(f"umT5-xxl, {TOKENS} tokens, weights resident", {})
    for linear, weights in (("bf16", packed), ("int8", quantized(packed, TEXT))):
        resident = {n: w.cuda() for n, w in weights.items() if n != "token_embedding.weight"}
        layers = [layer(resident, index) for index in range(TEXT.layers)]

        def run(linear: Any = linear, layers: Any = layers, resident: Any = resident) -> Any:
            out = x
            for own in layers:
                out = text_block(out, buckets, own, TEXT, linear)
            return text_norm(out, resident)

        found[linear] = {"distance to fp32": relative(run(), want), "seconds": seconds(run)}
        del resident, layers, run
        torch.cuda.empty_cache()
    assert found["bf16"]["distance to fp32"] < BF16_BOUND
    assert found["bf16"]["distance to fp32"] < found["int8"]["distance to fp32"] < INT8_BOUND


@torch.no_grad()
def test_the_runtime_streams_within_its_plan(
    two_layers: dict[str, Any], tmp_path: Path, figures: dict[str, Any]
) -> None:
    """The runtime's own path for a batch: bit for bit the functions, in no more memory than it says."""
    from safetensors.torch import save_file

    save_file(two_layers, tmp_path / "text.safetensors")
    manifest = bare_manifest(MODEL, "int8")
    runner = TorchRunner(manifest, torch.device("cuda", torch.cuda.current_device()))
    encoder = text_encoder(runner, manifest, tmp_path / "text.safetensors")
    prompts = [[5, 9, 20, 1], [*range(3, 200), 1]]
    planned, base = encoder.nbytes([len(ids) for ids in prompts]), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    got = encoder.encode(prompts)
    peak = torch.cuda.max_memory_allocated() - base
    figures["runtime, two layers"] = {"planned_gb": planned / 1e9, "peak_gb": peak / 1e9}
    assert peak <= planned + SLACK_BYTES
    weights = {name: tensor.cuda() for name, tensor in two_layers.items()}
    for ids, bits in zip(prompts, got, strict=True):
        x = weights["token_embedding.weight"][ids].float()
        for index in range(2):
            buckets = torch.from_numpy(relative_buckets(len(ids))).cuda()
            x = text_block(x, buckets, layer(weights, index), TEXT, "int8")
        want = text_norm(x, weights).view(torch.int16).cpu().numpy().view(np.uint16)
        assert np.array_equal(bits, want)
