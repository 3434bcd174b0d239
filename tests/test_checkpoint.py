"""Opening checkpoints: names, strict checks, files that are damaged, hostile or quantized another way; experts; hub."""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import checkpoints as ck
import pytest
import torch

from exporter.checkpoint import NamedTensors, TensorMeta, expert_paths, open_checkpoint, resolve
from exporter.checkpoint.hub import parse_hub_id
from exporter.checkpoint.safetensors_file import SafetensorsFile
from exporter.checkpoint.table import checkpoint_tensors
from exporter.models import MODELS
from plugins.errors import UserError

TINY = MODELS["wan-tiny"]
I2V = MODELS["wan2.2-i2v-a14b-720p"]
STATE = ck.canonical_state_dict(TINY, 7)


# --- what is read ---


def test_reader_tells_shapes_without_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ck.save_safetensors(tmp_path / "a.safetensors", ck.conv3d(STATE))
    with monkeypatch.context() as patch:
        patch.setattr(SafetensorsFile, "load", lambda self, name: pytest.fail(f"{name} was loaded"))
        reader = open_checkpoint(path, TINY)
        assert set(reader.names) == set(STATE)
        assert reader.meta("patch_embedding.weight") == TensorMeta((256, 64), "bf16")
        assert reader.meta("blocks.1.ffn.0.weight") == TensorMeta((512, 256), "bf16")
    assert reader.has_proj_l
    assert not reader.quantized


@pytest.mark.parametrize("form", ["canonical", "diffusers", "sharded", "pth"])
def test_every_tensor_loads_as_it_was_saved(form: str, tmp_path: Path) -> None:
    path = {
        "canonical": lambda: ck.save_safetensors(tmp_path / "a.safetensors", STATE),
        "diffusers": lambda: ck.save_safetensors(tmp_path / "a.safetensors", ck.diffusers(STATE)),
        "sharded": lambda: ck.save_sharded(tmp_path, STATE),
        "pth": lambda: ck.save_pth(tmp_path / "a.pth", ck.prefixed(STATE, "net."), wrapped=True),
    }[form]()
    reader = open_checkpoint(path, TINY)
    for name, value in STATE.items():
        assert torch.equal(reader.load(name), value), name


def test_extra_state_of_training_modules_is_no_weight(tmp_path: Path) -> None:
    open_checkpoint(ck.save_pth(tmp_path / "a.pth", STATE | {"blocks.0.ffn.0._extra_state": None}), TINY)


def test_a_whole_wan_folder_means_its_transformer(tmp_path: Path) -> None:
    ck.save_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", STATE)
    ck.save_pth(tmp_path / "Wan2.1_VAE.pth", {"x": torch.zeros(1)})
    assert open_checkpoint(tmp_path, TINY).has_proj_l


# --- what does not fit the model ---


