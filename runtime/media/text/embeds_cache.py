"""Embeddings on disk, by the hash of the prompt, the tokenizer and the text encoder's weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from plugins.errors import UserError
from runtime.bundle import Manifest
from runtime.media.text.encoder import Embeds
from runtime.media.text.prompt import clean
from runtime.numerics import Array, from_bf16_bits, to_bf16_bits
from runtime.safetensors_header import read_header
from runtime.tensor_files import read_tensor, write_tensors

_NAME = "text_embeds"
_HASH = "sha256"  # in a file's header, of the prompt's key and the tensor's bytes
FOLDER = "embeds"  # in the bundle


class EmbedsCache:
    """Files ``<hash>.safetensors`` in a folder, as ``--embeds`` takes them.

    One that cannot be read, or is not as it was put there, is not there. A bundle comes from anywhere: a folder or a
    file that is a link is not followed out of it.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        files = [manifest.media_weights.get("text", ""), manifest.tokenizer or ""]
        self._basis = " ".join(manifest.files[name].sha256 for name in files if name)

    def path(self, prompt: str) -> Path:
        """The file of a prompt."""
        return self._folder / f"{self._key(prompt)[:32]}.safetensors"

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(f"{self._basis}\n{clean(prompt)}".encode()).hexdigest()

    def _hash(self, prompt: str, array: Array) -> str:
        """What a file's header says, by which one that was changed or renamed is told."""
        return hashlib.sha256(self._key(prompt).encode() + array.tobytes()).hexdigest()

    def get(self, prompt: str) -> Embeds | None:
        """What was put for this prompt."""
        path = self.path(prompt)
        if self._folder.is_symlink() or path.is_symlink() or not path.is_file():
            return None
        try:
            found, said = read_tensor(path, _NAME), read_header(path).metadata.get(_HASH)
        except UserError:
            return None
        whole = found.dtype == np.float32 and found.ndim == 2 and said == self._hash(prompt, found)
        return to_bf16_bits(found) if whole else None

    def put(self, prompt: str, embeds: Embeds) -> str | None:
        """Keep a prompt's embeddings; what went wrong, or None: a bundle may lie where nothing can be written."""
        array = from_bf16_bits(embeds)  # numpy has no bfloat16
        try:
            if self._folder.is_symlink():
                raise UserError(f"{self._folder} is a link, which is not followed out of a bundle.")
            self._folder.mkdir(exist_ok=True)
            write_tensors(self.path(prompt), {_NAME: array}, {_HASH: self._hash(prompt, array)})
        except (OSError, UserError) as error:
            return f"The embeddings were not kept for the next run: {str(error).splitlines()[0]}"
        return None
