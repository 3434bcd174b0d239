"""Who takes part in a comparison on this machine, and who cannot and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch

from exporter.checkpoint.download import tell_downloads
from exporter.checkpoint.experts import look_for_checkpoint
from exporter.checkpoint.reader import Checkpoint
from exporter.compare.machines.machine import Machine, OpMachine
from exporter.compare.machines.ops import by_reference
from exporter.compare.machines.plain_model import PlainAttention
from exporter.compare.machines.torch_machines import PlainMachine, StageMachine, UnroundedMachine
from exporter.compare.machines.weights import BundleWeights, CheckpointWeights, FloatWeights, Weights
from exporter.compare.scene import Scene, scene
from exporter.compare.spec import RUNNERS, CompareSpec
from exporter.compare.thresholds import STAGE_BOUNDS, StageBound
from exporter.models import ModelSpec, model_named
from exporter.networks.dit.options import BARE, DENSE, BlockOptions
from exporter.packing.dit import open_experts
from plugins.errors import UserError
from plugins.torch_op import device_sm
from runtime.bundle import Manifest, load_manifest
from runtime.report import Report


@dataclass
class Roster:
    """The machines by name, in order: each one adds something to those before it. The first is the reference.

    ``oracle`` computes what the bundle should, with the checkpoint's weights packed anew (without a checkpoint: the
    bundle's); ``unrounded`` what that approximates, None without a checkpoint. ``deployed``: the bundle's weights.
    """

    manifest: Manifest
    model: ModelSpec
    scene: Scene
    deployed: Weights
    machines: dict[str, Machine]
    oracle: StageMachine
    unrounded: UnroundedMachine | None
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def reference(self) -> str:
        return next(iter(self.machines))

    def op_machines(self) -> dict[str, OpMachine]:
        """Candidates whose ops can be seen."""
        from exporter.compare.machines.onnx_machine import OnnxMachine

        return {
            name: machine for name, machine in self.machines.items() if isinstance(machine, StageMachine | OnnxMachine)
        }

    def pairs(self) -> list[tuple[str, str]]:
        """(candidate, reference): all against the reference, and against the quantized model if that is another."""
        names = list(self.machines)
        pairs = [(name, names[0]) for name in names[1:]]
        if "quantized" in names[1:]:
            pairs += [(name, "quantized") for name in names[names.index("quantized") + 1 :]]
        return pairs

    def bounds(self, reference: str) -> StageBound:
        sampler = self.manifest.sampler
        return STAGE_BOUNDS["fp32" if reference == "fp32" else "same", sampler.attention, sampler.linear]


def open_roster(spec: CompareSpec, progress: Report) -> Roster:
    """Read the bundle and open the checkpoint. Raises UserError where fewer than two runners can take part."""
    manifest = load_manifest(spec.bundle)
    model = model_named(manifest.model.name)
    readers = _readers(spec, model, manifest, progress)
    sampler = manifest.sampler
    made = scene(manifest, spec)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = BlockOptions(sampler.attention, sampler.topk_milli, sampler.linear)
    fresh: Weights | None = CheckpointWeights(readers, model, sampler.linear) if readers else None
    deployed = BundleWeights(spec.bundle, manifest, model) if manifest.weights else fresh
    if deployed is None:
        raise UserError(
            f"{spec.bundle} holds no weights.",
            expected="weights to run",
            remedy="give --checkpoint, or pack one into the bundle: turbotrt pack",
        )
    roster = Roster(
        manifest,
        model,
        made,
        deployed,
        {},
        StageMachine("oracle", fresh or deployed, options, by_reference, device),
        UnroundedMachine("unrounded", FloatWeights(readers, model, sampler.linear), options, device)
        if readers
        else None,
    )
    if readers and not manifest.weights:
        roster.notes.append("The bundle holds no weights: the checkpoint's are packed for each block.")
    _enlist(roster, spec, readers, options, device)
    if len(roster.machines) < 2:
        why = "; ".join(f"{name}: {reason}" for name, reason in roster.left_out.items())
        raise UserError(
            "There is nothing to compare with.",
            expected="two runners or more",
            got=f"{', '.join(roster.machines) or 'none'}; left out: {why or 'none'}",
            remedy="name more of them with --against",
        )
    return roster


def _readers(spec: CompareSpec, model: ModelSpec, manifest: Manifest, progress: Report) -> dict[str, Checkpoint]:
    loras = spec.loras.of(model)
    if spec.checkpoint is None:
        if loras.items:
            raise UserError(
                "--lora changes a checkpoint's weights, and there is no checkpoint.",
                remedy="give --checkpoint PATH or HF_ID, or drop --lora",
            )
        return {}
    linear, bare = manifest.sampler.linear, manifest.sampler.attention in BARE
    asked = look_for_checkpoint(spec.checkpoint, model, progress.note, linear=linear, loras=loras)
    tell_downloads(asked or (), progress.note)
    return open_experts(
        spec.checkpoint, model, linear=linear, allow_missing_proj_l=bare, loras=loras, note=progress.note
    )


def _enlist(
    roster: Roster,
    spec: CompareSpec,
    readers: Mapping[str, Checkpoint],
    options: BlockOptions,
    device: torch.device,
) -> None:
    for name in RUNNERS:
        if name not in spec.against:
            continue
        reason = _unable(name, spec, roster.manifest, bool(readers))
        if reason is not None:
            roster.left_out[name] = reason
        elif name == "fp32":
            attention = PlainAttention(None if options.attention in DENSE else options.topk_milli)
            roster.machines[name] = PlainMachine(name, readers, attention, device)
        elif name == "quantized":
            roster.machines[name] = StageMachine(name, roster.deployed, options, by_reference, device)
        else:
            roster.machines[name] = _from_bundle(name, roster, spec, options)
    if spec.same_blocks:
        _follow(roster)
    if any(stage.expert is not None for stage in roster.manifest.stages):
        roster.left_out["one-file"] = "holds all stages in one engine, of which none can be compared by itself"


def _unable(name: str, spec: CompareSpec, manifest: Manifest, checkpoint: bool) -> str | None:
    """Why a runner cannot take part on this machine, or None."""
    if name == "fp32":
        return None if checkpoint else "needs the checkpoint (--checkpoint)"
    if name in ("quantized", "onnx"):
        return None
    if not torch.cuda.is_available():
        return "needs a CUDA GPU, and this machine has none"
    if name == "tensorrt":
        if any(stage.engine is None for stage in manifest.stages_of("dit")):
            return "needs engines, and the bundle holds none"
        if find_spec(manifest.gpu.flavour) is None:
            return f"needs the {manifest.gpu.flavour} package, which is not installed"
        if device_sm() != manifest.gpu.sm:
            return f"needs a GPU of sm_{manifest.gpu.sm}, and this one is sm_{device_sm()}"
    return None


def _from_bundle(name: str, roster: Roster, spec: CompareSpec, options: BlockOptions) -> Machine:
    """The machine that runs what the bundle holds: its graphs, its plans or its engines."""
    manifest, folder, deployed = roster.manifest, spec.bundle, roster.deployed
    if name == "onnx":
        from exporter.compare.machines.onnx_machine import OnnxMachine

        return OnnxMachine(name, folder, manifest.stages_of("dit"), deployed)
    if name == "plans":
        from exporter.compare.machines.plan_ops import PlanOps

        plans = PlanOps([folder / file for file in set(manifest.plans.values())], manifest.gpu.sm, device_sm())
        if plans.recompiled:
            roster.notes.append(
                f"plans: the bundle's are for sm_{manifest.gpu.sm}; the same ops were compiled for sm_{device_sm()}."
            )
        return StageMachine(name, deployed, options, plans, torch.device("cuda"))
    from exporter.compare.machines.engine_machine import EngineMachine

    return EngineMachine(name, folder, manifest, deployed, roster.notes.append)


def _follow(roster: Roster) -> None:
    """Let the fp32 model keep the key blocks that the first runner after it keeps."""
    plain = roster.machines.get("fp32")
    leaders = [machine for name, machine in roster.op_machines().items() if name != "fp32"]
    if not isinstance(plain, PlainMachine) or not leaders or roster.manifest.sampler.dense:
        raise UserError(
            "--same-blocks has nothing to do.",
            expected="fp32, another runner whose ops can be seen, and sparse attention",
        )
    leader = roster.machines[leaders[0].name]
    leader.record_selections = True
    roster.machines["fp32"] = plain.following(leader)
    roster.notes.append(f"fp32 keeps the key blocks that {leader.name} keeps.")
