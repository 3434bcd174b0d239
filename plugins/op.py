"""What an op is: inputs, outputs, attributes and which dimensions stay symbolic in its launch plan.

From a declaration generic code makes the torch custom op with its fake kernel (torch_op), the ONNX schema and
translation (onnx_schema), and the launch plan (compile) that the TensorRT plugin runs (tensorrt_plugin).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from plugins.expr import Dim, Expr, ceil_div, evaluate, symbol

__all__ = ["Attr", "Op", "Tensor", "ceil_div", "symbol"]

AttrValue = int | str


@dataclass(frozen=True)
class Attr:
    """A compile-time parameter of an op: an int or a string, with its default."""

    name: str
    default: AttrValue


@dataclass(frozen=True)
class Tensor:
    """An input or output: dtype name and dims. A str dim names a symbol, bound where an input first shows it bare."""

    name: str
    dtype: str
    shape: tuple[int | str | Expr, ...]

    @property
    def dims(self) -> tuple[Dim, ...]:
        return tuple(symbol(dim) if isinstance(dim, str) else dim for dim in self.shape)


@dataclass(frozen=True)
class Op:
    """One op under the one name that torch, ONNX, TensorRT and the tests use."""

    name: str
    folder: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    dynamic: tuple[str, ...]
    attributes: tuple[Attr, ...] = ()
    #: The function in ``plugins.<folder>.kernel`` that makes the launch plan, and in ``.reference`` the oracle's name.
    plan_function: str = "launch_plan"
    reference_function: str = "reference"

    def symbol_sources(self) -> dict[str, tuple[int, int]]:
        """Symbol → (input index, axis) where it is read from."""
        sources: dict[str, tuple[int, int]] = {}
        for index, axis, dim in self._input_dims():
            if isinstance(dim, str):
                sources.setdefault(dim, (index, axis))
        return sources

    def _input_dims(self) -> Iterator[tuple[int, int, int | str | Expr]]:
        for index, tensor in enumerate(self.inputs):
            for axis, dim in enumerate(tensor.shape):
                yield index, axis, dim

    def bind(self, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
        """The symbols' values for these input shapes. Raises ValueError where the declaration does not allow them."""
        for tensor, shape in zip(self.inputs, shapes, strict=True):
            if len(shape) != len(tensor.shape):
                raise ValueError(f"{self.name}: {tensor.name} has shape {tuple(shape)}, expected {len(tensor.shape)}-D")
        symbols = {name: int(shapes[index][axis]) for name, (index, axis) in self.symbol_sources().items()}
        for tensor, shape in zip(self.inputs, shapes, strict=True):
            wanted = tuple(evaluate(dim, symbols) for dim in tensor.dims)
            if tuple(shape) != wanted:
                raise ValueError(f"{self.name}: {tensor.name} has shape {tuple(shape)}, expected {wanted}")
        return symbols

    def attribute_values(self, given: Mapping[str, AttrValue]) -> dict[str, AttrValue]:
        """All attributes, defaults filled in. Raises ValueError on an unknown name."""
        known = {attr.name: attr.default for attr in self.attributes}
        if unknown := set(given) - set(known):
            raise ValueError(f"{self.name} has no attribute {sorted(unknown)}; it has {sorted(known)}")
        return known | dict(given)
