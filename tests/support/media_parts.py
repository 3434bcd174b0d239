"""Text encoder and VAE of a weights file on a runner, as a video pipeline makes them."""

from __future__ import annotations

from pathlib import Path

from runtime.backends.protocol import Runner
from runtime.bundle import Manifest
from runtime.media.text.encoder import TextEncoder
from runtime.media.vae.decoder import Vae
from runtime.media.vae.weights import VaeWeights
from runtime.weights.file import WeightsFile
from runtime.weights.upload import CHUNK, Staging


def text_encoder(runner: Runner, manifest: Manifest, path: Path) -> TextEncoder:
    return TextEncoder(runner, manifest, WeightsFile(path), Staging(runner.device, CHUNK))


def weights_of_vae(runner: Runner, manifest: Manifest, path: Path) -> VaeWeights:
    """Of all halves that the manifest has."""
    halves = [stage for stage in manifest.stages_of("vae") if stage.name.endswith(("_latent", "_next"))]
    return VaeWeights(runner.device, halves, WeightsFile(path), Staging(runner.device, CHUNK))


def vae_on(runner: Runner, manifest: Manifest, path: Path, budget: int | None = None) -> Vae:
    return Vae(runner, manifest, weights_of_vae(runner, manifest, path), budget)
