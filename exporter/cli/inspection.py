"""What ``turbotrt inspect`` shows: a bundle's manifest, its files' state, its stages and its plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from exporter.cli.catalogue import gigabytes, open_table
from exporter.cli.plugin_host import bundle_plugins, plugins_here
from plugins.plan import Plan
from plugins.sms import cubin_sm
from runtime.bundle import LOCK_NAME, MANIFEST_NAME, Manifest, StageEntry, load_manifest, verify_file
from runtime.checks import pack_command, read_plan, rebuild_command
from runtime.host_code import carries_host_code
from runtime.media.text.embeds_cache import FOLDER
from runtime.report import Report

#: Columns of a terminal in which tables say more than in 80.
WIDE = 110


@dataclass(frozen=True)
class Inspection:
    """A bundle and what is wrong with it. ``states``: file → "ok" or its problem; ``plans`` holds those that decode."""

    folder: Path
    manifest: Manifest
    states: dict[str, str]
    plans: dict[str, Plan]
    unlisted: list[str]
    problems: list[str]

    def plain(self) -> dict[str, Any]:
        """For --json."""
        return {
            "folder": str(self.folder),
            "manifest": msgspec.to_builtins(self.manifest),
            "files": self.states,
            "plans": {file: _plan_facts(plan) for file, plan in self.plans.items()},
            "plugins_here": plugins_here(),
            "unlisted": self.unlisted,
            "problems": self.problems,
        }


def inspect_bundle(folder: Path, progress: Report) -> Inspection:
    """Read the manifest, hash every file and decode the plans. Raises UserError where there is no bundle."""
    manifest = load_manifest(folder)
    states = {}
    total, done = sum(info.bytes for info in manifest.files.values()), 0
    with progress.stage("verify files") as update:

        def read(count: int) -> None:
            nonlocal done
            done += count
            update(done, total)

        for name, info in sorted(manifest.files.items()):
            states[name] = verify_file(folder, name, info, read) or "ok"
    plans: dict[str, Plan] = {}
    problems = [state for state in states.values() if state != "ok"]
    for file in sorted(set(manifest.plans.values())):
        if states[file] != "ok":
            continue
        try:
            plans[file] = read_plan(folder / file)[0]
        except ValueError as error:
            problems.append(f"{file}: {error}")
    problems += [*_wrong_gpu(manifest, plans), *_unnamed_code(folder, manifest, states)]
    listed = {MANIFEST_NAME, LOCK_NAME, *manifest.files}
    unlisted = sorted(path.name for path in folder.iterdir() if path.name not in listed)
    return Inspection(folder, manifest, states, plans, unlisted, problems)


def _wrong_gpu(manifest: Manifest, plans: dict[str, Plan]) -> Iterator[str]:
    wanted = cubin_sm(manifest.gpu.sm)
    for file, plan in plans.items():
        if plan.sm != wanted:
            yield f"{file}: compiled for sm_{plan.sm}, the bundle's GPU runs sm_{wanted}"


def _unnamed_code(folder: Path, manifest: Manifest, states: Mapping[str, str]) -> Iterator[str]:
    if manifest.embedded_library is not None:
        return
    for name in sorted({stage.engine for stage in manifest.stages if stage.engine is not None}):
        if states[name] == "ok" and carries_host_code(folder / name):
            yield f"{name}: carries native code, and the manifest says nothing of it; whoever loads it runs that code"


def _plan_facts(plan: Plan) -> dict[str, Any]:
    return {
        "op": plan.op,
        "sm": plan.sm,
        "attributes": plan.attributes,
        "launches": len(plan.launches),
        "kernels": [
            {
                "name": k.name,
                "cubin_bytes": len(k.cubin),
                "shared_bytes": k.shared,
                "registers": k.registers,
                "stack_bytes": k.spills,
            }
            for k in plan.kernels
        ],
    }


def show_inspection(console: Console, found: Inspection) -> None:
    """The same as text. The console must not read markup: names come from the bundle."""
    _show_facts(console, found.manifest, found.folder)
    _show_stages(console, found.manifest)
    _show_plans(console, found)
    files = _table("Files", "file", "size>", "state", wraps="state")
    for name, info in sorted(found.manifest.files.items()):
        files.add_row(name, gigabytes(info.bytes), found.states[name])
    console.print(files)
    logs = [name for name in found.unlisted if name.endswith(".log")]
    if logs:
        console.print(f"TensorRT's logs, which are not hashed: {', '.join(logs)}")
    if others := [name for name in found.unlisted if name not in (*logs, FOLDER)]:
        console.print(f"not in the manifest: {', '.join(others)}")
    console.print(
        "\n".join(["PROBLEMS", *found.problems, "remedy: " + _remedy(found)])
        if found.problems
        else "All files are as the manifest says."
    )


def _remedy(found: Inspection) -> str:
    """What makes the bundle whole: packing for weights, the export again for the rest."""
    weights = found.manifest.weights.values()
    damaged = [name for name, state in found.states.items() if state != "ok"]
    if damaged and all(name in weights for name in damaged):
        return pack_command(found.folder, found.manifest)
    return rebuild_command(found.manifest, found.folder)


def _table(title: str, *headings: str, wraps: str) -> Table:
    """A heading that ends with > is of a column of numbers; the column ``wraps`` alone gives way, between words."""
    table = open_table(title)
    for heading in headings:
        name = heading.rstrip(">")
        table.add_column(name, justify="right" if heading != name else "left", no_wrap=name != wraps, overflow="fold")
    return table


def _show_facts(console: Console, manifest: Manifest, folder: Path) -> None:
    model, sampler, gpu = manifest.model, manifest.sampler, manifest.gpu
    boundary = "" if sampler.boundary is None else f", boundary {sampler.boundary}"
    share = "" if sampler.dense else f"top-k {sampler.topk_milli / 1000:g}, "
    weights = ", ".join(f"{expert}: {file}" for expert, file in sorted(manifest.weights.items())) or "none yet"
    proj_l = {None: "", True: " (with proj_l)", False: " (without proj_l: no linear branch)"}[manifest.has_proj_l]
    parts = [*(f"{part}: {file}" for part, file in sorted(manifest.media_weights.items())), manifest.tokenizer or ""]
    media = ", ".join(filter(None, parts)) or "no weights of text encoder or VAE"
    media += f"; text linear {manifest.text_linear}" if "text" in manifest.components else ""
    facts = {
        "bundle": str(folder),
        "model": f"{model.name}: {model.layers} blocks, D {model.dim}, {model.heads} heads, F {model.ffn_dim}, "
        f"{model.size[0]}x{model.size[1]}x{model.frames} at {model.fps} fps, up to {model.max_tokens:,} tokens",
        "sampler": f"{sampler.steps} steps, sigma_max {sampler.sigma_max:g}{boundary}, attention {sampler.attention}, "
        f"{share}linear {sampler.linear}",
        "gpu": f"{gpu.name}, sm_{gpu.sm}, {gpu.flavour}",
        "weights": weights + proj_l,
        "media": media,
        "plugins": bundle_plugins(manifest),
        "VRAM": f"about {gigabytes(manifest.vram_estimate_bytes)}",
        "tools": ", ".join(f"{name} {version}" for name, version in sorted(manifest.tools.items())),
    }
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(name, fact)
    console.print(table)


def _show_stages(console: Console, manifest: Manifest) -> None:
    """Of the inputs as many names as there is room for: nearly all are weights or caches, and --json lists them."""
    wide = console.width >= WIDE
    stages = _table(
        "Stages", "stage", "min/opt/max>", "activations>", "inputs" if wide else "inputs>", "outputs", wraps="outputs"
    )
    for stage in manifest.stages:
        profile = stage.profile
        activation = "–" if stage.activation_bytes is None else gigabytes(stage.activation_bytes)
        own = [t for t in stage.outputs if "." not in t.name]
        outputs = [f"{t.name} {t.dtype}[{','.join(map(str, t.dims))}]" for t in own]
        outputs += [f"… {len(stage.outputs)} in all"] if len(stage.outputs) > len(own) else []
        given = [t.name for t in stage.inputs if "." not in t.name][:4]
        first = f": {', '.join(given)}" + (" …" if len(stage.inputs) > len(given) else "")
        stages.add_row(
            _title(stage),
            f"{profile.min}/{profile.opt}/{profile.max}",
            activation,
            f"{len(stage.inputs)}{first if wide else ''}",
            "\n".join(outputs),
        )
    console.print(stages)
    if without := [stage.name for stage in manifest.stages if stage.engine is None]:
        console.print(f"stages without an engine (--onnx-only): {', '.join(without)}")


def _title(stage: StageEntry) -> str:
    return stage.name if stage.expert is None else f"{stage.name}, {stage.expert}"


def _show_plans(console: Console, found: Inspection) -> None:
    """A node's name ends with its op's; its plan's file, which Files lists too, where there is room."""
    wide = console.width >= WIDE
    plans = _table("Plugins", "node", "launches>", "kernels", *(["plan"] if wide else []), wraps="kernels")
    for node, file in sorted(found.manifest.plans.items()):
        plan, last = found.plans.get(file), [file] if wide else []
        if plan is None:
            plans.add_row(node, "?", "", *last)
            continue
        name = node if node.endswith(plan.op) else f"{node}, {plan.op}"
        plans.add_row(name, str(len(plan.launches)), ", ".join(kernel.name for kernel in plan.kernels), *last)
    console.print(plans)
