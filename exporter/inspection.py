"""What ``turbotrt inspect`` shows: a bundle's manifest, its files' state, its stages and its plans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from exporter.catalogue import gigabytes
from exporter.progress import Progress
from plugins.plan import Plan, decode
from runtime.bundle import MANIFEST_NAME, Manifest, MediaStage, StageFiles, load_manifest, verify_file
from runtime.checks import pack_command, rebuild_command
from runtime.media.embeds_cache import FOLDER


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
            "unlisted": self.unlisted,
            "problems": self.problems,
        }


def inspect_bundle(folder: Path, progress: Progress) -> Inspection:
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
            plans[file] = decode((folder / file).read_bytes())
        except ValueError as error:
            problems.append(f"{file}: {error}")
    problems += _wrong_gpu(manifest, plans)
    listed = {MANIFEST_NAME, *manifest.files}
    unlisted = sorted(path.name for path in folder.iterdir() if path.name not in listed)
    return Inspection(folder, manifest, states, plans, unlisted, problems)


def _wrong_gpu(manifest: Manifest, plans: dict[str, Plan]) -> Iterator[str]:
    wanted = 120 if manifest.gpu.sm == 121 else manifest.gpu.sm
    for file, plan in plans.items():
        if plan.sm != wanted:
            yield f"{file}: compiled for sm_{plan.sm}, the bundle's GPU runs sm_{wanted}"


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
    files = _table("Files", "file", "size>", "state")
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


def _table(title: str, *headings: str) -> Table:
    """A heading that ends with > is of a column of numbers."""
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading.rstrip(">"), justify="right" if heading.endswith(">") else "left", overflow="fold")
    return table


def _show_facts(console: Console, manifest: Manifest, folder: Path) -> None:
    model, sampler, gpu = manifest.model, manifest.sampler, manifest.gpu
    boundary = "" if sampler.boundary is None else f", boundary {sampler.boundary}"
    weights = ", ".join(f"{expert}: {file}" for expert, file in sorted(manifest.weights.items())) or "none yet"
    proj_l = {None: "", True: " (with proj_l)", False: " (without proj_l: no linear branch)"}[manifest.has_proj_l]
    parts = [*(f"{part}: {file}" for part, file in sorted(manifest.media_weights.items())), manifest.tokenizer or ""]
    media = ", ".join(filter(None, parts)) or "no weights of text encoder or VAE"
    media += f"; text linear {manifest.text_linear}" if any(s.component == "text" for s in manifest.media) else ""
    lines = (
        f"bundle    {folder}",
        f"model     {model.name}: {model.layers} blocks, D {model.dim}, {model.heads} heads, F {model.ffn_dim}, "
        f"{model.size[0]}x{model.size[1]}x{model.frames} at {model.fps} fps, up to {model.max_tokens:,} tokens",
        f"sampler   {sampler.steps} steps, sigma_max {sampler.sigma_max:g}{boundary}, attention {sampler.attention}, "
        f"top-k {sampler.topk_milli / 1000:g}, linear {sampler.linear}",
        f"gpu       {gpu.name}, sm_{gpu.sm}, {gpu.flavour}",
        f"weights   {weights}{proj_l}",
        f"media     {media}",
        f"VRAM      about {gigabytes(manifest.vram_estimate_bytes)}",
        f"tools     {', '.join(f'{name} {version}' for name, version in sorted(manifest.tools.items()))}",
    )
    console.print("\n".join(lines))


def _show_stages(console: Console, manifest: Manifest) -> None:
    stages = _table("Stages", "stage", "engine", "min/opt/max>", "activations>", "inputs", "outputs")
    made: tuple[StageFiles | MediaStage, ...] = (*manifest.stages, *manifest.media)
    for stage in made:
        profile = stage.profile
        activation = "" if stage.activation_bytes is None else gigabytes(stage.activation_bytes)
        # A block has some thirty inputs, nearly all weights, and the VAE as many caches: --json lists them.
        own = [t for t in stage.outputs if "." not in t.name]
        outputs = ", ".join(f"{t.name} {t.dtype}[{','.join(map(str, t.dims))}]" for t in own)
        outputs += f" … {len(stage.outputs)} in all" if len(stage.outputs) > len(own) else ""
        given = [t.name for t in stage.inputs if "." not in t.name][:4]
        first = ", ".join(given) + (" …" if len(stage.inputs) > len(given) else "")
        stages.add_row(
            stage.name, stage.engine or "—", f"{profile.min}/{profile.opt}/{profile.max}", activation,
            f"{len(stage.inputs)}: {first}", outputs,
        )  # fmt: skip
    console.print(stages)


def _show_plans(console: Console, found: Inspection) -> None:
    plans = _table("Plugins", "node", "op", "sm>", "kernels", "launches>", "plan")
    for node, file in sorted(found.manifest.plans.items()):
        plan = found.plans.get(file)
        if plan is None:
            plans.add_row(node, "?", "", "", "", file)
            continue
        kernels = ", ".join(kernel.name for kernel in plan.kernels)
        plans.add_row(node, plan.op, str(plan.sm), kernels, str(len(plan.launches)), file)
    console.print(plans)
