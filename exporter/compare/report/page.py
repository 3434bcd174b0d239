"""The HTML report: one file, its charts and images inside it, readable without network."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from exporter.compare.report import charts
from exporter.compare.report.style import CSS
from exporter.compare.report.tables import (
    bound_text,
    first_metric,
    lines,
    metric,
    metric_name,
    offenders,
    seconds_text,
    where,
)
from exporter.compare.spec import LEVELS, Comparison, Level, Row, Sweep
from runtime.atomic import told, write_atomic

_TITLES: dict[str, str] = {
    "op": "Ops",
    "block": "Blocks",
    "step": "Steps",
    "free": "Free steps",
    "frame": "Final latents",
    "video": "Video",
}


def write_report(path: Path, found: Comparison) -> None:
    """Write the report. Raises UserError where it cannot be written."""
    with told(path):
        write_atomic(path, html(found).encode())


def html(found: Comparison) -> str:
    """The report's text."""
    title = f"{found.facts.get('model', 'model')}: is the engine right?"
    parts = (_verdict, _summary, _charts, _ops, _latents, _video, _sweep, _facts, _all_rows)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{CSS}</style></head><body><main><h1>{escape(title)}</h1>"
        f"<p>{escape(found.facts.get('bundle', ''))}</p>{''.join(part(found) for part in parts)}</main></body></html>\n"
    )