def _refused(path: Path, *messages: str, allow: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        open_checkpoint(path, TINY, allow_missing_proj_l=allow)
    for message in messages:
        assert message in str(caught.value), str(caught.value)
    return str(caught.value)


def test_differences_are_listed_together(tmp_path: Path) -> None:
    state = {name: value for name, value in STATE.items() if name != "blocks.0.norm3.bias"}
    state["blocks.1.ffn.0.weight"] = torch.zeros(3, 4)
    state["head.head.bias"] = state["head.head.bias"].double()
    state["img_emb.proj.weight"] = torch.zeros(2)
    _refused(
        ck.save_pth(tmp_path / "a.pth", state),
        "4 differences",
        "missing    blocks.0.norm3.bias: bf16/fp16/fp32 [256]",
        "wrong      blocks.1.ffn.0.weight: fp32 [3, 4] in place of bf16/fp16/fp32 [512, 256]",
        "wrong      head.head.bias: fp64 [64]",
        "unexpected img_emb.proj.weight",
    )


def test_long_lists_are_cut(tmp_path: Path) -> None:
    text = _refused(ck.save_pth(tmp_path / "a.pth", {"x": torch.zeros(1)}), "... and")
    count = len(checkpoint_tensors(TINY)) - 2 * 2 + 1  # without proj_l's two tensors in two blocks, and with x
    assert f"{count} differences" in text
    assert f"... and {count - 20} more" in text


def test_the_model_that_fits_is_named(tmp_path: Path) -> None:
    other = MODELS["wan2.1-14b-480p"]
    shapes = [(name, want.shape) for name, want in checkpoint_tensors(other).items()]
    path = ck.save_sparse(tmp_path / "a.safetensors", shapes)
    text = _refused(path, "it fits --model wan2.1-14b-480p or wan2.1-14b-720p")
    assert "1.3b" not in text
    open_checkpoint(path, other)


def test_missing_proj_l_must_be_asked_for(tmp_path: Path) -> None:
    path = ck.save_pth(tmp_path / "a.pth", ck.without_proj_l(STATE))
    _refused(path, "has no proj_l", "--attention sage")
    reader = open_checkpoint(path, TINY, allow_missing_proj_l=True)
    name = "blocks.1.self_attn.attn_op.local_attn.proj_l.weight"
    assert not reader.has_proj_l
    assert reader.meta(name) == TensorMeta((128, 128), "fp32")
    assert torch.equal(reader.load(name), torch.zeros(128, 128))


def test_half_a_proj_l_is_never_allowed(tmp_path: Path) -> None:
    state = {name: value for name, value in STATE.items() if not ("proj_l" in name and name.startswith("blocks.1"))}
    path = ck.save_pth(tmp_path / "a.pth", state)
    _refused(path, "missing    blocks.1.self_attn.attn_op.local_attn.proj_l.weight", allow=True)


def test_half_quantized_is_refused(tmp_path: Path) -> None:
    state = ck.quantized(STATE) | {"blocks.0.ffn.0.weight": STATE["blocks.0.ffn.0.weight"]}
    del state["blocks.0.ffn.0.int8_weight"]
    _refused(ck.save_pth(tmp_path / "a.pth", state), "missing    blocks.0.ffn.0.int8_weight: int8 [512, 256]")


def test_two_copies_are_refused(tmp_path: Path) -> None:
    _refused(ck.save_pth(tmp_path / "a.pth", STATE | {"net.head.head.bias": STATE["head.head.bias"]}), "twice")


# --- foreign quantization ---

W = "blocks.0.ffn.0."
I8 = torch.zeros((512, 256), dtype=torch.int8)
U8 = I8.view(torch.uint8)
F8 = I8.to(torch.float8_e4m3fn)
FOREIGN: dict[str, tuple[str, ck.State]] = {
    "int8 rows": ("per-channel INT8", {W + "weight": I8, W + "weight_scale": torch.ones(512, 1)}),
    "int8_weight rows": ("per-channel INT8", {W + "int8_weight": I8, W + "scale": torch.ones(512)}),
    "int8 alone": ("INT8 without block scales", {W + "weight": I8}),
    "fp8": ("FP8 (float8)", {W + "weight": F8}),
    "comfyui fp8": ("per-tensor FP8", {W + "weight": F8, W + "scale_weight": torch.ones(()), "scaled_fp8": F8[0, :0]}),
    "fp8 rows": ("per-channel or per-tensor FP8", {W + "weight": F8, W + "weight_scale": torch.ones(512)}),
    "nvfp4": ("NVFP4", {W + "weight": U8, W + "weight_scale": F8, W + "weight_scale_2": F8[0, :1].clone()}),
    "bitsandbytes": ("bitsandbytes", {W + "weight": I8.view(torch.uint8), W + "weight.absmax": torch.ones(9)}),
    "gptq": ("GPTQ/AWQ", {W + "qweight": torch.zeros((4, 4), dtype=torch.int32)}),
    "scale only": ("weight_scale", {W + "weight_scale": torch.ones(512)}),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("scheme", FOREIGN)
def test_foreign_schemes_are_named(scheme: str, suffix: str, tmp_path: Path) -> None:
    message, tensors = FOREIGN[scheme]
    state = {name: value for name, value in STATE.items() if name != W + "weight"} | tensors
    save = ck.save_pth if suffix == "pth" else ck.save_safetensors
    _refused(save(tmp_path / f"a.{suffix}", state), "quantized another way", message)


@pytest.mark.parametrize("name", ["a.gguf", "a.safetensors"])
def test_gguf_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"GGUF" + bytes(100))
    _refused(tmp_path / name, "GGUF")


# --- damaged and hostile files ---


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("form", ["torch.save", "bare pickle", "legacy"])
def test_a_pickle_that_runs_code_is_refused(form: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "a.pth"
    state = STATE | {"evil": _Evil(mark)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"evil": _Evil(mark)}))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "torch.save")
    _refused(path, "run code" if form == "torch.save" else "not a whole .pth file")
    assert not mark.exists()
    if form == "torch.save":  # the trap is a real one
        torch.load(path, weights_only=False)
        assert mark.exists()


