"""What an op is: inputs, outputs, attributes, which dimensions stay symbolic in its plan, its work and its accuracy.

From a declaration generic code makes the torch custom op with its fake kernel (torch_op), the ONNX schema and
translation (onnx_schema), the launch plan (compile) that the TensorRT plugin runs (tensorrt_plugin), and what it costs
(cost). A declaration imports neither torch nor triton: whatever needs them is named here and found in the op's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from plugins.expr import Dim, Expr, ceil_div, evaluate, symbol

__all__ = ["Attr", "Bound", "Op", "Tensor", "ceil_div", "symbol"]

AttrValue = int | str
Dims = Mapping[str, int]
Attributes = Mapping[str, AttrValue]
#: Multiplications and additions by the dtype whose tensor cores do them: "int8", "fp8", "fp16" (bf16 has its rate).
Operations = dict[str, float]


@dataclass(frozen=True)
class Attr:
    """A compile-time parameter of an op: an int or a string, with its default."""

    name: str
    default: AttrValue


@dataclass(frozen=True)
class Tensor:
    """An input or output: dtype name and dims. A str dim names a symbol, bound where an input first shows it bare.

    ``read``: the part of an input that the op needs, where that is not the whole.
    """

    name: str
    dtype: str
    shape: tuple[int | str | Expr, ...]
    read: tuple[int | str | Expr, ...] | None = None

    @property
    def dims(self) -> tuple[Dim, ...]:
        return _dims(self.shape)

    @property
    def needed(self) -> tuple[Dim, ...]:
        """The dims of what must cross the memory bus."""
        return _dims(self.shape if self.read is None else self.read)


def _dims(shape: Sequence[int | str | Expr]) -> tuple[Dim, ...]:
    return tuple(symbol(dim) if isinstance(dim, str) else dim for dim in shape)


@dataclass(frozen=True)
class Bound:
    """The largest relative L2 of a kernel's output from the reference's, both given the same inputs.

    ``compare``: a model's own inputs, as ``turbotrt compare`` takes them; ``test``: the random ones of the GPU tests.
    """

    compare: float
    test: float


def no_operations(_dims: Dims, _attributes: Attributes) -> Operations:
    """The work of an op that only moves."""
    return {}


@dataclass(frozen=True)
class Op:
    """One op under the one name that torch, ONNX, TensorRT and the tests use.

    ``bounds``: by value of the attribute ``precision``, under "" where the op has none. ``tunable``: its kernel.py has
    ``CONFIGS``, ``legal`` and ``candidates`` that ``turbotrt tune`` measures, under the folder's name in configs.json.
    """

    name: str
    folder: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    dynamic: tuple[str, ...]
    bounds: Mapping[str, Bound] = field(hash=False)
    attributes: tuple[Attr, ...] = ()
    operations: Callable[[Dims, Attributes], Operations] = no_operations
    tunable: bool = False
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

    def bound(self, attributes: Attributes) -> Bound:
        """How far the op may be from its reference with these attributes. Raises KeyError on an unknown precision."""
        return self.bounds[str(self.attribute_values(attributes).get("precision", ""))]
