"""Official weights and diffusers' repositories, fetched by Hugging Face's own client from a Hub on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("huggingface_hub")

from exporter.checkpoint.download import Download, tell_downloads
from exporter.checkpoint.experts import expert_paths, look_for_checkpoint
from exporter.checkpoint.hub import look_for, pinned, resolve
from exporter.checkpoint.hub_id import HubId, wanted_files
from exporter.models import MODELS
from exporter.releases import RELEASES, TOKENIZER, official_checkpoint, official_component
from exporter.spec import export_spec
from plugins.errors import UserError
from tests.support.hub_server import COMMIT, Hub, serving
from tests.support.progress import SilentProgress

I2V = MODELS["wan2.2-i2v-a14b-720p"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Every official repository, its files a few hundred bytes each, and a repository in diffusers' layout."""
    repositories: dict[str, dict[str, Path]] = {}

    def add(repo: str, name: str) -> None:
        path = tmp_path / "hub" / repo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{repo}/{name} ".encode() * 20)
        repositories.setdefault(repo, {})[name] = path

    for release in RELEASES.values():
        for text in (*release.float_, *release.quantized, release.text, release.vae):
            add(*text.split(":"))
    add(TOKENIZER, "tokenizer.json")
    for name in (
        "model_index.json",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "transformer_2/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/spiece.model",
        "vae/diffusion_pytorch_model.safetensors",
        "README.md",
    ):
        add("someone/Turbo-Diffusers", name)
    with serving(Hub(repositories), tmp_path / "cache", monkeypatch) as made:
        yield made


@pytest.mark.parametrize("model", RELEASES)
@pytest.mark.parametrize("word", ["official", "official-quant"])
def test_the_words_name_the_models_own_files(hub: Hub, model: str, word: str) -> None:
    paths = expert_paths(word, MODELS[model])
    assert list(paths) == list(MODELS[model].experts)
    for expert, path in paths.items():
        assert ("-quant." in path.name) == (word == "official-quant")
        assert MODELS[model].experts[0] == "model" or expert.partition("-")[0] in path.name
        source = pinned(path)
        assert source is not None
        assert f"@{COMMIT}:" in source
        assert source.replace(f"@{COMMIT}", "") in official_checkpoint(word, MODELS[model])
    assert sorted(hub.fetched) == sorted(path.name for path in paths.values())  # and nothing else


def test_size_and_licence_are_said_before_a_byte_is_fetched(hub: Hub) -> None:
    said: list[str] = []
    downloads = look_for_checkpoint("official", I2V, said.append, linear="int8")
    assert downloads is not None
    tell_downloads(downloads, said.append)
    assert hub.fetched == {}
    assert [line.partition(" at ")[0] for line in said] == list(RELEASES[I2V.name].float_)
    assert all("to download, licence apache-2.0" in line for line in said)
    assert (
        downloads[0].bytes == hub.repositories[downloads[0].hub_id.split(":")[0]][downloads[0].files[0]].stat().st_size
    )
    expert_paths("official", I2V)
    again = look_for_checkpoint("official", I2V, said.append, linear="int8")
    assert again is not None
    assert [download.files for download in again] == [(), ()]
    said.clear()
    tell_downloads(again, said.append)
    assert said == []  # nothing is missing any more


def test_an_official_export_asks_for_text_encoder_and_vae_too(hub: Hub) -> None:
    from exporter.packing.media import check_media

    spec = export_spec(model="wan2.1-1.3b-480p", gpu="rtx5090", checkpoint="official")
    release = RELEASES[spec.model.name]
    assert [download.hub_id for download in check_media(spec, SilentProgress())] == [release.text, release.vae]
    alone = export_spec(model="wan2.1-1.3b-480p", gpu="rtx5090", checkpoint="official", components="dit")
    assert check_media(alone, SilentProgress()) == []
    words = export_spec(model="wan2.1-1.3b-480p", gpu="rtx5090", vae="official")
    assert [download.hub_id for download in check_media(words, SilentProgress())] == [release.vae]


