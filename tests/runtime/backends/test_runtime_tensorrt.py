"""The TensorRT backend against the real tensorrt_rtx module as far as it goes without a driver, and beyond that against
engines that stand in: they run the stage functions on the addresses they are given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

trt = pytest.importorskip("tensorrt_rtx")

from exporter.models import MODELS
from exporter.torch_backend.backend import TORCH
from runtime import Pipeline
from runtime.backends.cuda_device import compute_capability
from runtime.backends.engine import Engine
from runtime.backends.kind import BackendKind
from runtime.backends.loader import EngineLoader, make_logger
from runtime.backends.protocol import BackendError
from runtime.backends.tensorrt import TENSORRT, TensorrtRunner
from runtime.bundle import Manifest, load_manifest
from runtime.layout import weight_layout
from tests.support.exported import Exported
from tests.support.lazy_device import POLICIES, LazyDevice, Policy
from tests.support.progress import SilentProgress
from tests.support.random_bundle import make_random_bundle
from tests.support.stand_in_tensorrt import StandIn, add_engines, host_view

OPTIONS: dict[str, Any] = {"size": (48, 32), "frames": 9, "steps": 2}
TEXT = np.random.default_rng(0).standard_normal((5, 4096), dtype=np.float32)

USED = {
    "Runtime": ["deserialize_cuda_engine", "engine_host_code_allowed"],
    "ICudaEngine": ["num_io_tensors", "get_tensor_name", "create_execution_context", "create_runtime_config"],
    "IExecutionContext": [
        "set_input_shape",
        "update_device_memory_size_for_shapes",
        "set_device_memory",
        "set_tensor_address",
        "execute_async_v3",
    ],
    "IRuntimeConfig": [
        "set_execution_context_allocation_strategy",
        "cuda_graph_strategy",
        "create_runtime_cache",
        "set_runtime_cache",
    ],
    "IRuntimeCache": ["serialize", "deserialize"],
    "ExecutionContextAllocationStrategy": ["USER_MANAGED"],
    "CudaGraphStrategy": ["DISABLED"],
}


@pytest.mark.parametrize("kind", USED)
def test_the_real_module_has_what_the_backend_calls(kind: str) -> None:
    for name in USED[kind]:
        assert hasattr(getattr(trt, kind), name), f"{kind}.{name}"


@pytest.mark.parametrize("kind", [kind for kind in USED if kind.startswith("I") or kind == "Runtime"])
def test_the_list_above_is_what_the_code_calls(kind: str) -> None:
    from runtime.backends import engine, loader

    source = "".join(Path(str(module.__file__)).read_text() for module in (engine, loader))
    for name in USED[kind]:
        assert f".{name}" in source, name


def test_a_real_engine_without_a_driver_gives_tensorrts_own_words(exported: Exported) -> None:
    """Deserializing is as far as it goes here; it fails for want of a driver, and the reason is in the error."""
    if compute_capability() is not None:
        pytest.skip("there is a GPU here")
    log = make_logger(trt)
    manifest = load_manifest(exported.folder)
    loader = EngineLoader(trt, log, manifest, lambda _: None)
    for stage in manifest.stages:
        with pytest.raises(BackendError) as told:
            Engine(trt, loader, log, exported.folder / str(stage.engine), stage, None)
        assert f"{stage.name}.engine could not be loaded" in str(told.value)
        assert "TensorRT's log ends" in str(told.value)
        assert "CUDA" in str(told.value) or "cuda" in str(told.value)


def test_the_logger_keeps_the_last_lines_that_matter() -> None:
    log = make_logger(trt)
    for index in range(100):
        log.log(trt.ILogger.INFO, f"chatter {index}")
        log.log(trt.ILogger.WARNING, f"warning {index}")
    text = str(log.error("It failed."))
    assert "warning 99" in text
    assert "warning 84" not in text
    assert "chatter" not in text


def test_the_engines_tensors_are_those_the_runtime_binds(exported: Exported) -> None:
    """The names, dtypes and shapes in a real manifest are those declared, and a run has a place for each of them."""
    from exporter.networks.dit.options import BlockOptions
    from exporter.networks.dit.stages import dit_stages
    from runtime.layout import run_layout

    manifest, model = load_manifest(exported.folder), MODELS["wan-tiny"]
    places = run_layout(manifest.stages, {"L": 200}).places
    for declared in dit_stages(model, BlockOptions()):
        entry = manifest.stage(declared.name)
        assert [t.name for t in entry.activations] == list(declared.inputs)
        assert list(entry.gives) == list(declared.outputs)
        for name, wanted in (*declared.inputs.items(), *declared.outputs.items()):
            assert places[name].dtype == wanted.dtype
            assert places[name].shape == tuple(200 if dim == "L" else dim for dim in wanted.dims)
        slot = {name: (place.shape, place.dtype) for name, place in weight_layout(entry).places.items()}
        assert slot == {name: (w.shape, w.dtype) for name, w in declared.weights.items()}
    assert set(places) >= {"x", "x_out", "tokens", "tokens_out"}  # what changes places lies there twice
    image = dit_stages(replace(model, in_channels=36), BlockOptions())[0]
    assert list(image.inputs) == ["tokens", "time_features", "text", "condition"]


class HostDevice(LazyDevice):
    """The lazy device with a stream's number, as the TensorRT backend asks for."""

    stream = 77


