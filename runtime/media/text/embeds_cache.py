"""Embeddings on disk, by the hash of the prompt, the tokenizer and the text encoder's weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from plugins.errors import UserError
from runtime.bundle import Manifest
from runtime.media.text.encoder import Embeds
from runtime.media.text.prompt import clean
from runtime.numerics import from_bf16_bits, to_bf16_bits
from runtime.tensor_files import read_tensor, write_tensors

_NAME = "text_embeds"
FOLDER = "embeds"  # in the bundle


class EmbedsCache:
    """Files ``<hash>.safetensors`` in a folder, as ``--embeds`` takes them. One that cannot be read is not there."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        files = [manifest.media_weights.get("text", ""), manifest.tokenizer or ""]
        self._basis = " ".join(manifest.files[name].sha256 for name in files if name)

    def path(self, prompt: str) -> Path:
        """The file of a prompt."""
        digest = hashlib.sha256(f"{self._basis}\n{clean(prompt)}".encode()).hexdigest()
        return self._folder / f"{digest[:32]}.safetensors"

    def get(self, prompt: str) -> Embeds | None:
        """What was put for this prompt."""
        path = self.path(prompt)
        if not path.is_file():
            return None
        try:
            found = read_tensor(path, _NAME)
        except UserError:
            return None
        return to_bf16_bits(found) if found.dtype == np.float32 and found.ndim == 2 else None

    def put(self, prompt: str, embeds: Embeds) -> str | None:
        """Keep a prompt's embeddings; what went wrong, or None: a bundle may lie where nothing can be written."""
        try:
            self._folder.mkdir(exist_ok=True)
            write_tensors(self.path(prompt), {_NAME: from_bf16_bits(embeds)}, {})  # numpy has no bfloat16
        except (OSError, UserError) as error:
            return f"The embeddings were not kept for the next run: {str(error).splitlines()[0]}"
        return None
