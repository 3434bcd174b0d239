"""Targets of what a user gives: pictures, files of prompts, prompts, tokenizers."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from exporter.cli.videos import read_prompts
from exporter.terminal import printable
from runtime.media.files.picture import open_image
from runtime.media.text.prompt import PromptTokenizer, clean
from tests.fuzz.mutations import PIECES, TEXTS, bytes_of, structure
from tests.fuzz.target import Case, Target
from tests.support.media_bundle import write_tokenizer

_KINDS = {"PNG": ("RGB", "RGBA", "P", "LA", "I;16", "1"), "TIFF": ("RGB", "I;16", "F", "CMYK"), "JPEG": ("RGB", "CMYK")}
_OTHERS = {"WEBP": ("RGB", "RGBA"), "GIF": ("P",), "BMP": ("RGB", "L"), "AVIF": ("RGB",)}
_SEEDS = (" --seed 7", "--seed -1", " --seed " + "9" * 5000, " " * 100_000)
_LINES = ("a cat", *_SEEDS, "\n", "\r", "\r\n", "\ufeff", "\u2028", "\x00", "猫", *TEXTS[:-3])


def _pictures(made: Path) -> Case:
    random_pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    whole: list[bytes] = []
    Image.init()
    for kind, modes in {**_KINDS, **_OTHERS}.items():
        for mode in modes if kind in Image.SAVE else ():
            stream = io.BytesIO()
            exif = Image.Exif()
            exif[0x0112] = 6
            Image.fromarray(random_pixels).convert("L" if mode == "F" else "RGB").convert(mode).save(
                stream, format=kind, **({} if kind in ("GIF", "BMP") else {"exif": exif})
            )
            whole.append(stream.getvalue())

    def case(dice: random.Random, folder: Path) -> None:
        (folder / "x.png").write_bytes(bytes_of(dice.choice(whole), dice, 6))
        assert open_image(folder / "x.png").mode == "RGB"

    return case


def _prompts(made: Path) -> Case:
    def case(dice: random.Random, folder: Path) -> None:
        text = "".join(dice.choice(_LINES) for _ in range(dice.randrange(12)))
        data = text.encode("utf-8", "surrogatepass") if dice.random() < 0.5 else text.encode("utf-16", "replace")
        (folder / "prompts.txt").write_bytes(bytes_of(data, dice, 2))
        for video in read_prompts(folder / "prompts.txt", 0):
            assert video.prompt is not None
            assert clean(video.prompt) == clean(clean(video.prompt)) or "&" in video.prompt
            assert "\x1b" not in printable(video.prompt)

    return case


def _tokenizers(made: Path) -> Case:
    write_tokenizer(made / "tokenizer.json")
    whole = (made / "tokenizer.json").read_bytes()
    plain = json.loads(whole)

    def case(dice: random.Random, folder: Path) -> None:
        changed = json.dumps(structure(plain, dice, 2)).encode() if dice.random() < 0.7 else bytes_of(whole, dice)
        (folder / "tokenizer.json").write_bytes(changed)
        reader = PromptTokenizer(folder / "tokenizer.json")
        prompt = dice.choice(("a cat", "猫 &amp;", "x" * 700, "\udcff", *(str(piece) for piece in PIECES)))
        assert len(reader(prompt)) <= 512
        reader.cut(prompt)

    return case


INPUT_TARGETS = (
    Target("pictures", _pictures, 400),
    Target("prompts", _prompts, 400),
    Target("tokenizers", _tokenizers, 300),
)
