"""umT5 with block-INT8 Linears: values, packing, runtime, the graph, and real engines that hold our plugins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

for _module in ("onnx_graphsurgeon", "tensorrt_rtx", "transformers", "tokenizers"):
    pytest.importorskip(_module)

import numpy as np
from safetensors.torch import load_file, save_file

from exporter.builder.child import BuildRequest
from exporter.builder.parent import build_engine
from exporter.checkpoint.text_names import text_name, text_sources
from exporter.graphs.stage_graph import stage_graph
from exporter.graphs.trace import trace_stage
from exporter.models import MODELS
from exporter.networks.text.encoder import TEXT_ENCODERS, TextSpec, text_block, text_norm, text_weights
from exporter.networks.text.stages import text_stages
from exporter.spec import export_spec
from exporter.torch_backend.runner import TorchRunner
from plugins.errors import UserError
from plugins.onnx_schema import DOMAIN
from plugins.plan import decode
from plugins.torch_dtypes import torch_dtype
from runtime.backends import loader, tensorrt
from runtime.backends.cuda_device import CudaDevice
from runtime.media.text.relative_position import relative_buckets
from runtime.report import Silent
from tests.support.media_bundle import TEXT_NAME, add_media, bare_manifest, media_stages, random_tensors, with_media
from tests.support.media_parts import text_encoder
from tests.support.onnx_reference import run_onnx
from tests.support.progress import SilentProgress
from tests.support.quantized_text import dequantized, plain_block, quantized
from tests.support.random_bundle import make_random_bundle

SPEC = TextSpec(name="test", dim=256, layers=3, ffn_dim=384, heads=4, head_dim=64, vocabulary=100)
TINY = TEXT_ENCODERS["umt5-tiny"]
WIDE = replace(TEXT_ENCODERS["umt5-xxl"], layers=1, vocabulary=8)
GEMMS = ["BlockInt8Quantize", "BlockInt8Gemm"] * 4


def relative(got: Any, want: Any) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def layer(weights: dict[str, Any], index: int) -> dict[str, Any]:
    prefix = f"blocks.{index}."
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def encode(x: Any, weights: dict[str, Any], spec: TextSpec, linear: Any) -> Any:
    """The encoder before its last norm."""
    buckets = torch.from_numpy(relative_buckets(len(x)))
    for index in range(spec.layers):
        x = text_block(x, buckets, layer(weights, index), spec, linear)
    return x


@pytest.fixture(scope="module")
def oracle() -> Any:
    """transformers' encoder in fp32, as it initializes its weights."""
    import transformers

    torch.manual_seed(0)
    config = transformers.UMT5Config(
        vocab_size=SPEC.vocabulary,
        d_model=SPEC.dim,
        d_kv=SPEC.head_dim,
        d_ff=SPEC.ffn_dim,
        num_layers=SPEC.layers,
        num_heads=SPEC.heads,
        attn_implementation="eager",
    )
    return transformers.UMT5EncoderModel(config).eval()


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 60, 200, 512])
def test_the_error_against_transformers(oracle: Any, length: int) -> None:
    """Both modes against fp32: INT8 loses more than bf16, and no more than its bound. Measured: 6e-3 and 3.6e-2."""
    state = {text_name(name): tensor for name, tensor in oracle.state_dict().items()}
    table = text_weights(SPEC)
    exact = {name: torch.cat([state[source] for source in text_sources(name)]) for name in table}
    packed = {name: w.bfloat16() if table[name].dtype == "bf16" else w for name, w in exact.items()}
    tokens = torch.randint(1, SPEC.vocabulary, (length,), generator=torch.Generator().manual_seed(length))
    want = oracle(tokens[None]).last_hidden_state[0]
    x = packed["token_embedding.weight"][tokens].float()
    errors = {}
    for linear, weights in (("bf16", packed), ("int8", quantized(packed, SPEC))):
        errors[linear] = relative(text_norm(encode(x, weights, SPEC, linear), weights).float(), want)
    assert errors["bf16"] < 1.5e-2
    assert errors["bf16"] < errors["int8"] < 8e-2


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 130])
def test_a_block_is_the_plain_one_on_dequantized_matrices(length: int) -> None:
    """With one large channel and one large row; 1e-2 is less than what quantization itself changes.

    Sums of another order move values across a tie of bf16, and those move others across a tie of INT8.
    """
    weights = layer(quantized(random_tensors(text_weights(SPEC), 3), SPEC), 1)
    x = torch.randn(length, SPEC.dim, generator=torch.Generator().manual_seed(length))
    x[:, 5] *= 40
    x[-1] *= 9
    buckets = torch.from_numpy(relative_buckets(length))
    got = text_block(x, buckets, weights, SPEC, "int8")
    want = plain_block(x, buckets, dequantized(weights), SPEC)
    assert got.dtype == torch.float32
    assert relative(got - x, want - x) < 1e-2


