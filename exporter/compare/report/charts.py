"""The report's charts, as SVG or PNG bytes. matplotlib's object interface only: no global state, no display."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from exporter.compare.spec import Row, Sweep

COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#ca8a04", "#0891b2", "#be123c")
INK, GRID, BOUND = "#334155", "#e2e8f0", "#dc2626"
FLOOR = 1e-6  # what is drawn for an exact result on a logarithmic axis
CEILING = 80.0  # what is drawn for the infinite PSNR of equal frames, dB
_HEAT = LinearSegmentedColormap.from_list("bounds", ["#059669", "#a7f3d0", "#fde68a", "#f97316", "#991b1b"])
_STYLE = {
    "font.size": 9,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "turbotrt",
    "svg.fonttype": "path",
}


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _bounds(axes: Any, bounds: Sequence[float]) -> None:
    """Dotted lines, with their values at the right; every other one further out, as they may be near each other."""
    for index, bound in enumerate(sorted(set(bounds))):
        axes.axhline(bound, color=BOUND, linewidth=0.9, linestyle=":")
        axes.annotate(
            f"{bound:g}",
            (1, bound),
            xycoords=("axes fraction", "data"),
            xytext=(3 + 20 * (index % 2), 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=BOUND,
        )


def _drawn(value: float) -> float:
    return value if math.isnan(value) else max(value, FLOOR)


def lines(series: Mapping[str, Sequence[float]], ticks: Sequence[str], bounds: Sequence[float], label: str) -> bytes:
    """SVG: relative L2 of each series over blocks or steps, on a logarithmic axis, and the bounds as dashed lines."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(5.4, 3.3)
        for index, (name, values) in enumerate(series.items()):
            drawn = [_drawn(value) for value in values]
            style = "--" if name.endswith("own latents") else "-"
            # Equal series lie on one another: the first ones are wider.
            width, size = (3.6, 6.5) if index == 0 else (1.5, 3.5)
            axes.plot(
                range(len(drawn)),
                drawn,
                style,
                marker="o",
                markersize=size,
                linewidth=width,
                color=COLOURS[index % len(COLOURS)],
                label=name,
            )
        _bounds(axes, bounds)
        axes.set_yscale("log")
        shown = range(0, len(ticks), max(1, len(ticks) // 20))
        axes.set_xticks(list(shown), [ticks[index] for index in shown])
        axes.set_xlabel(label)
        axes.set_ylabel("relative L2")
        figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8)
        return _svg(figure)


def op_bars(alone: Mapping[str, float], accumulated: Mapping[str, float]) -> bytes:
    """SVG: what each op's own rounding costs, and the error that has summed up after it."""
    names = list(alone)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(7.2, 0.27 * len(names) + 1.1)
        places = np.arange(len(names))
        axes.barh(
            places - 0.18, [_drawn(accumulated[name]) for name in names], 0.34, color="#bfdbfe", label="summed up"
        )
        axes.barh(places + 0.18, [_drawn(alone[name]) for name in names], 0.34, color=COLOURS[0], label="this op alone")
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlim(left=1e-4)
        axes.grid(True, axis="x", color=GRID, linewidth=0.8)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("relative L2 against unrounded fp32")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=8)
        return _svg(figure)


