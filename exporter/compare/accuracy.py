"""Our metrics as Polygraphy comparison functions: what ``Comparator.compare_accuracy`` calls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from exporter.compare.metrics import Distance, FrameDistance, distance, frame_distance
from exporter.compare.spec import within

TENSOR_METRICS = ("relative_l2", "cosine", "max_abs", "snr_db")
FRAME_METRICS = ("psnr_db", "ssim")
#: (got, want) → their metrics.
Measured = Callable[..., Distance | FrameDistance]


@cache
def _classes() -> tuple[type, type, type]:
    """Threshold, result and function types, made where Polygraphy is needed and not when this module is imported."""
    from polygraphy.comparator import BaseCompareFunc, CompareResult, Threshold

    class Bound(Threshold):  # type: ignore[misc]
        """``within`` of the first metric."""

        def __init__(self, metric: str, bound: float | None, higher: bool) -> None:
            self.metric, self.bound, self.higher = metric, bound, higher

        def passed(self, metric_values: Mapping[str, float]) -> bool:
            return within(metric_values[self.metric], self.bound, higher=self.higher)

    class Result(CompareResult):  # type: ignore[misc]
        """The metrics of one output."""

        def __init__(self, values: Mapping[str, float], thresholds: Bound) -> None:
            super().__init__(thresholds)
            self.values = dict(values)

        def metric_values(self) -> Mapping[str, float]:
            return self.values

    class Measure(BaseCompareFunc):  # type: ignore[misc]
        """Compares every output of two runners; the first runner is the candidate, the second the reference."""

        def __init__(
            self, measure: Measured, metrics: tuple[str, ...], bound: Callable[[str], float | None], higher: bool
        ) -> None:
            self.measure, self.metrics, self.bound, self.higher = measure, metrics, bound, higher

        def thresholds_for(self, output_name: str) -> Bound:
            return Bound(self.metrics[0], self.bound(output_name), self.higher)

        def __call__(self, candidate: Any, reference: Any) -> OrderedDict[str, Result]:
            results: OrderedDict[str, Result] = OrderedDict()
            for name, got in candidate.items():
                measured = self.measure(got, reference[name])
                values = {metric: getattr(measured, metric) for metric in self.metrics}
                results[name] = Result(values, self.thresholds_for(name))
            return results

    return Bound, Result, Measure


def tensor_function(bound: Callable[[str], float | None]) -> Any:
    """Relative L2 (the one that is bounded), cosine, max abs and SNR; ``bound`` gives an output's bound or None."""
    return _classes()[2](distance, TENSOR_METRICS, bound, False)


def frame_function(bound: Callable[[str], float | None], measure: Measured = frame_distance) -> Any:
    """PSNR (the one that is bounded, from below) and SSIM of frames: latent ones unless ``measure`` says otherwise."""
    return _classes()[2](measure, FRAME_METRICS, bound, True)