def stand_in_kind(device: HostDevice, made: list[StandIn], lacking: str | None = None) -> BackendKind:
    def open_(folder: Path, manifest: Manifest, report: Any) -> TensorrtRunner:
        def enqueue(stream: int, work: Any) -> None:
            assert stream == 77
            device.enqueue("compute", work)

        module = StandIn(manifest, enqueue, host_view)
        module.lacking = lacking
        made.append(module)
        return TensorrtRunner(module, folder, manifest, device, report)  # type: ignore[arg-type]

    return replace(TENSORRT, check=TORCH.check, open=open_)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    add_engines(folder, make_random_bundle(folder, replace(MODELS["wan-tiny"], name="tiny-3", layers=3)))
    return folder


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("budget", ["resident", "smallest"])
def test_bound_addresses_give_the_torch_backends_latents(bundle: Path, policy: Policy, budget: str) -> None:
    with Pipeline.load(bundle, backend=TORCH, **OPTIONS) as pipe:
        want = pipe(TEXT, seed=3, **OPTIONS)
    device = HostDevice(policy)
    with Pipeline.load(bundle, backend=stand_in_kind(device, []), **OPTIONS) as pipe:
        vram = pipe.placement.peak if budget == "resident" else pipe.placement.smallest
    device = HostDevice(policy)
    with Pipeline.load(bundle, backend=stand_in_kind(device, []), vram=vram, **OPTIONS) as pipe:
        got = pipe(TEXT, seed=3, **OPTIONS)
        assert pipe.placement.streamed == (0 if budget == "resident" else 3)
        # The engines' own bytes are counted as overhead; they are not allocated by us.
        assert device.peak["device"] == pipe.placement.peak - pipe.placement.sizes.overhead
    np.testing.assert_array_equal(got, want)
    assert device.live == {"device": 0, "pinned": 0}
    assert device.closed


def test_activation_memory_is_that_of_the_actual_size(bundle: Path) -> None:
    device = HostDevice("copies first")
    with Pipeline.load(bundle, backend=stand_in_kind(device, []), **OPTIONS) as pipe:
        assert pipe.placement.sizes.activations == {"embed": 1800, "block": 5400, "head": 3600}  # 18 tokens
        assert pipe.plan(size=(128, 80), frames=17).sizes.activations["block"] == 300 * 200


def test_compiled_kernels_are_kept_in_a_file(bundle: Path) -> None:
    files = [bundle / f"{stage}.jitcache" for stage in ("embed", "block", "head")]
    for file in files:
        file.unlink(missing_ok=True)

    def run(frames: int = 9) -> list[StandIn]:
        made: list[StandIn] = []
        with Pipeline.load(bundle, backend=stand_in_kind(HostDevice("copies first"), made), **OPTIONS) as pipe:
            pipe(TEXT, **(OPTIONS | {"frames": frames}))
        return made

    run()
    assert [file.read_bytes() for file in files] == [b"cache 1\n18"] * 3
    before = [file.stat().st_mtime_ns for file in files]
    run()
    assert [file.stat().st_mtime_ns for file in files] == before  # nothing new, nothing written
    run(frames=17)
    assert [file.read_bytes() for file in files] == [b"cache 1\n18 30"] * 3
    files[1].write_bytes(b"cache 0\n999")  # of another version: ignored, then replaced
    run()
    assert files[1].read_bytes() == b"cache 1\n18"
    assert not [path for path in bundle.iterdir() if path.name.startswith(".")]


def test_a_bundle_that_cannot_be_written_runs_and_says_so(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle / "block.jitcache").unlink(missing_ok=True)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("runtime.backends.engine.write_atomic", refuse)
    report = SilentProgress()
    kind = stand_in_kind(HostDevice("copies first"), [])
    with Pipeline.load(bundle, backend=kind, report=report, **OPTIONS) as pipe:
        pipe(TEXT, **OPTIONS)
    assert [note for note in report.notes if "block.jitcache could not be written (Permission denied)" in note]


def test_a_failing_engine_is_named_with_tensorrts_words(bundle: Path) -> None:
    made: list[StandIn] = []
    device = HostDevice("compute first")
    with Pipeline.load(bundle, backend=stand_in_kind(device, made), **OPTIONS) as pipe:
        made[0].failing = True
        with pytest.raises(BackendError, match=r"embed\.engine could not run(.|\n)*told to fail"):
            pipe(TEXT, **OPTIONS)
        made[0].failing = False
        pipe(TEXT, **OPTIONS)
    assert device.live == {"device": 0, "pinned": 0}


def test_an_engine_of_other_tensors_is_refused(bundle: Path) -> None:
    kind = stand_in_kind(HostDevice("compute first"), [], lacking="norm3.weight")
    with pytest.raises(BackendError, match=r"block\.engine is not the engine(.|\n)*norm3\.weight"):
        Pipeline.load(bundle, backend=kind, **OPTIONS)
