"""Several writers of one bundle: each reads the manifest that the last one wrote, and nothing of anybody is lost."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exporter import export as exporting
from exporter.bundle.contents import check_folder, keep_others
from exporter.bundle.swap import staging_folder
from exporter.bundle_lock import bundle_turn
from exporter.checkpoint import experts
from exporter.models import MODELS
from exporter.packing import dit
from exporter.packing.dit import PackedWeights, pack_into
from exporter.spec import ExportSpec, export_spec
from plugins.errors import UserError
from runtime.bundle import LOCK_NAME, Manifest, file_info, load_manifest, verify_files, write_manifest
from tests.support.bundle_factory import make_bundle
from tests.support.killed import forked
from tests.support.progress import SilentProgress

TINY = MODELS["wan-tiny"]
PAUSE = 0.05  # seconds between reading and writing a manifest, where others would come in between


@pytest.fixture
def spec(tmp_path: Path) -> ExportSpec:
    """Of a bundle that is there."""
    spec = export_spec(model="wan-tiny", gpu="rtx5090", out=tmp_path / "engines", onnx_only=True, components="dit")
    make_bundle(spec.bundle_dir)
    return spec


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def slow_packing(monkeypatch: pytest.MonkeyPatch, seen: list[set[str]]) -> None:
    """Packing writes a few bytes, slowly; ``seen`` gets the files that its manifest listed."""

    def pack_checkpoint(checkpoint: str, model: object, out: Path, *, bundle: Manifest, **_: Any) -> PackedWeights:
        seen.append(set(bundle.files))
        time.sleep(PAUSE)
        out.write_bytes(checkpoint.encode())
        return PackedWeights({"model": out}, True, {out.name: file_info(out)})

    monkeypatch.setattr(experts, "look_for_checkpoint", lambda *_, **__: None)
    monkeypatch.setattr(dit, "pack_checkpoint", pack_checkpoint)
    monkeypatch.setattr(exporting, "pack_checkpoint", pack_checkpoint)


def together(*works: Callable[[], object]) -> None:
    """All at once, each in a thread; what one raises is raised."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_packs_and_exports_at_once_lose_nothing(spec: ExportSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packs under two names and two exports: each sees what those before it listed, whatever their order."""
    seen: list[set[str]] = []
    slow_packing(monkeypatch, seen)
    monkeypatch.setattr(exporting, "_check_sources", lambda *_: None)

    def make(spec: ExportSpec, stages: object, turn: Any, report: object) -> tuple[list[Any], Manifest]:
        with staging_folder(turn) as staging:
            previous = load_manifest(turn.folder)
            time.sleep(PAUSE)
            for name in previous.files:
                (staging / name).write_bytes((turn.folder / name).read_bytes())
            (name := f"{len(previous.files)}.plan") and (staging / name).write_bytes(b"new")
            manifest = msgspec.structs.replace(previous, files={**previous.files, name: file_info(staging / name)})
            write_manifest(staging, manifest)
            keep_others(turn.folder, staging, previous)
        return [], manifest

    monkeypatch.setattr(exporting, "_make", make)

    def pack(name: str) -> None:
        asked: dict[str, Any] = {"linear": None, "attention": None, "progress": SilentProgress()}
        pack_into("bytes of " + name, TINY, spec.bundle_dir / name, **asked)

    def export() -> None:
        exporting.export_bundle(replace(spec, checkpoint="x"), SilentProgress())

    before = load_manifest(spec.bundle_dir)
    together(lambda: pack("weights.safetensors"), export, lambda: pack("weights-2.safetensors"), export)
    after = load_manifest(spec.bundle_dir)
    assert verify_files(spec.bundle_dir, after) == []
    made = {name for name in after.files if name not in before.files and name.endswith(".plan")}
    assert len(made) == 2, "an export is lost"
    assert len(seen) == 4
    assert [len(files) for files in seen] == sorted(len(files) for files in seen), "a writer did not see the last one"
    assert {"weights.safetensors", "weights-2.safetensors"} <= names(spec.bundle_dir)
    assert LOCK_NAME not in names(spec.bundle_dir)


def test_a_writer_says_for_whom_it_waits_and_a_killed_one_holds_nothing(spec: ExportSpec) -> None:
    notes: list[str] = []

    def hold(pause: Callable[[], None]) -> None:
        with bundle_turn(spec.bundle_dir, print):
            pause()

    def wait() -> None:
        with bundle_turn(spec.bundle_dir, notes.append):
            notes.append("it is ours")

    with forked(hold) as child:
        waiting = threading.Thread(target=wait)
        waiting.start()
        while not notes:
            time.sleep(0.001)
        assert f"process {child} on " in notes[0]
        assert "waiting for its end" in notes[0]
        assert waiting.is_alive()
    waiting.join(10)
    assert notes[1:] == ["it is ours"]
    assert LOCK_NAME not in names(spec.bundle_dir)


def test_who_waited_while_the_folder_was_replaced_gets_the_new_one(spec: ExportSpec) -> None:
    found: list[bool] = []

    def wait() -> None:
        with bundle_turn(spec.bundle_dir, lambda _: waits.set()) as turn:
            found.append((turn.folder / "new").is_file())
            assert (turn.folder / LOCK_NAME).is_file()

    waits = threading.Event()
    with bundle_turn(spec.bundle_dir, print) as turn:
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert waits.wait(10)
        with staging_folder(turn) as staging:
            (staging / "new").touch()
        time.sleep(PAUSE)
        assert found == []
    waiting.join(10)
    assert found == [True]


