"""The convolutions of sm_90: their values without a GPU, the tiles they take, and what Triton makes of the kernel."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from exporter.networks.vae.hopper_conv import CONFIGS, Config, choose, convolve, packed, packed_upsampling
from plugins.sass.control_flow import parse
from plugins.sass.listing import listings
from plugins.sass.report import LOCAL

THIN, NARROW, MIDDLE, WIDE = CONFIGS


def as_torch(x: torch.Tensor) -> torch.Tensor:
    return x.permute(3, 0, 1, 2).unsqueeze(0)


@pytest.mark.parametrize(("frames", "side"), [(3, 3), (1, 3), (3, 1)])
@pytest.mark.parametrize(("n", "c"), [(16, 32), (3, 5)])
def test_a_packed_convolution_is_torchs(frames: int, side: int, n: int, c: int) -> None:
    weight, bias = torch.randn(n, c, frames, side, side), torch.randn(n)
    before, x, residual = (torch.randn(count, 5, 6, size) for count, size in ((frames - 1, c), (4, c), (4, n)))
    padding = (0, side // 2, side // 2)
    want = F.conv3d(as_torch(torch.cat((before, x))), weight, bias, padding=padding) + as_torch(residual)
    got = convolve(x, before if frames > 1 else None, packed(weight), bias, residual)
    torch.testing.assert_close(as_torch(got[..., :n]), want, rtol=1e-4, atol=1e-4)
    assert not got[..., n:].any()


def test_four_small_kernels_are_a_large_one_behind_nearest() -> None:
    weight, bias, x = torch.randn(16, 32, 3, 3), torch.randn(16), torch.randn(2, 5, 7, 32)
    twice = F.interpolate(as_torch(x), scale_factor=(1.0, 2.0, 2.0))
    want = F.conv3d(twice, weight.unsqueeze(2), bias, padding=(0, 1, 1))
    got = convolve(x, None, packed_upsampling(weight), bias)
    torch.testing.assert_close(as_torch(got), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "columns", "channels", "best"),
    [
        ((4, 480, 832), 96, 96, NARROW),
        ((4, 240, 416), 192, 192, WIDE),
        ((2, 120, 208), 384, 384, MIDDLE),
        ((1, 60, 104), 384, 384, MIDDLE),
        ((4, 480, 832), 16, 96, THIN),
        ((4, 720, 1280), 96, 96, NARROW),
        ((4, 360, 640), 192, 192, WIDE),
        ((2, 180, 320), 384, 384, MIDDLE),
        ((1, 90, 160), 384, 384, WIDE),
    ],
)
def test_the_tiles_that_were_fastest_on_an_h100(
    shape: tuple[int, int, int], columns: int, channels: int, best: Config
) -> None:
    """Of the decoder's sizes, each config timed in one run."""
    frames, height, width = shape
    positions = frames * -(-height // 16) * -(-width // 16)
    assert choose(positions, columns, channels, 132) == best


@pytest.mark.parametrize("config", [THIN, WIDE], ids=str)
def test_the_kernel_compiles_where_no_gpu_is(config: Config) -> None:
    """Products of sm_90's own, TMA's copies, and nothing spilled; WIDE has the most registers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource
    from triton.experimental.gluon.language import NVMMASharedLayout

    from exporter.networks.vae.conv_kernel import conv_hopper

    def tiles(rank: int, *block: int) -> str:
        layout = NVMMASharedLayout(2 * config.channels, 16, rank)
        return f"tensordesc<bf16[{','.join(map(str, block))}],{layout!r}>"

    signature = {"x_boxes": tiles(5, 1, 1, 16, 16, config.channels)}
    signature |= {"weights": tiles(2, config.first, config.channels)}
    signature |= {"more_weights": tiles(2, config.more or config.first, config.channels)}
    signature |= dict.fromkeys(("bias", "residual", "out"), "*bf16")
    numbers = "tiles tiles_x n_tiles phases T H W C N frames_before side before added"
    signature |= dict.fromkeys(numbers.split(), "i32")
    constants = {"N1": config.first, "N2": config.more, "BK": config.channels, "STAGES": config.stages}
    names = list(signature)
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in ("bias", "residual", "out", "C", "N")}
    source = GluonASTSource(conv_hopper, {**signature, **dict.fromkeys(constants, "constexpr")}, constants, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert made.metadata.shared <= 227 * 1024
    for wanted in ("wgmma.mma_async", "cp.async.bulk.tensor.5d", "st.global.v4"):
        assert wanted in made.asm["ptx"]
    (listing,) = listings([made.asm["cubin"]])
    opcodes = {instruction.opcode for instruction in parse(listing)}
    assert "HGMMA" in opcodes
    assert not opcodes & LOCAL
