"""The tiny decoder in an export: published files, strict checks, real engines for every RTX part, a video from them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

for _module in ("onnx_graphsurgeon", "tensorrt_rtx", "av", "tokenizers"):
    pytest.importorskip(_module)

import msgspec
from safetensors.torch import save_file

from exporter.builder.child import BuildRequest
from exporter.builder.parent import build_engine
from exporter.export import export_bundle
from exporter.gpus import GPUS
from exporter.models import MODELS
from exporter.networks.tiny.spec import TINY_DECODERS, TinySpec
from exporter.packing.component import ComponentCheckpoint, pack_component
from exporter.packing.formats import component_format, tiny_format
from exporter.spec import export_spec
from plugins.errors import UserError
from runtime.bundle import load_manifest, verify_files
from runtime.checks import rebuild_command
from runtime.weights.file import WeightsFile
from tests.support.exported import Exported
from tests.support.plain_tiny import PlainTiny
from tests.support.progress import SilentProgress

MODEL = MODELS["wan-tiny"]
SPEC = TINY_DECODERS[MODEL.tiny_decoder]
#: One part of each architecture but sm_120: the builder takes a table's GPU by its architecture alone.
PARTS = list({gpu.sm: gpu for gpu in GPUS.values() if gpu.flavour == "tensorrt_rtx" and gpu.sm != 120}.values())


def published(spec: TinySpec = SPEC, **changes: Any) -> dict[str, torch.Tensor]:
    """A checkpoint as TAEHV's: fp16, with an encoder."""
    torch.manual_seed(0)
    state = {name: tensor.half() for name, tensor in PlainTiny(spec).state_dict().items()}
    return {"encoder.0.weight": torch.zeros(64, 3, 3, 3).half(), **state, **changes}


def test_publications_pack_to_the_same_bytes(tmp_path: Path) -> None:
    """TAEHV's .pth, its safetensors, one that another program wrapped, and a folder that holds one."""
    (tmp_path / "folder").mkdir()
    state = published()
    torch.save(state, tmp_path / "taew2_1.pth")
    save_file(state, tmp_path / "folder" / "taew2_1.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "wrapped.safetensors")
    form, packed = component_format(MODEL, "tiny"), []
    for name in ("taew2_1.pth", "folder", "wrapped.safetensors"):
        source = ComponentCheckpoint(tmp_path / name, form)
        assert [part.removeprefix("module.") for part in source.passed_over] == ["encoder.0.weight"]
        pack_component(source, form, tmp_path / "tiny.safetensors")
        packed.append((tmp_path / "tiny.safetensors").read_bytes())
    assert packed[0] == packed[1] == packed[2]
    file = WeightsFile(tmp_path / "tiny.safetensors")
    assert file.read("decoder.1.weight").tobytes() == state["decoder.1.weight"].numpy().tobytes()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (published(TinySpec("taew2_2", widths=(32, 16, 8, 8), latent=48, blocks=1)), "TAEHV of 48 latent channels"),
        (published(TinySpec("more", widths=(32, 16, 8, 8), blocks=2)), "and 6 memory blocks"),
        (
            {"decoder.conv1.weight": torch.zeros(8, 16, 3, 3, 3), "conv2.weight": torch.zeros(16, 16, 1, 1, 1)},
            "a VAE of",
        ),
        (published(**{"decoder.1.bias": torch.full((32,), torch.inf).half()}), "holds NaN or infinity"),
    ],
    ids=["another latent", "another depth", "the VAE", "infinity"],
)
def test_what_is_none_is_called_by_name(tmp_path: Path, state: dict[str, torch.Tensor], words: str) -> None:
    save_file(state, tmp_path / "x.safetensors")
    form = tiny_format(SPEC)
    with pytest.raises(UserError, match=words):
        pack_component(ComponentCheckpoint(tmp_path / "x.safetensors", form), form, tmp_path / "tiny.safetensors")


@pytest.mark.parametrize("gpu", PARTS, ids=lambda gpu: gpu.name)
def test_engines_build_for_every_rtx_part(bundle: Path, tmp_path: Path, gpu: Any) -> None:
    """The bundle's own are for sm_120. Of the published widths each was built once, when this was written."""
    for stage in load_manifest(bundle).stages_of("tiny"):
        engine, log = tmp_path / f"{stage.name}.engine", str(tmp_path / "log")
        profile = (stage.profile.min, stage.profile.opt, stage.profile.max)
        onnx = str(bundle / stage.onnx)
        build_engine(
            BuildRequest(onnx=onnx, engine=str(engine), log=log, gpu=gpu.name, profile=profile), lambda *_: None
        )
        assert engine.stat().st_size > 50_000


@pytest.fixture(scope="module")
def bundle(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's bundle, with the tiny decoder added to it."""
    folder = Path(shutil.copytree(exported.folder, tmp_path_factory.mktemp("tiny") / exported.folder.name))
    torch.save(published(), folder.parent / "taew2_1.pth")
    options: dict[str, Any] = {"vae_decoder": "tiny", "tiny_vae": str(folder.parent / "taew2_1.pth")}
    spec = export_spec(model="wan-tiny", gpu="rtx5090", out=folder.parent, components="dit", **options)
    export_bundle(spec, SilentProgress())
    return folder


def test_a_bundle_with_it(bundle: Path, exported: Exported) -> None:
    """Everything else is as without it, and the command that makes it again says so."""
    manifest, without = load_manifest(bundle), load_manifest(exported.folder)
    assert verify_files(bundle, manifest) == []
    assert manifest.components == ("dit", "tiny")
    assert manifest.media_weights == {"tiny": "tiny.safetensors"}
    assert manifest.stages_of("dit") == without.stages_of("dit")
    assert [stage.name for stage in manifest.stages_of("tiny")] == ["tiny_first", "tiny_next"]
    assert all(stage.activation_bytes for stage in manifest.stages_of("tiny"))
    assert "--components dit --vae-decoder tiny" in rebuild_command(manifest)
    usual = msgspec.structs.replace(manifest, stages=without.stages)
    assert "--vae-decoder" not in rebuild_command(usual)


def test_weights_without_the_decoder_are_refused() -> None:
    with pytest.raises(UserError, match="--tiny-vae is for a decoder"):
        export_spec(model="wan-tiny", gpu="rtx5090", tiny_vae="x")
    with pytest.raises(UserError, match="--vae-decoder 'small' is not known"):
        export_spec(model="wan-tiny", gpu="rtx5090", vae_decoder="small")