@torch.no_grad()
def test_the_graph_is_the_function() -> None:
    stage = text_stages(TINY, "int8")[0]
    proto = trace_stage(stage)
    assert [node.op_type for node in proto.graph.node if node.domain == DOMAIN] == GEMMS
    weights = layer(quantized(random_tensors(text_weights(TINY), 4), TINY), 0)
    x = torch.randn(37, TINY.dim, generator=torch.Generator().manual_seed(1))
    buckets = torch.from_numpy(relative_buckets(37))
    (got,) = run_onnx(proto, {"x": x, "buckets": buckets, **weights})
    want = text_block(x, buckets, weights, TINY, "int8")
    assert relative(got - x, want - x) < 1e-2


@pytest.mark.parametrize(("gpu", "sm"), [("rtx5090", 120), ("rtx4090", 89)])
def test_the_engine_of_full_width_holds_our_plugins(gpu: str, sm: int, tmp_path: Path) -> None:
    """umT5-xxl's block: every Linear is a plugin whose plan for this GPU is in the engine."""
    stage = text_stages(TEXT_ENCODERS["umt5-xxl"], "int8")[0]
    spec = export_spec(model="wan2.1-14b-720p", gpu=gpu, out=tmp_path, text_linear="int8")
    graph = stage_graph(spec, stage, None, SilentProgress())
    (tmp_path / "text_block.onnx").write_bytes(graph.onnx)
    engine = tmp_path / "text_block.engine"
    profile = stage.profile
    result = build_engine(
        BuildRequest(
            onnx=str(tmp_path / "text_block.onnx"),
            engine=str(engine),
            log=str(tmp_path / "log"),
            gpu=gpu,
            profile=profile,
        ),
        lambda done, total: None,
    )
    names = [f"text_block.{index:02d}.{op}" for index, op in enumerate(GEMMS)]
    assert sorted(result.plugin_layers) == names
    data = engine.read_bytes()
    for name in names:
        assert decode(graph.plans[name]).sm == sm
        assert graph.plans[name] in data
    sizes = {tensor.name: tensor.dims for tensor in stage.input_infos if tensor.dtype == "int8"}
    assert sizes == {
        "attn.qkv.int8_weight": (12288, 4096),
        "attn.o.int8_weight": (4096, 4096),
        "ffn.gate_fc1.int8_weight": (20480, 4096),
        "ffn.fc2.int8_weight": (4096, 10240),
    }


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """wan-tiny's bundle whose text encoder is the same as add_media's, in INT8."""
    folder = tmp_path_factory.mktemp("int8")
    manifest = add_media(folder, make_random_bundle(folder, MODELS["wan-tiny"]))
    save_file(quantized(load_file(folder / TEXT_NAME), TINY), folder / "int8.safetensors")
    return folder, with_media(manifest, media_stages(MODELS["wan-tiny"], "int8"), "int8")


@torch.no_grad()
def test_the_runtime_encodes_a_batch(bundle: tuple[Path, Any]) -> None:
    """Through two slots of half the size, bit for bit the function; and near to what the bf16 file gives.

    Measured: up to 9.7e-2, with scores larger than those of transformers' own initialization.
    """
    folder, manifest = bundle
    bf16 = with_media(manifest, media_stages(MODELS["wan-tiny"]))
    encoders = [
        text_encoder(TorchRunner(m, torch.device("cpu")), m, folder / name)
        for m, name in ((manifest, "int8.safetensors"), (bf16, TEXT_NAME))
    ]
    prompts = [[5, 9, 20, 1], [7, 1], [*range(3, 140), 1]]
    small, large = (encoder.encode(prompts) for encoder in encoders)
    weights = load_file(folder / "int8.safetensors")
    for ids, got, near in zip(prompts, small, large, strict=True):
        x = weights["token_embedding.weight"][ids].float()
        want = text_norm(encode(x, weights, TINY, "int8"), weights)
        assert np.array_equal(got, want.view(torch.int16).numpy().view(np.uint16))
        floats = [torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float() for bits in (got, near)]
        assert 0 < relative(*floats) < 0.2
    layers = [encoder._slot.nbytes for encoder in encoders]
    assert 0.5 < layers[0] / layers[1] < 0.52
    assert encoders[0].nbytes([4]) < encoders[1].nbytes([4])


