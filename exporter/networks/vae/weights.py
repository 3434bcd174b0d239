"""The VAE's weights: names and shapes by half, as Wan's own checkpoint has them."""

from __future__ import annotations

from exporter.networks.vae.halves import HALVES, Half, gamma_of, parts_of
from exporter.networks.vae.spec import Layer, Resample, Residual, VaeSpec
from exporter.networks.weight_spec import WeightSpec

Shapes = dict[str, tuple[int, ...]]


def _conv(name: str, c_out: int, c_in: int, *kernel: int) -> Shapes:
    return {f"{name}.weight": (c_out, c_in, *kernel), f"{name}.bias": (c_out,)}


def _layer(layer: Layer) -> Shapes:
    name = layer.name
    if isinstance(layer, Residual):
        c_in, c_out = layer.c_in, layer.c_out
        return {
            f"{name}.residual.0.gamma": (c_in, 1, 1, 1),
            **_conv(f"{name}.residual.2", c_out, c_in, 3, 3, 3),
            f"{name}.residual.3.gamma": (c_out, 1, 1, 1),
            **_conv(f"{name}.residual.6", c_out, c_out, 3, 3, 3),
            **(_conv(f"{name}.shortcut", c_out, c_in, 1, 1, 1) if c_in != c_out else {}),
        }
    c = layer.channels
    if isinstance(layer, Resample):
        up = layer.direction == "up"
        time = _conv(f"{name}.time_conv", 2 * c if up else c, c, 3, 1, 1) if layer.temporal else {}
        return {**_conv(f"{name}.resample.1", c // 2 if up else c, c, 3, 3), **time}
    return {
        f"{name}.norm.gamma": (c, 1, 1),
        **_conv(f"{name}.to_qkv", 3 * c, c, 1, 1),
        **_conv(f"{name}.proj", c, c, 1, 1),
    }


def half_weights(spec: VaeSpec, half: Half) -> Shapes:
    """The weights one half takes, in the order of use."""
    parts = parts_of(spec, half)
    shapes: Shapes = {}
    if parts.before is not None:
        shapes |= _conv(parts.before.name, parts.before.c_out, parts.before.c_in, 1, 1, 1)
    if parts.head is not None:
        shapes |= _conv(parts.head.name, parts.head.c_out, parts.head.c_in, 3, 3, 3)
    for layer in parts.layers:
        shapes |= _layer(layer)
    if parts.tail is not None:
        shapes[gamma_of(parts.tail)] = (parts.tail.c_in, 1, 1, 1)
        shapes |= _conv(parts.tail.name, parts.tail.c_out, parts.tail.c_in, 3, 3, 3)
    if parts.after is not None:
        shapes |= _conv(parts.after.name, parts.after.c_out, parts.after.c_in, 1, 1, 1)
    return shapes


def vae_weights(spec: VaeSpec) -> Shapes:
    """Every tensor of the VAE's checkpoint, in the order of the packed file."""
    shapes: Shapes = {}
    for half in HALVES:
        shapes |= half_weights(spec, half)
    return shapes


def packed_weights(spec: VaeSpec, half: Half) -> dict[str, WeightSpec]:
    """One half's packed weights: norms' fp32, all else bf16, in which the authors run the VAE too."""
    return {
        name: WeightSpec(shape, "fp32" if name.endswith(".gamma") else "bf16")
        for name, shape in half_weights(spec, half).items()
    }
