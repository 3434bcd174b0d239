"""Prompts to embeddings in the runtime: clean-up, token ids, the encoder on the torch runner, the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

pytest.importorskip("tokenizers")

from safetensors.torch import load_file

from exporter.models import MODELS
from exporter.networks.text.encoder import TEXT_ENCODERS, text_block, text_norm
from exporter.torch_backend.runner import TorchRunner
from plugins.errors import UserError
from runtime.bundle import Manifest
from runtime.media.text.embeds_cache import EmbedsCache
from runtime.media.text.prompt import PromptTokenizer, clean
from runtime.media.text.relative_position import relative_buckets
from tests.support.media_bundle import TEXT_NAME, TOKENIZER, add_media
from tests.support.media_parts import text_encoder
from tests.support.random_bundle import make_random_bundle

SPEC = TEXT_ENCODERS["umt5-tiny"]
Bundle = tuple[Path, Manifest]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    return folder, add_media(folder, make_random_bundle(folder, MODELS["wan-tiny"]))


@torch.no_grad()
def plain(folder: Path, ids: Sequence[int]) -> npt.NDArray[np.uint16]:
    weights = load_file(folder / TEXT_NAME)
    x = weights["token_embedding.weight"][list(ids)].float()
    for layer in range(SPEC.layers):
        own = {n.removeprefix(f"blocks.{layer}."): w for n, w in weights.items() if n.startswith(f"blocks.{layer}.")}
        x = text_block(x, torch.from_numpy(relative_buckets(len(ids))), own, SPEC)
    bits: npt.NDArray[np.uint16] = text_norm(x, weights).view(torch.int16).numpy().view(np.uint16)
    return bits


def test_encoder_is_the_plain_function_for_a_batch(bundle: Bundle) -> None:
    folder, manifest = bundle
    encoder = text_encoder(TorchRunner(manifest, torch.device("cpu")), manifest, folder / TEXT_NAME)
    prompts = [[5, 9, 20, 1], [7, 1], [*range(3, 90), 1]]
    steps = []
    got = encoder.encode(prompts, lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]
    for ids, embeds in zip(prompts, got, strict=True):
        assert embeds.shape == (len(ids), 4096)
        assert np.array_equal(embeds, plain(folder, ids))
    assert encoder.nbytes([4, 2, 88]) > 0


def test_an_id_without_a_row_is_refused(bundle: Bundle) -> None:
    folder, manifest = bundle
    encoder = text_encoder(TorchRunner(manifest, torch.device("cpu")), manifest, folder / TEXT_NAME)
    with pytest.raises(UserError, match="not this text encoder's"):
        encoder.encode([[SPEC.vocabulary, 1]])


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("  a  cat\n on\ta surfboard ", "a cat on a surfboard"),
        ("Tom &amp;amp; Jerry", "Tom & Jerry"),
        ("a\u3000b", "a b"),
    ],
)
def test_clean(prompt: str, wanted: str) -> None:
    assert clean(prompt) == wanted


def test_tokenizer_ends_and_truncates(bundle: Bundle) -> None:
    tokenizer = PromptTokenizer(bundle[0] / TOKENIZER)
    ids = tokenizer("a  cat")
    assert ids[-1] == 1
    assert ids == tokenizer(" a cat ")
    long = tokenizer("x " * 600)
    assert len(long) == 512
    assert long[-1] == 1
    with pytest.raises(UserError, match="empty"):
        tokenizer(" \n ")


def test_cache_keeps_by_prompt_and_weights(bundle: Bundle, tmp_path: Path) -> None:
    folder, manifest = bundle
    cache = EmbedsCache(tmp_path / "embeds", manifest)
    embeds = np.arange(8192, dtype=np.uint16).reshape(2, 4096)
    assert cache.get("a cat") is None
    assert cache.put("a cat", embeds) is None
    kept = cache.get(" a  cat")
    assert kept is not None
    assert np.array_equal(kept, embeds)
    assert cache.get("a dog") is None
    other = add_media(folder, manifest, seed=99)
    assert EmbedsCache(tmp_path / "embeds", other).get("a cat") is None
    cache.path("a cat").write_bytes(b"damaged")
    assert cache.get("a cat") is None
