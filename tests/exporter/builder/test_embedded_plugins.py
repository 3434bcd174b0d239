"""``export --embed-plugins``: engines that carry the plugin library, by the real builder; no driver is needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

trt = pytest.importorskip("tensorrt_rtx")

from exporter.cli.app import app
from exporter.cli.inspection import inspect_bundle
from exporter.export import export_bundle
from exporter.spec import ExportSpec, export_spec
from plugins import library
from plugins.errors import UserError
from runtime.backends.loader import EngineLoader, make_logger
from runtime.backends.protocol import BackendError
from runtime.bundle import file_info, load_manifest, sha256_of, write_manifest
from runtime.host_code import carries_host_code
from tests.support.exported import Exported
from tests.support.progress import SilentProgress

built = pytest.mark.skipif(library.library_path() is None, reason="the plugin library is not built (make native)")


def spec_in(out: Path, *, embed: bool = True) -> ExportSpec:
    return export_spec(model="wan-tiny", gpu="rtx5090", components="dit", out=out, embed_plugins=embed)


@pytest.fixture(scope="module")
def embedded(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's bundle, exported again with the library in its engines."""
    out = tmp_path_factory.mktemp("embedded")
    shutil.copytree(exported.folder, out / exported.folder.name)
    return export_bundle(spec_in(out), SilentProgress())


@built
def test_engines_with_plugins_hold_the_librarys_bytes(embedded: Path, exported: Exported) -> None:
    path = library.library_path()
    assert path is not None
    manifest, before = load_manifest(embedded), load_manifest(exported.folder)
    assert (before.embedded_library, manifest.embedded_library) == (None, sha256_of(path))
    for stage in manifest.stages:
        data = (embedded / str(stage.engine)).read_bytes()
        ours = any(node.startswith(f"{stage.name}.") for node in manifest.plans)
        assert (path.read_bytes() in data) is carries_host_code(embedded / str(stage.engine)) is ours
        plain = before.files[str(stage.engine)]
        assert (data == (exported.folder / str(stage.engine)).read_bytes()) is not ours
        assert manifest.files[str(stage.engine)].inputs != plain.inputs
    assert manifest.plans == before.plans


@built
def test_a_second_export_keeps_them_and_one_without_builds_anew(embedded: Path, exported: Exported) -> None:
    again = SilentProgress()
    manifest = load_manifest(embedded)
    export_bundle(spec_in(embedded.parent), again)
    assert load_manifest(embedded).files == manifest.files
    assert [note for note in again.notes if note.startswith("block.engine")] == ["block.engine: unchanged, kept"]
    plain = embedded.parent / "plain"
    shutil.copytree(embedded, plain / embedded.name)
    bundle = export_bundle(spec_in(plain, embed=False), SilentProgress())
    engines = {name: info for name, info in load_manifest(exported.folder).files.items() if name.endswith(".engine")}
    assert engines.items() <= load_manifest(bundle).files.items()


@built
def test_the_same_bytes_from_another_place(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines carry no path, and no table that follows from one's length."""
    from exporter.builder import child
    from exporter.builder.parent import build_engine

    manifest = load_manifest(embedded)
    block = manifest.stage("block")
    request = child.BuildRequest(
        onnx=str(embedded / block.onnx),
        engine=str(tmp_path / "another name.engine"),
        log=str(tmp_path / "log"),
        gpu="rtx5090",
        profile=(block.profile.min, block.profile.opt, block.profile.max),
        embed=True,
    )
    build_engine(request, lambda *_: None)
    assert file_info(Path(request.engine)).sha256 == manifest.files["block.engine"].sha256


@built
def test_inspect_says_whose_plugins_they_are(embedded: Path, exported: Exported) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(embedded)]).stdout
    assert "in the engines: a library of sha256" in shown
    assert "this installation's" in shown
    assert inspect_bundle(embedded, SilentProgress()).problems == []
    here = json.loads(CliRunner().invoke(app, ["inspect", str(exported.folder), "--json"]).stdout)["plugins_here"]
    assert (here["host"], here["library"]) == ("library", str(library.library_path()))


@built
def test_inspect_finds_code_that_the_manifest_does_not_name(embedded: Path, tmp_path: Path) -> None:
    import msgspec

    shutil.copytree(embedded, tmp_path / "bundle")
    manifest = msgspec.structs.replace(load_manifest(embedded), embedded_library=None)
    write_manifest(tmp_path / "bundle", manifest)
    (problem,) = inspect_bundle(tmp_path / "bundle", SilentProgress()).problems
    assert problem.startswith("block.engine: carries native code")


@built
def test_they_load_by_themselves_as_far_as_the_driver(embedded: Path) -> None:
    """Twice in a process, beside the plugins that others registered: TensorRT takes the library each time."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    log, notes = make_logger(trt), list[str]()
    loader = EngineLoader(trt, log, load_manifest(embedded), notes.append)
    for _ in range(2):
        with pytest.raises(BackendError, match=r"cudaError 35") as told:
            loader.load(embedded / "block.engine")
        assert "exists already" not in str(told.value)
    assert len(notes) == 2


def test_without_a_library_it_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_BUILT", tmp_path / library.FILE_NAME)
    with pytest.raises(UserError, match="There is no plugin library in this installation"):
        export_bundle(spec_in(tmp_path / "out"), SilentProgress())
    assert not (tmp_path / "out").exists()
    listed = CliRunner().invoke(app, ["list"]).stdout
    assert "Plugins here: Python's: this installation has no plugin library" in " ".join(listed.split())
    assert json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)["plugins"]["host"] == "python"


def test_a_library_of_another_turbotrt_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = "version 9.9\nplan-format 99\nplugin-version 1\nops Other\ntensorrt 10.14.1\n"
    (tmp_path / library.FILE_NAME).write_bytes(b"\x7fELF" + library.MARKER + facts.encode() + b"\0")
    monkeypatch.setattr(library, "_BUILT", tmp_path / library.FILE_NAME)
    listed = " ".join(CliRunner().invoke(app, ["list"]).stdout.split())
    assert "was built from another turbotrt" in listed
    plain = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)["plugins"]
    assert plain["host"] is None
    assert "plan format 99" in plain["problem"]
    with pytest.raises(UserError, match="was built from another turbotrt"):
        export_bundle(spec_in(tmp_path / "out"), SilentProgress())


def test_there_must_be_engines_to_put_it_into() -> None:
    with pytest.raises(UserError, match="--embed-plugins is for engines"):
        export_spec(model="wan-tiny", gpu="rtx5090", onnx_only=True, embed_plugins=True)
