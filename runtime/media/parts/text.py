"""The text encoder as a part: prompts → embeddings, from the bundle's cache where they are known."""

from __future__ import annotations

import time
from collections.abc import Sequence

from plugins.errors import UserError
from runtime.media.parts.opened import OpenBundle
from runtime.media.parts.plan import TEXT
from runtime.media.parts.times import Part
from runtime.media.text.embeds_cache import FOLDER, EmbedsCache
from runtime.media.text.encoder import Embeds, TextEncoder
from runtime.media.text.prompt import MAX_TOKENS, PromptTokenizer


class TextPart:
    """Encodes prompts that are not in the bundle's cache."""

    name = TEXT

    def __init__(self, opened: OpenBundle) -> None:
        self._opened, self._report = opened, opened.report
        self._cache = EmbedsCache(opened.folder / FOLDER, opened.manifest)
        self._tokenizer: PromptTokenizer | None = None

    def load(self) -> None:
        """Nothing yet: layers pass through two slots."""

    def unload(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        self._tokenizer = None

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt that is to be encoded; says what of a prompt is not read. Raises UserError."""
        lengths = []
        for prompt in dict.fromkeys(prompts):
            known = self._cache.get(prompt)
            if known is None:
                lengths.append(len(self._reader()(prompt)))
            if (known is None or len(known) == MAX_TOKENS) and (note := self._reader().cut(prompt)) is not None:
                self._report.note(note)
        return lengths

    def embeddings(self, prompts: Sequence[str]) -> dict[str, Embeds]:
        """bf16 bits [n, 4096] of each prompt."""
        started = time.perf_counter()
        known = {prompt: self._cache.get(prompt) for prompt in prompts}
        found = {prompt: embeds for prompt, embeds in known.items() if embeds is not None}
        missing = [prompt for prompt in known if prompt not in found]
        planned, measured = None, None
        if missing:
            made, planned, measured = self._encode(missing)
            for prompt, embeds in zip(missing, made, strict=True):
                found[prompt] = embeds
                if problem := self._cache.put(prompt, embeds):
                    self._report.note(problem)
        if count := len(known) - len(missing):
            known_ones = "The prompt is known: its" if len(known) == 1 else f"{count} of {len(known)} are known: their"
            self._report.note(f"{known_ones} embeddings come from the cache.")
        self._opened.times.append(Part(TEXT, time.perf_counter() - started, planned, measured))
        return found

    def _encode(self, prompts: Sequence[str]) -> tuple[list[Embeds], int, int | None]:
        """Embeddings, and the peak of memory planned and measured."""
        ids = [self._reader()(prompt) for prompt in prompts]
        title = "encode the prompt" if len(ids) == 1 else f"encode {len(ids)} prompts"
        runner, file = self._opened.runner, self._opened.weights("text")
        with self._report.stage(title) as update:
            encoder = TextEncoder(runner, self._opened.manifest, file)
            peak = encoder.nbytes([len(tokens) for tokens in ids])
            try:
                made = encoder.encode(ids, update)
            finally:
                runner.release()
        self._opened.checks.finish()
        return made, peak, runner.device.take_peak()

    def _reader(self) -> PromptTokenizer:
        manifest = self._opened.manifest
        if manifest.tokenizer is None or "text" not in manifest.media_weights:
            raise UserError(
                "The bundle cannot read prompts: it has no text encoder's weights or no tokenizer.",
                remedy="export again with --text-encoder PATH_OR_HF_ID, or give --embeds",
            )
        if self._tokenizer is None:
            self._tokenizer = PromptTokenizer(self._opened.folder / manifest.tokenizer)
        return self._tokenizer
