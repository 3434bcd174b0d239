"""Which files a --checkpoint value means: the two experts of Wan2.2, and Hugging Face ids."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from exporter.checkpoint.experts import expert_paths
from exporter.checkpoint.hub import look_for, resolve
from exporter.checkpoint.hub_id import parse_hub_id
from exporter.models import MODELS
from exporter.spec import export_spec
from plugins.errors import UserError
from runtime.bundle import load_manifest
from tests.support.progress import SilentProgress

TINY = MODELS["wan-tiny"]
I2V = MODELS["wan2.2-i2v-a14b-720p"]


# --- experts ---


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("files", "high", "low"),
    [
        (("high_noise_model/x.safetensors", "low_noise_model/x.safetensors"), "high_noise_model", "low_noise_model"),
        (("transformer/x.safetensors", "transformer_2/x.safetensors"), "transformer", "transformer_2"),
        (("Turbo-high-720P.pth", "Turbo-low-720P.pth", "x.json"), "Turbo-high-720P.pth", "Turbo-low-720P.pth"),
        (
            ("wan_highway_low.safetensors", "wan_high.safetensors"),
            "wan_high.safetensors",
            "wan_highway_low.safetensors",
        ),
        (("my_HIGH/x.pth", "my_LOW/x.pth"), "my_HIGH", "my_LOW"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_experts_in_a_folder(files: tuple[str, ...], high: str, low: str, tmp_path: Path) -> None:
    _touch(tmp_path, *files)
    assert expert_paths(str(tmp_path), I2V) == {"high-noise": tmp_path / high, "low-noise": tmp_path / low}


def test_experts_by_name(tmp_path: Path) -> None:
    _touch(tmp_path, "b.pth", "a.pth", "x,y.pth")
    paths = expert_paths(f"{tmp_path}/b.pth, {tmp_path}/a.pth", I2V)
    assert paths == {"high-noise": tmp_path / "b.pth", "low-noise": tmp_path / "a.pth"}
    assert expert_paths(f"{tmp_path}/x,y.pth", TINY) == {"model": tmp_path / "x,y.pth"}


@pytest.mark.parametrize(
    ("files", "value", "message"),
    [
        (("a-high.pth", "b-high.pth", "a-low.pth"), "", "which expert"),
        (("a.pth", "b.pth"), "", "which expert"),
        (("a-high-low.pth",), "", "which expert"),
        (("a.pth",), "a.pth", "is one file"),
        (("a.pth",), "a.pth,{}/a.pth", "same checkpoint"),
        (("a.pth",), "a.pth,{}/a.pth,{}/a.pth", "names 3 checkpoints"),
    ],
)
def test_experts_that_cannot_be_told(files: tuple[str, ...], value: str, message: str, tmp_path: Path) -> None:
    _touch(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        expert_paths(f"{tmp_path}/{value}".replace("{}", str(tmp_path)), I2V)


def test_one_expert_takes_one_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names 2 checkpoints"):
        expert_paths(f"{tmp_path}/a.pth,{tmp_path}/b.pth", TINY)


# --- Hugging Face ---


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("org/repo", ("org/repo", None)),
        ("org/Turbo2.1-1.3B:a-quant.pth", ("org/Turbo2.1-1.3B", "a-quant.pth")),
        ("org/repo@v1.0:a.pth", ("org/repo", "a.pth", "v1.0")),
        ("org/repo@5f5f", ("org/repo", None, "5f5f")),
        ("org/repo/sub/a.safetensors", ("org/repo", "sub/a.safetensors")),
        ("/abs/path", None),
        ("./a/b", None),
        ("../a", None),
        ("org/repo:../../x.pth", None),
        ("org/repo/../x.pth", None),
        ("folder/mistyped.safetensors", None),
        ("name", None),
        ("", None),
    ],
)
def test_hub_ids(text: str, parsed: tuple[str | None, ...] | None) -> None:
    found = parse_hub_id(text)
    assert (None if found is None else tuple(found)) == (None if parsed is None else (*parsed, None)[:3])


class NoRepository(Exception):
    """What the client raises for a repository that the Hub does not have, or does not show."""


class _Hub(types.ModuleType):
    """A stand-in for huggingface_hub that records what it is asked for."""

    def __init__(self, folder: Path, files: list[str], error: Exception | None = None) -> None:
        super().__init__("huggingface_hub")
        self.asked: list[tuple[Any, ...]] = []
        self.questions: list[str] = []

        def answer(*args: object, **options: object) -> str:
            self.asked.append((*args, options))
            if error:
                raise error
            return str(folder)

        def info(api: object, repo: str, **_: object) -> types.SimpleNamespace:
            self.questions.append(repo)
            if error:
                raise error
            siblings = [types.SimpleNamespace(rfilename=name, size=1) for name in files]
            return types.SimpleNamespace(siblings=siblings, card_data=None, sha="5f5f")

        self.hf_hub_download = self.snapshot_download = answer
        self.HfApi = type("HfApi", (), {"model_info": info})
        self.try_to_load_from_cache = lambda *_, **__: None
        self.errors = types.SimpleNamespace(RepositoryNotFoundError=NoRepository, RevisionNotFoundError=NoRepository)
        self.constants = types.SimpleNamespace(HF_HUB_CACHE=str(folder))


def test_hub_snapshot_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["a.pth", "config.json", "README.md", "vae/x.safetensors", "high_noise_model/x.safetensors"]
    hub = _Hub(tmp_path, files)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert resolve("org/repo") == tmp_path
    assert resolve("org/repo:a.pth") == tmp_path
    assert resolve("org/repo/high_noise_model") == tmp_path / "high_noise_model"
    assert hub.asked[0][1]["allow_patterns"] == ["a.pth", "config.json", "high_noise_model/x.safetensors"]
    assert hub.asked[1] == ("org/repo", "a.pth", {"revision": None})
    assert hub.asked[2][1]["allow_patterns"] == ["high_noise_model/x.safetensors"]


def test_hub_with_two_variants_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = _Hub(tmp_path, ["Turbo-480P.pth", "Turbo-480P-quant.pth", "README.md"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(UserError, match=r"org/repo:Turbo-480P-quant\.pth"):
        resolve("org/repo")
    assert not hub.asked


def test_unreachable_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", _Hub(tmp_path, [], ConnectionError("no route")))
    with pytest.raises(UserError, match=r"(?s)org/repo.*ConnectionError: no route.*HF_TOKEN.*local path"):
        resolve("org/repo")


def test_an_unreachable_hub_is_asked_once_and_then_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client would repeat every question for half a minute."""
    hub = _Hub(tmp_path, [], ConnectionError("no route"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    for text in ("org/repo", "org/repo:a.pth", "org/repo/folder"):
        with pytest.raises(UserError, match="no route"):
            resolve(text)
    assert hub.questions == ["org/repo"] * 3
    assert [options["local_files_only"] for *_, options in hub.asked] == [True] * 3
    hub.snapshot_download = lambda *_, **options: str(tmp_path / "cached") if options["local_files_only"] else ""
    assert resolve("org/repo") == tmp_path / "cached"


@pytest.mark.parametrize(
    ("text", "file", "error", "words"),
    [
        ("org/repo", None, NoRepository("404"), r"org/repo.*NoRepository: 404.*HF_TOKEN"),
        ("org/repo:b.pth", None, None, r"org/repo on Hugging Face has no b\.pth.*a-quant\.pth, a\.pth, high/x\.pth"),
        ("org/repo", None, None, r"org/repo:a-quant\.pth"),
        ("org/repo", "tokenizer.json", None, r"has no tokenizer\.json"),
    ],
)
def test_what_the_hub_does_not_have_is_told_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, file: str | None, error: Exception | None, words: str
) -> None:
    hub = _Hub(tmp_path, ["a.pth", "a-quant.pth", "high/x.pth"], error)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(UserError, match=f"(?s){words}"):
        look_for(text, lambda _: None, file)
    assert not hub.asked


def test_gguf_of_the_hub_is_named_without_a_question(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = _Hub(tmp_path, ["a-Q4_K_M.gguf"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(UserError, match="quantized another way: GGUF"):
        look_for("org/repo:a-Q4_K_M.gguf", lambda _: None)
    assert not hub.questions


def test_what_the_hub_has_is_no_path_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = _Hub(tmp_path, ["a.pth", "a-quant.pth", "high/x.pth"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    said: list[str] = []
    asked = [look_for(text, said.append) for text in ("org/repo:a.pth", "org/repo/high", "org/repo:high/x.pth")]
    assert [download.files for found in asked for download in found or ()] == [
        ("a.pth",),
        ("high/x.pth",),
        ("high/x.pth",),
    ]
    assert look_for(str(tmp_path), said.append) is None
    assert (said, hub.asked, len(hub.questions)) == ([], [], 3)


def test_engines_are_kept_where_the_hub_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    from exporter.export import export_bundle

    said = SilentProgress()
    choices: dict[str, Any] = {"gpu": "rtx5090", "out": tmp_path / "engines", "components": "dit"}
    spec = export_spec(model="wan-tiny", checkpoint="org/repo", **choices)
    monkeypatch.setitem(sys.modules, "huggingface_hub", _Hub(tmp_path, [], NoRepository("404")))
    with pytest.raises(UserError, match="NoRepository"):
        export_bundle(spec, said)
    assert (said.titles, spec.bundle_dir.exists()) == ([], False)  # the answer is sure: nothing is built for nothing
    monkeypatch.setitem(sys.modules, "huggingface_hub", _Hub(tmp_path, [], ConnectionError("no route")))
    with pytest.raises(UserError, match="org/repo is neither a path on this machine nor reachable"):
        export_bundle(spec, said)
    assert "org/repo: Hugging Face cannot be reached (ConnectionError: no route)" in said.notes[0]
    engines = [stage.engine for stage in load_manifest(spec.bundle_dir).stages]
    assert all((spec.bundle_dir / str(name)).stat().st_size for name in engines)
    assert len(engines) == 3


def test_local_paths_never_ask_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = _Hub(tmp_path, [])
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    (tmp_path / "org/repo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/repo") == Path("org/repo")
    with pytest.raises(UserError, match="no checkpoint"):
        resolve("/no/such/file.pth")
    assert not hub.asked


def test_a_hub_cache_that_cannot_be_written_is_told_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the work, and after a download that failed for it; what is cached already may be read."""
    hub = _Hub(Path("/proc/cache"), ["a.pth"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(UserError, match=r"(?s)cache /proc/cache cannot be written.*HF_HUB_CACHE \(or HF_HOME\)"):
        look_for("org/repo", print)
    assert resolve("org/repo") == Path("/proc/cache")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", "/proc/cache/x")

    hub.snapshot_download = refuse
    with pytest.raises(UserError, match=r"cache /proc/cache cannot be written"):
        resolve("org/repo")
