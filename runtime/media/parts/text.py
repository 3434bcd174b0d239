"""The text encoder as a part: prompts → embeddings, from the bundle's cache where they are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from plugins.errors import UserError
from runtime.media.parts.opened import OpenBundle
from runtime.media.parts.plan import TEXT
from runtime.media.text.embeds_cache import FOLDER, EmbedsCache
from runtime.media.text.encoder import Embeds, TextEncoder, text_layers
from runtime.media.text.prompt import MAX_TOKENS, PromptTokenizer


class TextPart:
    """Encodes prompts that are not in the bundle's cache."""

    name = TEXT

    def __init__(self, opened: OpenBundle) -> None:
        self._opened, self._report = opened, opened.report
        self._cache = EmbedsCache(opened.folder / FOLDER, opened.manifest)
        self._tokenizer: PromptTokenizer | None = None
        self._made: list[TextEncoder] = []

    @property
    def loaded(self) -> bool:
        return any(encoder.loaded for encoder in self._made)

    def load(self) -> None:
        self._opened.begin_checks("text")
        self._encoder.load(stays=True)

    def unload(self) -> None:
        for encoder in self._made:
            encoder.unload()

    def close(self) -> None:
        self.unload()
        self._made.clear()
        self._tokenizer = None

    @property
    def layers(self) -> int:
        """How many there are; 0 where the bundle has no weights."""
        return text_layers(self._opened.weights("text")) if "text" in self._opened.manifest.media_weights else 0

    @property
    def _encoder(self) -> TextEncoder:
        if not self._made:
            opened = self._opened
            ways = opened.staging, opened.kept(self.name)
            self._made.append(TextEncoder(opened.runner, opened.manifest, opened.weights("text"), *ways))
        return self._made[0]

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

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """Those of the prompts that are to be encoded, each once."""
        return [prompt for prompt in dict.fromkeys(prompts) if self._cache.get(prompt) is None]

    def embeddings(self, prompts: Sequence[str], check: Callable[[], None] = lambda: None) -> dict[str, Embeds]:
        """bf16 bits [n, 4096] of each prompt; ``check`` is called after each layer, and may raise."""
        known = {prompt: self._cache.get(prompt) for prompt in prompts}
        found = {prompt: embeds for prompt, embeds in known.items() if embeds is not None}
        missing = [prompt for prompt in known if prompt not in found]
        if missing:
            for prompt, embeds in zip(missing, self._encode(missing, check), strict=True):
                found[prompt] = embeds
                if problem := self._cache.put(prompt, embeds):
                    self._report.note(problem)
        if count := len(known) - len(missing):
            known_ones = "The prompt is known: its" if len(known) == 1 else f"{count} of {len(known)} are known: their"
            self._report.note(f"{known_ones} embeddings come from the cache.")
        return found

    def _encode(self, prompts: Sequence[str], check: Callable[[], None]) -> list[Embeds]:
        ids = [self._reader()(prompt) for prompt in prompts]
        title = "encode the prompt" if len(ids) == 1 else f"encode {len(ids)} prompts"
        self._opened.begin_checks("text")
        with self._report.stage(title) as update:

            def layer_done(done: int, total: int) -> None:
                update(done, total)
                check()

            try:
                made = self._encoder.encode(ids, layer_done)
            finally:
                self._opened.runner.release()
        try:
            self._opened.finish_checks("text")
        except UserError:
            self.unload()
            raise
        return made

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
