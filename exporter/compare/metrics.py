"""Distances between tensors, and between images of latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_PIECE = 1 << 22  # elements in fp64 at once: 32 MiB each
_WINDOW, _SIGMA = 11, 1.5  # SSIM's Gaussian, as published
_LATENT_WINDOW = 7  # 11 is larger than a small latent frame
_K1, _K2 = 0.01, 0.03  # SSIM's constants (Wang et al. 2004)


@dataclass(frozen=True)
class Distance:
    """``relative_l2`` = ‖got − want‖/‖want‖; ``snr_db`` = 20·log10 of its inverse; cosine; the largest |difference|."""

    relative_l2: float
    cosine: float
    max_abs: float
    snr_db: float


def distance(got: Tensor, want: Tensor) -> Distance:
    """Distance of two tensors of one shape, summed in fp64. NaN or infinity anywhere makes the distance NaN."""
    if got.shape != want.shape:
        raise ValueError(f"cannot compare {tuple(got.shape)} with {tuple(want.shape)}")
    noise = signal = other = product = largest = 0.0
    for g, w in zip(got.reshape(-1).split(_PIECE), want.reshape(-1).split(_PIECE), strict=True):
        a, b = g.double(), w.to(g.device).double()
        difference = a - b
        noise += float(difference.square().sum())
        signal += float(b.square().sum())
        other += float(a.square().sum())
        product += float((a * b).sum())
        largest = max(largest, float(difference.abs().max())) if g.numel() else largest
    if not math.isfinite(noise + signal + other):
        return Distance(math.nan, math.nan, math.nan, math.nan)
    if signal == 0.0:
        relative = 0.0 if noise == 0.0 else math.inf
        return Distance(relative, 1.0 if noise == 0.0 else 0.0, largest, _decibels(relative))
    relative = math.sqrt(noise / signal)
    cosine = product / math.sqrt(signal * other) if other else 0.0
    return Distance(relative, cosine, largest, _decibels(relative))


def _decibels(relative: float) -> float:
    return math.inf if relative == 0.0 else -20 * math.log10(relative) if math.isfinite(relative) else -math.inf


@dataclass(frozen=True)
class FrameDistance:
    """PSNR in dB and SSIM, 1 for equal frames; the peak of both is the range of the reference's frame, or 255."""

    psnr_db: float
    ssim: float


def frame_distance(got: Tensor, want: Tensor) -> FrameDistance:
    """Distance of one latent frame [C, H, W] from the reference's, whose range max − min is the peak."""
    a, b = got.double(), want.double()
    if not bool(torch.isfinite(a).all()):
        return FrameDistance(math.nan, math.nan)
    peak = max(float(b.max() - b.min()), 1e-12)
    return FrameDistance(_psnr(a, b, peak), ssim(a, b, peak, _LATENT_WINDOW))


def video_distance(got: Tensor, want: Tensor) -> FrameDistance:
    """Distance of one frame of video, uint8 [H, W, 3], from the reference's."""
    a, b = (frame.permute(2, 0, 1).double() for frame in (got, want))
    return FrameDistance(_psnr(a, b, 255.0), ssim(a, b, 255.0, _WINDOW))


def _psnr(got: Tensor, want: Tensor, peak: float) -> float:
    error = float((got - want).square().mean())
    return math.inf if error == 0.0 else 10 * math.log10(peak * peak / error)


def ssim(got: Tensor, want: Tensor, peak: float, window: int) -> float:
    """Structural similarity of two images [C, H, W] whose values span ``peak`` (Wang et al. 2004, eq. 13), averaged."""
    size = min(window, *got.shape[-2:])
    offsets = torch.arange(size, dtype=torch.float64, device=got.device) - (size - 1) / 2
    line = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    line = line / line.sum()

    def local(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x[:, None], line[None, None, :, None]), line[None, None, None])

    mean_a, mean_b = local(got), local(want)
    variance_a = local(got * got) - mean_a.square()
    variance_b = local(want * want) - mean_b.square()
    covariance = local(got * want) - mean_a * mean_b
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    bottom = (mean_a.square() + mean_b.square() + c1) * (variance_a + variance_b + c2)
    return float((top / bottom).mean())