@pytest.mark.parametrize("engines", ["int8", "bf16"])
def test_weights_of_the_other_mode_are_refused(bundle: tuple[Path, Any], engines: Any) -> None:
    folder, manifest = bundle
    manifest = with_media(manifest, media_stages(MODELS["wan-tiny"], engines), engines)
    path = folder / (TEXT_NAME if engines == "int8" else "int8.safetensors")
    with pytest.raises(UserError) as caught:
        text_encoder(TorchRunner(manifest, torch.device("cpu")), manifest, path)
    leaf = "int8_weight" if engines == "int8" else "weight"
    assert f"no tensor blocks.0.attn.qkv.{leaf}" in str(caught.value)
    assert f"packed for --text-linear {engines}" in str(caught.value)
    command = str(caught.value).splitlines()[-1]
    assert "--text-encoder PATH_OR_HF_ID" in command
    assert ("--text-linear int8" in command) == (engines == "int8")


def test_the_tensorrt_runner_registers_our_plugins_before_it_deserializes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text encoder runs before the DiT's backend, which registers them too, is ever made."""
    import tensorrt_rtx

    done: list[str] = []
    monkeypatch.setattr(loader, "register", lambda trt, ops: done.extend(sorted(ops)))
    manifest, device = bare_manifest(MODELS["wan-tiny"]), cast(CudaDevice, None)
    tensorrt.TensorrtRunner(tensorrt_rtx, Path("bundle"), manifest, device, Silent())
    assert {"BlockInt8Quantize", "BlockInt8Gemm"} <= set(done)


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="--text-linear 'fp8' is not known"):
        export_spec(model="wan-tiny", gpu="rtx5090", text_linear="fp8")
    with pytest.raises(UserError, match="--text-linear int8 is for a component"):
        export_spec(model="wan-tiny", gpu="rtx5090", text_linear="int8", components="dit,vae")


@pytest.fixture(scope="module")
def wide_model() -> torch.nn.Module:
    """A block of umT5-xxl's widths as transformers initializes it, fp32."""
    import transformers

    config = transformers.UMT5Config(
        vocab_size=WIDE.vocabulary,
        d_model=WIDE.dim,
        d_kv=WIDE.head_dim,
        d_ff=WIDE.ffn_dim,
        num_layers=WIDE.layers,
        num_heads=WIDE.heads,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    return transformers.UMT5EncoderModel(config).eval()


@torch.no_grad()
@pytest.mark.parametrize(("outliers", "bound"), [(False, 4e-2), (True, 8e-2)])
def test_the_error_at_full_width(wide_model: torch.nn.Module, outliers: bool, bound: float) -> None:
    """A block of umT5-xxl's widths on 60 tokens, transformers' initialization, against fp32. Measured: 1.9e-2, 3.6e-2.

    Outliers: 8 channels of the residual 20 times as large as the others, 16 of the hidden ones 8 times.
    """
    state = {text_name(name): tensor for name, tensor in wide_model.state_dict().items()}
    x = torch.randn(60, WIDE.dim, generator=torch.Generator().manual_seed(0))
    loud = state["blocks.0.ffn.fc1.weight"][::640]
    if outliers:
        x[:, :: WIDE.dim // 8] *= 20
        loud *= 8
    want = wide_model(inputs_embeds=x[None]).last_hidden_state[0]
    table = text_weights(WIDE)
    packed = {
        name: torch.cat([state[source] for source in text_sources(name)]).to(torch_dtype(spec.dtype))
        for name, spec in table.items()
    }
    if outliers:
        loud /= 8  # exact
    errors = {}
    for linear, weights in (("bf16", packed), ("int8", quantized(packed, WIDE))):
        out = encode(x, weights, WIDE, linear)
        errors[linear] = relative(torch.nn.functional.rms_norm(out, (WIDE.dim,), packed["norm.weight"], 1e-6), want)
    assert errors["bf16"] < 1e-2
    assert errors["bf16"] < errors["int8"] < bound