def _zip_garbage(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02garbage")
        archive.writestr("archive/version", b"3")


DAMAGED: dict[str, Callable[[Path], object]] = {
    "empty.pth": lambda path: path.write_bytes(b""),
    "garbage.pth": lambda path: path.write_bytes(b"PK\x03\x04" + os.urandom(1000)),
    "zip.pth": _zip_garbage,
    "truncated.pth": lambda path: path.write_bytes(ck.save_pth(path, STATE).read_bytes()[:-5000]),
    "list.pth": lambda path: torch.save([1, 2], path),
    "nested.pth": lambda path: torch.save({"optimizer": {"lr": 1}, "model": STATE}, path),
    "empty.safetensors": lambda path: path.write_bytes(b""),
    "pointer.safetensors": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
    "truncated.safetensors": lambda path: path.write_bytes(ck.save_safetensors(path, STATE).read_bytes()[:-1]),
    "longer.safetensors": lambda path: path.write_bytes(ck.save_safetensors(path, STATE).read_bytes() + b"x"),
    "random.safetensors": lambda path: path.write_bytes((64).to_bytes(8, "little") + os.urandom(200)),
    "model.onnx": lambda path: path.write_bytes(b"x" * 100),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    DAMAGED[name](tmp_path / name)
    _refused(tmp_path / name, name)


def _item(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    "header",
    [
        _item(shape=[3]),
        _item(data_offsets=[0, 16]),
        _item(data_offsets=[-8, 0]),
        _item(data_offsets=[8, 0]),
        _item(data_offsets=[4, 12]),
        _item(shape=[-1, -2]),
        _item(shape=[2.0]),
        _item(shape="2"),
        _item(shape=[2**40, 2**40]),
        _item(dtype="Q9"),
        _item(dtype=None),
        _item() | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        {"a": 5},
        [],
        "[" * 100_000,
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    ],
    ids=lambda value: str(value)[:60],
)
def test_lying_safetensors_headers_are_refused(header: object, tmp_path: Path) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(UserError, match="not a whole safetensors file"):
        NamedTensors(tmp_path / "a.safetensors")


def test_header_of_those_tests_is_sound_when_it_does_not_lie(tmp_path: Path) -> None:
    text = json.dumps(_item()).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    assert NamedTensors(tmp_path / "a.safetensors").load("a").tolist() == [0, 0]


def test_file_cut_after_opening_is_refused(tmp_path: Path) -> None:
    path = ck.save_safetensors(tmp_path / "a.safetensors", STATE)
    reader = open_checkpoint(path, TINY)
    os.truncate(path, 1000)
    with pytest.raises(UserError, match="end of file"):
        reader.load("blocks.0.ffn.0.weight")


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "a/../b.safetensors", "..\\x.safetensors",
                                   "evil.pth", "gone.safetensors"])  # fmt: skip
def test_index_names_only_files_of_its_folder(shard: str, tmp_path: Path) -> None:
    ck.save_safetensors(tmp_path / "outside.safetensors", STATE)
    index = ck.save_sharded(tmp_path / "in", STATE)
    content = json.loads(index.read_text())
    content["weight_map"]["head.head.bias"] = shard
    index.write_text(json.dumps(content))
    _refused(index, "must not" if shard != "gone.safetensors" else "missing")


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    index = ck.save_sharded(tmp_path, STATE)
    content = json.loads(index.read_text())
    content["weight_map"]["no.such"] = content["weight_map"]["head.head.bias"]
    index.write_text(json.dumps(content))
    _refused(index, "does not describe its shards", "no.such")
    for text in ("{", "[]", '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        _refused(index, "index")


def test_folders_that_do_not_tell(tmp_path: Path) -> None:
    _refused(tmp_path, "none")
    ck.save_pth(tmp_path / "a.pth", STATE)
    ck.save_pth(tmp_path / "a-quant.pth", STATE)
    _refused(tmp_path, "a-quant.pth, a.pth", "pass the file itself")
    _refused(tmp_path / "nowhere", "no checkpoint")


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
        ("org/repo/sub/a.safetensors", ("org/repo", "sub/a.safetensors")),
        ("/abs/path", None),
        ("./a/b", None),
        ("../a", None),
        ("org/repo:../../x.pth", None),
        ("org/repo/../x.pth", None),
        ("name", None),
        ("", None),
    ],
)
def test_hub_ids(text: str, parsed: tuple[str, str | None] | None) -> None:
    assert parse_hub_id(text) == parsed


class _Hub(types.ModuleType):
    """A stand-in for huggingface_hub that records what it is asked for."""

    def __init__(self, folder: Path, files: list[str], error: Exception | None = None) -> None:
        super().__init__("huggingface_hub")
        self.asked: list[tuple[object, ...]] = []

        def answer(*args: object, **options: object) -> str:
            self.asked.append((*args, options))
            if error:
                raise error
            return str(folder)

        def listing(api: object, repo: str) -> list[str]:
            if error:
                raise error
            return files

        self.hf_hub_download = self.snapshot_download = answer
        self.HfApi = type("HfApi", (), {"list_repo_files": listing})


def test_hub_snapshot_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = _Hub(tmp_path, ["a.pth"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert resolve("org/repo") == tmp_path
    assert resolve("org/repo:a.pth") == tmp_path
    assert resolve("org/repo/high_noise_model") == tmp_path / "high_noise_model"
    assert hub.asked[0][1]["allow_patterns"] == ["*.safetensors", "*.pth", "*.json"]
    assert hub.asked[1] == ("org/repo", "a.pth", {})
    assert hub.asked[2][1]["allow_patterns"][0] == "high_noise_model/*.safetensors"


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


def test_local_paths_never_ask_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = _Hub(tmp_path, [])
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    (tmp_path / "org/repo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/repo") == Path("org/repo")
    with pytest.raises(UserError, match="no checkpoint"):
        resolve("/no/such/file.pth")
    assert not hub.asked


def test_table_agrees_with_the_published_tensor_count() -> None:
    """Wan's own blocks hold 27 tensors; proj_l adds 2. Outside the blocks there are 15."""
    assert len(checkpoint_tensors(TINY)) == 15 + 29 * TINY.layers
    assert len(checkpoint_tensors(replace(TINY, layers=30))) == 15 + 29 * 30