def _section(heading: str, text: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2><p>{escape(text)}</p>{body}</section>" if body else ""


def _badge(good: bool, text: str, extra: str = "") -> str:
    return f'<span class="badge {"good" if good else "bad"} {extra}">{escape(text)}</span>'


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[str] = ()) -> str:
    """Cells are HTML already."""
    classes = [f' class="{"n" if heading in numeric else "t"}"' for heading in headings]
    head = "".join(f"<th{c}>{escape(h)}</th>" for c, h in zip(classes, headings, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{c}>{cell}</td>" for c, cell in zip(classes, row, strict=True)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _bound_cell(row: Row) -> str:
    return escape(bound_text(row)).replace(" ", "&nbsp;")


def _figure(data: bytes, kind: str, text: str) -> str:
    encoded = base64.b64encode(data).decode("ascii")
    return f'<figure><img alt="{escape(text)}" src="data:image/{kind};base64,{encoded}"></figure>'


def _verdict(found: Comparison) -> str:
    over = len(found.offenders)
    text = f"{over} over their bounds" if over else "within bounds"
    said = f"{len(found.rows)} distances measured."
    body = f'<div class="verdict">{_badge(not over, text, "big")}<span>{said}</span></div>'
    if over:
        rows = [
            [
                escape(where(r)),
                escape(_TITLES[r.level]),
                escape(f"{r.candidate} − {r.reference}"),
                first_metric(r),
                _bound_cell(r),
            ]
            for r in offenders(found)
        ]
        body += "<p>The worst first:</p>" + _table(("where", "level", "who", "measured", "bound"), rows, ("measured",))
    left = [f"{escape(name)} was left out: it {escape(reason)}." for name, reason in found.left_out.items()]
    remarks = [*left, *(escape(note) for note in found.notes)]
    if remarks:
        body += "<ul>" + "".join(f"<li>{remark}</li>" for remark in remarks) + "</ul>"
    return f"<section>{body}</section>"


def _summary(found: Comparison) -> str:
    rows = []
    for line in lines(found):
        worst = line.worst
        second = list(worst.metrics.items())[1]
        rows.append(
            [
                escape(_TITLES[worst.level]),
                escape(line.candidate),
                escape(line.reference),
                str(line.count),
                first_metric(worst),
                f"{escape(metric_name(second[0]))} {metric(*second)}",
                _bound_cell(worst),
                escape(where(worst)),
                _badge(not line.failed, "ok" if not line.failed else f"{line.failed} over"),
            ]
        )
    headings = ("level", "candidate", "against", "compared", "worst", "and", "bound", "where", "")
    return _section(
        "Summary",
        "One line for each level and pair; relative L2 unless said otherwise.",
        _table(headings, rows, ("compared", "worst", "and")),
    )


def _of(found: Comparison, level: Level) -> dict[str, list[Row]]:
    """Pair's title → its rows of a level."""
    groups: dict[str, list[Row]] = {}
    for row in found.rows:
        if row.level == level:
            groups.setdefault(f"{row.candidate} − {row.reference}", []).append(row)
    return groups


def _bounds(groups: dict[str, list[Row]]) -> list[float]:
    return [row.bound for rows in groups.values() for row in rows if row.bound is not None]


def _charts(found: Comparison) -> str:
    blocks = _of(found, "block")
    ticks = [str(row.layer) for row in next(iter(blocks.values()), [])]
    values = {pair: [row.value for row in rows] for pair, rows in blocks.items()}
    chart = _figure(charts.lines(values, ticks, _bounds(blocks), "block"), "svg+xml", "error by block")
    first = _section(
        "Error by block", f"{LEVELS['block'].capitalize()}. Exact results are drawn at 1e-6, bounds dotted.", chart
    )
    series: dict[str, list[float]] = {}
    bounds: list[float] = []
    for level, suffix in (("step", ""), ("free", ", own latents")):
        groups = _of(found, level)  # type: ignore[arg-type]
        bounds += _bounds(groups)
        for pair, rows in groups.items():
            series[pair + suffix] = [row.value for row in rows if row.place.endswith(" v")]
    count = max((len(values) for values in series.values()), default=0)
    drawn = charts.lines(series, [str(index + 1) for index in range(count)], bounds, "step")
    second = _section(
        "Error by step",
        "Of the velocity v: solid from the reference's latents, dashed from its own.",
        _figure(drawn, "svg+xml", "error by step"),
    )
    return f'<div class="two">{first}{second}</div>'


def _ops(found: Comparison) -> str:
    body, drawn = "", []
    for name, alone in found.rounding.items():
        if alone in drawn:  # the same arithmetic gives the same picture
            continue
        drawn.append(alone)
        body += f"<p>{escape(name)}, block {found.inspected}:</p>"
        body += _figure(charts.op_bars(alone, found.accumulated[name]), "svg+xml", "error by op")
    parts = _section(
        "Error by op",
        "What the rounding of each op costs on the same inputs, and what has summed up to "
        "there from the block's start, in the block with the worst result.",
        body,
    )
    maps = ""
    for pair, rows in _of(found, "op").items():
        if any(row.value for row in rows):
            maps += f"<p>{escape(pair)}:</p>" + _figure(charts.op_map(rows), "svg+xml", "errors of ops by block")
        else:
            maps += f"<p>{escape(pair)}: all {len(rows)} equal, bit for bit.</p>"
    text = (
        "Each op on what the candidate fed it, against its oracle with the checkpoint's weights: here errors are made."
    )
    return parts + _section("Ops by block", text, maps)


def _latents(found: Comparison) -> str:
    if not found.frames:
        return ""
    image = _figure(charts.latent_images(found.frames), "png", "latent frames side by side")
    return _section(
        "Final latents",
        "After the last step, each runner on its own; colours are the reference's three principal channels.",
        image + _frame_table(found, "frame"),
    )


def _frame_table(found: Comparison, level: Level) -> str:
    rows = [
        [escape(r.place), escape(r.candidate), escape(r.reference), first_metric(r), metric("ssim", r.metrics["ssim"])]
        for r in found.rows
        if r.level == level
    ]
    table = _table(("frame", "candidate", "against", "PSNR", "SSIM"), rows, ("PSNR", "SSIM"))
    return f"<details><summary>PSNR and SSIM of every frame</summary>{table}</details>"


def _video(found: Comparison) -> str:
    if not found.video:
        return ""
    groups = _of(found, "video")
    series = {pair: [row.metrics for row in rows] for pair, rows in groups.items()}
    chart = ""
    if series:  # a single runner may have given a video
        chart = _figure(charts.frame_lines(series, _bounds(groups)), "svg+xml", "PSNR and SSIM of every frame")
    image = _figure(charts.video_images(found.video), "png", "frames side by side")
    text = (
        "The final latents through one of the bundle's decoders for all, so that what differs is the DiT's; against "
        f"8-bit range. Equal frames are drawn at {charts.CEILING:g} dB, bounds dotted."
    )
    return _section("Video", text, chart + image + _frame_table(found, "video"))


def _sweep(found: Comparison) -> str:
    sweep = found.sweep
    if sweep is None:
        return ""
    rows = [
        [
            f"{p.topk_milli / 1000:g}",
            metric("relative_l2", p.relative_l2),
            metric("psnr_db", p.psnr_db),
            metric("ssim", p.ssim),
            seconds_text(p.seconds),
        ]
        for p in sweep.points
    ]
    headings = ("top-k", "relative L2", "PSNR", "SSIM", sweep.time_label)
    body = _figure(charts.sweep_chart(sweep), "svg+xml", "quality by top-k") + _table(headings, rows, headings)
    return _section(
        "How sparse?", f"Final latents against the reference with every key block kept. {_time_text(sweep)}", body
    )


def _time_text(sweep: Sweep) -> str:
    if sweep.untimed:
        return f"No times: {sweep.untimed}."
    if sweep.estimated:
        return f"Times are an estimate for {sweep.device} (turbotrt estimate says how good), not a measurement."
    return f"Times were measured on {sweep.device}."


def _facts(found: Comparison) -> str:
    rows = "".join(f'<tr><td class="key">{escape(k)}</td><td>{escape(v)}</td></tr>' for k, v in found.facts.items())
    seconds = "; ".join(f"{name} {sum(values):.1f} s" for name, values in found.seconds.items())
    took = f"{seconds}, weights read from disk included"
    rows += f'<tr><td class="key">teacher-forced steps took</td><td>{escape(took)}</td></tr>'
    return _section("Versions and settings", "", f'<div class="scroll"><table>{rows}</table></div>')


def _all_rows(found: Comparison) -> str:
    body = ""
    for level, title in _TITLES.items():
        rows = [row for row in found.rows if row.level == level]
        if not rows:
            continue
        metrics = list(rows[0].metrics)
        cells = [
            [
                escape(where(r)),
                escape(r.candidate),
                escape(r.reference),
                *(metric(m, r.metrics[m]) for m in metrics),
                _bound_cell(r),
                _badge(r.passed, "ok" if r.passed else "over"),
            ]
            for r in rows
        ]
        names = [metric_name(m) for m in metrics]
        table = _table(("where", "candidate", "against", *names, "bound", ""), cells, names)
        body += f"<details><summary>{title}: {len(rows)}</summary>{table}</details>"
    return _section("Everything measured", "", body)