def op_map(rows: Sequence[Row]) -> bytes:
    """SVG: each op of each block as its error in parts of its bound; red is over it."""
    places = list(dict.fromkeys(row.place for row in rows))
    layers = sorted({row.layer for row in rows if row.layer is not None})
    cells = np.full((len(places), len(layers)), np.nan)
    for row in rows:
        if row.layer is not None:
            cells[places.index(row.place), layers.index(row.layer)] = min(max(row.badness, 1e-3), 1e3)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(7.2, 0.23 * len(places) + 0.9)
        axes.grid(False)
        image = axes.imshow(cells, aspect="auto", cmap=_HEAT, norm=LogNorm(1e-2, 1e2), interpolation="nearest")
        axes.set_yticks(range(len(places)), places)
        shown = range(0, len(layers), max(1, len(layers) // 20))
        axes.set_xticks(list(shown), [str(layers[index]) for index in shown])
        axes.set_xticks(np.arange(-0.5, len(layers)), minor=True)
        axes.set_yticks(np.arange(-0.5, len(places)), minor=True)
        axes.grid(True, which="minor", color="white", linewidth=1)
        axes.tick_params(which="both", length=0)
        axes.set_xlabel("block")
        bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.04)
        bar.set_label("error / bound", fontsize=8)
        bar.ax.tick_params(labelsize=7.5)
        return _svg(figure)


def _chosen(count: int, shown: int) -> list[int]:
    """Indices of frames from the first to the last, evenly."""
    return [int(index) for index in np.unique(np.linspace(0, count - 1, min(shown, count)).round())]


def latent_images(frames: Mapping[str, Sequence[Any]], shown: int = 5) -> bytes:
    """PNG: latent frames [C, H, W] of every runner side by side, then ten times their difference from the first's.

    Colours are the reference's three principal channels, the same for all.
    """
    names = list(frames)
    arrays = {name: np.stack([np.asarray(frame, dtype=np.float64) for frame in frames[name]]) for name in names}
    reference = arrays[names[0]]
    chosen = _chosen(len(reference), shown)
    flat = reference.transpose(1, 0, 2, 3).reshape(reference.shape[1], -1)
    centre = flat.mean(1, keepdims=True)
    _, axes_of = np.linalg.eigh(np.cov(flat))
    basis = axes_of[:, -3:].T
    basis *= np.sign(basis.sum(1, keepdims=True))
    spread = 3 * (basis @ (flat - centre)).std(1)

    def coloured(array: Any, factor: float = 1.0, middle: Any = centre) -> Any:
        mixed = (basis @ (array.reshape(array.shape[0], -1) - middle)) / spread[:, None] * factor
        return np.clip(0.5 + 0.5 * mixed, 0, 1).reshape(3, *array.shape[1:]).transpose(1, 2, 0)

    rows = [(name, [coloured(arrays[name][index]) for index in chosen]) for name in names]
    for name in names[1:]:
        rows.append((name, [coloured(arrays[name][index] - reference[index], 10.0, 0.0) for index in chosen]))
    return _grid(rows, len(names), chosen, cell=1.35)


def video_images(video: Mapping[str, Sequence[Any]], shown: int = 3) -> bytes:
    """PNG: frames uint8 [H, W, 3] of every runner side by side, then ten times their difference from the first's."""
    names = list(video)
    chosen = _chosen(len(video[names[0]]), shown)
    rows = [(name, [np.asarray(video[name][index]) for index in chosen]) for name in names]
    first = rows[0][1]
    for name, images in rows[1:]:
        pairs = zip(images, first, strict=True)
        away = [np.clip(127.5 + 10 * (a.astype(np.float32) - b), 0, 255).astype(np.uint8) for a, b in pairs]
        rows.append((name, away))
    return _grid(rows, len(names), chosen, cell=2.3)


def _grid(rows: Sequence[tuple[str, Sequence[Any]]], runners: int, chosen: Sequence[int], cell: float) -> bytes:
    """PNG of images [H, W, 3]: a row of each runner's, then rows of differences from the first; cells in inches."""
    height, width = rows[0][1][0].shape[:2]
    with matplotlib.rc_context(_STYLE):
        size = (cell * len(chosen) + 1.2, cell * height / width * len(rows) + 0.35)
        close = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
        figure = Figure(figsize=size, layout=close, dpi=150)
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(rows), len(chosen), squeeze=False)
        for row, (name, images) in enumerate(rows):
            title = name if row < runners else f"10 × ({name}\n− {rows[0][0]})"
            for column, image in enumerate(images):
                axes = grid[row][column]
                axes.imshow(image, interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
                if row == 0:
                    axes.set_title(f"frame {chosen[column]}", fontsize=8)
                if column == 0:
                    axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def frame_lines(series: Mapping[str, Sequence[Mapping[str, float]]], bounds: Sequence[float]) -> bytes:
    """SVG: PSNR and SSIM of each pair over the frames of a video, beside each other; bounds of the PSNR dotted."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10.4, 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, metric, label in zip(figure.subplots(1, 2), ("psnr_db", "ssim"), ("PSNR, dB", "SSIM"), strict=True):
            axes.grid(True, axis="y", color=GRID, linewidth=0.8)
            for index, (name, frames) in enumerate(series.items()):
                values = [min(frame[metric], CEILING) for frame in frames]
                width = 3.6 if index == 0 else 1.5  # equal series lie on one another
                axes.plot(
                    range(len(values)),
                    values,
                    linewidth=width,
                    color=COLOURS[index % len(COLOURS)],
                    label=name if metric == "psnr_db" else None,
                )
            axes.set_xlabel("frame")
            axes.set_ylabel(label)
            axes.xaxis.get_major_locator().set_params(integer=True)
            if metric == "psnr_db":
                _bounds(axes, bounds)
            else:
                axes.set_ylim(min(axes.get_ylim()[0], 0.99), 1)
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8)
        return _svg(figure)


def sweep_chart(sweep: Sweep) -> bytes:
    """SVG: PSNR over milliseconds, over the share of kept blocks where no times are known."""
    timed = sweep.untimed is None
    places = [1e3 * float(p.seconds or 0) if timed else p.topk_milli / 1000 for p in sweep.points]
    labels: dict[tuple[float, float], list[str]] = {}
    for place, point in zip(places, sweep.points, strict=True):
        labels.setdefault((place, point.psnr_db), []).append(f"{point.topk_milli / 1000:g}")
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(7.2, 3.0)
        values = [point.psnr_db for point in sweep.points]
        axes.plot(places, values, "-o", color=COLOURS[0], linewidth=1.6, markersize=5)
        for at, shares in labels.items():
            axes.annotate(f"top-k {', '.join(shares)}", at, xytext=(7, -3), textcoords="offset points", fontsize=8)
        axes.margins(y=0.2)
        axes.set_xlim(0, 1.2 * max(places))
        axes.set_xlabel(f"ms of {sweep.time_label}" if timed else "share of key blocks kept")
        axes.set_ylabel("mean PSNR of latent frames, dB")
        return _svg(figure)