def test_an_interrupted_download_goes_on(hub: Hub) -> None:
    text = RELEASES["wan2.1-1.3b-480p"].float_[0]
    repo, name = text.split(":")
    whole = hub.repositories[repo][name]
    whole.write_bytes(bytes(range(256)) * (24 << 12))
    hub.cut_after = 22 << 20  # the client writes pieces of 10 MB: two of them are there
    path = resolve(text)
    assert path.read_bytes() == whole.read_bytes()
    assert hub.fetched[name] == (22 << 20) + whole.stat().st_size - 20 * 2**20


@pytest.mark.parametrize(
    ("part", "fetched"),
    [
        ("text", ["model.safetensors", "tokenizer.json"]),
        ("vae", ["diffusion_pytorch_model.safetensors"]),
    ],
)
def test_of_diffusers_layout_a_part_is_fetched(hub: Hub, part: Any, fetched: list[str]) -> None:
    folder = resolve("someone/Turbo-Diffusers", part)
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == fetched


def test_of_diffusers_layout_both_experts_are_found(hub: Hub) -> None:
    paths = expert_paths("someone/Turbo-Diffusers", I2V)
    assert [path.name for path in paths.values()] == ["transformer", "transformer_2"]
    files = sorted(path.name for path in paths["high-noise"].iterdir())
    assert len(files) == 3
    assert not (paths["high-noise"].parent / "vae").exists()


def test_the_tokenizer_comes_along_with_diffusers_text_encoder(hub: Hub) -> None:
    folder = resolve("someone/Turbo-Diffusers", "text")
    assert (folder / "tokenizer" / "tokenizer.json").is_file()


def test_a_revision_may_be_named(hub: Hub) -> None:
    path = resolve(f"someone/Turbo-Diffusers@{COMMIT}:vae/diffusion_pytorch_model.safetensors")
    assert path.is_file()
    with pytest.raises(UserError, match="neither a path on this machine nor reachable"):
        resolve("someone/Turbo-Diffusers@v9:vae/diffusion_pytorch_model.safetensors")


def test_a_full_disk_is_told_before_the_download(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    downloads = look_for("someone/Turbo-Diffusers", print)
    assert downloads is not None
    with pytest.raises(UserError, match=r"(?s)no room for the download.*HF_HUB_CACHE"):
        tell_downloads(downloads, print)
    nothing = Download("org/repo", (), 0, Path("/nowhere"), None, None)
    tell_downloads([nothing], print)


def test_quantized_files_for_bf16_are_refused_before_the_download(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"-quant checkpoint: its block Linears are INT8 already"):
        look_for_checkpoint("official-quant", MODELS["wan2.1-14b-480p"], print, linear="bf16")
    assert hub.fetched == {}


def test_nobody_publishes_wan_tiny() -> None:
    with pytest.raises(UserError, match="Nobody publishes weights of wan-tiny"):
        official_checkpoint("official", MODELS["wan-tiny"])
    with pytest.raises(UserError, match="Nobody publishes weights of wan-tiny"):
        official_component("official", "vae", MODELS["wan-tiny"])


def test_every_real_model_has_a_release() -> None:
    assert set(RELEASES) == set(MODELS) - {"wan-tiny"}
    for name, release in RELEASES.items():
        assert len(release.float_) == len(release.quantized) == len(MODELS[name].experts)


@pytest.mark.parametrize(
    ("files", "part", "wanted"),
    [
        (("a.pth", "models_t5_x.pth", "Wan2.1_VAE.pth", "google/umt5-xxl/tokenizer.json"), "dit", {"a.pth"}),
        (
            ("a.pth", "models_t5_x.pth", "google/umt5-xxl/tokenizer.json"),
            "text",
            {"models_t5_x.pth", "google/umt5-xxl/tokenizer.json"},
        ),
        (("a.pth", "models_t5_x.pth", "Wan2.1_VAE.pth"), "vae", {"Wan2.1_VAE.pth"}),
        (("model.safetensors", "config.json", "README.md"), "text", {"model.safetensors", "config.json"}),
    ],
)
def test_what_a_release_holds_of_each_part(files: tuple[str, ...], part: Any, wanted: set[str]) -> None:
    assert set(wanted_files(HubId("org/repo"), files, part)) == wanted