def test_an_export_killed_anywhere_leaves_one_bundle_or_the_other(spec: ExportSpec) -> None:
    """A fork swaps whole folders as fast as it can and is killed at a random time, forty times."""
    after = random.Random(15)

    def swap_for_ever(seconds: float) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process, as SIGKILL does
        signal.setitimer(signal.ITIMER_REAL, seconds)
        for count in range(1 << 30):
            with bundle_turn(spec.bundle_dir, print) as turn, staging_folder(turn) as staging:
                for name in ("a", "b", "c"):
                    (staging / name).write_text(str(count))

    for _ in range(40):
        seconds = after.uniform(0.001, 0.03)
        if (child := os.fork()) == 0:
            try:
                swap_for_ever(seconds)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGALRM
        held = names(spec.bundle_dir) - {LOCK_NAME}
        assert held == {"a", "b", "c"} or "manifest.json" in held, held
        if "manifest.json" not in held:
            assert len({(spec.bundle_dir / name).read_text() for name in held}) == 1, "of two exports"
    with bundle_turn(spec.bundle_dir, print) as turn, staging_folder(turn):
        assert names(spec.bundle_dir.parent) == {spec.bundle_dir.name, f".{spec.bundle_dir.name}.partial"}
    assert names(spec.bundle_dir.parent) == {spec.bundle_dir.name}


def test_where_folders_cannot_change_names_at_once(spec: ExportSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network file systems: two renames, and the same end."""

    def refuse(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("exporter.bundle.swap._exchange", refuse)
    with bundle_turn(spec.bundle_dir, print) as turn, staging_folder(turn) as staging:
        (staging / "new").touch()
    assert names(spec.bundle_dir) == {"new"}
    assert names(spec.bundle_dir.parent) == {spec.bundle_dir.name}


@pytest.mark.parametrize("manifest", ["none", "damaged"])
def test_a_folder_of_other_files_is_refused(manifest: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    (tmp_path / "block.onnx").touch()
    if manifest == "damaged":
        (tmp_path / "manifest.json").write_text("{")
    before = names(tmp_path)
    with pytest.raises(UserError, match=r"(?s)holds files that are not a bundle's.*thesis\.docx.*another --out"):
        check_folder(tmp_path, None)
    assert names(tmp_path) == before
    (tmp_path / "thesis.docx").unlink()
    check_folder(tmp_path, None)  # what is left is an export's


def test_unknown_files_of_a_bundle_are_kept(spec: ExportSpec) -> None:
    folder = spec.bundle_dir
    previous = load_manifest(folder)
    (folder / "notes.txt").write_text("keep me")
    (folder / "weights-backup.safetensors").write_bytes(b"mine")
    (folder / "embeds").mkdir()
    (folder / "embeds" / "0.safetensors").write_bytes(b"cached")
    (folder / "link").symlink_to("notes.txt")
    (folder / "block.jitcache").write_bytes(b"of the engine that goes")
    (folder / ".turbotrt-vm-1-0123456789ab.partial").write_bytes(b"half")
    with bundle_turn(folder, print) as turn, staging_folder(turn) as staging:
        check_folder(turn.folder, previous)
        (staging / "block.onnx").write_bytes(b"new")
        keep_others(turn.folder, staging, previous)
    assert names(folder) == {"notes.txt", "weights-backup.safetensors", "embeds", "link", "block.onnx"}
    assert (folder / "notes.txt").read_text() == "keep me"
    assert (folder / "embeds" / "0.safetensors").read_bytes() == b"cached"
    assert (folder / "link").readlink() == Path("notes.txt")
    assert (folder / "block.onnx").read_bytes() == b"new"


def test_files_are_copied_where_links_cannot_be(spec: ExportSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    (spec.bundle_dir / "notes.txt").write_text("keep me")
    monkeypatch.setattr("os.link", refuse)
    with bundle_turn(spec.bundle_dir, print) as turn, staging_folder(turn) as staging:
        keep_others(turn.folder, staging, load_manifest(turn.folder))
    assert (spec.bundle_dir / "notes.txt").read_text() == "keep me"


def test_a_linked_bundle_is_written_through(spec: ExportSpec, tmp_path: Path) -> None:
    real = tmp_path / "disk" / "bundle"
    real.parent.mkdir()
    spec.bundle_dir.rename(real)
    spec.bundle_dir.symlink_to(real)
    with bundle_turn(spec.bundle_dir, print) as turn, staging_folder(turn) as staging:
        (staging / "new").touch()
    assert spec.bundle_dir.is_symlink()
    assert names(real) == {"new"}
    assert names(real.parent) == {"bundle"}

    spec.bundle_dir.unlink()
    spec.bundle_dir.symlink_to(tmp_path / "unmounted" / "bundle")
    with pytest.raises(UserError, match="is a link to nowhere"), bundle_turn(spec.bundle_dir, print):
        pass
    assert not (tmp_path / "unmounted").exists()


def test_a_turn_for_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the work failed"), bundle_turn(tmp_path / "a" / "b", print):
        raise UserError("the work failed.")
    assert list(tmp_path.iterdir()) == []
