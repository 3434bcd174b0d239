"""The levels of a comparison, each a ``Comparator.run`` over the roster's machines: rows, and what a report shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from polygraphy.comparator import Comparator, IterationResult, RunResults
from polygraphy.logger import G_LOGGER
from torch import Tensor

from exporter.compare.accuracy import frame_function, tensor_function
from exporter.compare.machines.machine import OpMachine, embedded
from exporter.compare.roster import Roster
from exporter.compare.runners import (
    BLOCK_OUTPUT,
    STEP_FEED,
    BlockRunner,
    Feed,
    OpsRunner,
    RecordedRunner,
    ReplayRunner,
    StepRunner,
)
from exporter.compare.scene import frames
from exporter.compare.spec import CompareSpec, Comparison, Level, Row
from exporter.compare.video import decode, measure
from runtime.report import Report

ORACLE = "oracle"
Pair = tuple[str, str]


def quietly(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call Polygraphy without its log: what it would say is in our rows."""
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        return function(*args, **options)


def _measured(results: RunResults, pairs: Sequence[Pair], functions: Sequence[Any]) -> Iterator[tuple[Pair, str, Any]]:
    """(pair, output, result) of one iteration, each pair by its own function."""
    names = [name for name, _ in results.items()]
    for pair, function in zip(pairs, functions, strict=True):
        index = (names.index(pair[0]), names.index(pair[1]))
        (accuracy,) = quietly(Comparator.compare_accuracy, results, comparisons=[index], compare_func=function)
        for outputs in accuracy[pair]:
            yield from ((pair, name, result) for name, result in outputs.items())


def _row(level: Level, pair: Pair, place: str, layer: int | None, result: Any) -> Row:
    bound = result.thresholds
    return Row(level, *pair, place, layer, dict(result.metric_values()), bound.bound, bound.higher)


def compare_steps(roster: Roster, found: Comparison, progress: Report) -> dict[str, RunResults]:
    """Every rCM step, teacher-forced and free-running, then the final latents. Returns each level's RunResults."""
    forced = _steps(roster, found, progress, free=False)
    # From its own latents or from the reference's is the same for the reference: it runs once.
    free = _steps(roster, found, progress, free=True, reference=iter(forced[roster.reference]))
    final = _frames(roster, found, free)
    return {"steps": forced, "free": free, "frames": final}


class _StepFeeds:
    """Each step's feed: the reference's own tokens of the step before."""

    def __init__(self, roster: Roster, results: RunResults) -> None:
        self._roster, self._results = roster, results

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        tokens = self._roster.scene.start
        for step in range(len(self._roster.scene.steps)):
            yield {"tokens": tokens, "step": torch.tensor(step)}
            tokens = self._results[self._roster.reference][-1]["tokens"]


def _steps(
    roster: Roster,
    found: Comparison,
    progress: Report,
    *,
    free: bool,
    reference: Iterator[Feed] | None = None,
) -> RunResults:
    level: Level = "free" if free else "step"
    steps, pairs = len(roster.scene.steps), roster.pairs()
    done, total = 0, steps * (len(roster.machines) - (reference is not None))
    title = "steps, each runner from its own latents" if free else "steps, each from the reference's latents"
    with progress.stage(title) as update:

        def tick() -> None:
            nonlocal done
            done += 1
            update(done, total)

        runners: list[RecordedRunner | StepRunner] = []
        for name, machine in roster.machines.items():
            if name == roster.reference and reference is not None:
                runners.append(RecordedRunner(name, STEP_FEED, reference))
            else:
                runners.append(StepRunner(machine, roster.model.layers, roster.scene, free=free, tick=tick))
        runners.sort(key=lambda runner: roster.machines[runner.name].follows)
        functions = [tensor_function(constant(getattr(roster.bounds(pair[1]), level))) for pair in pairs]
        results = RunResults()
        for runner in runners:
            results.append((runner.name, []))
        stream = quietly(Comparator.run, runners, data_loader=_StepFeeds(roster, results), streaming=True)
        for step, single in enumerate(_drain(stream)):
            for name, iterations in single.items():
                results[name].extend(iterations)
            for pair, output, result in _measured(single, pairs, functions):
                found.rows.append(_row(level, pair, f"step {step + 1} {output}", None, result))
    if not free:
        found.seconds = {name: [it.runtime for it in iterations] for name, iterations in results.items()}
    return results


def constant(bound: float | None) -> Callable[[str], float | None]:
    """The same bound for every output."""
    return lambda output: bound


def _drain(stream: Iterator[RunResults]) -> Iterator[RunResults]:
    """The stream's results; Polygraphy logs as it is drained."""
    while (single := quietly(next, stream, None)) is not None:
        yield single


def _frames(roster: Roster, found: Comparison, free: RunResults) -> RunResults:
    """The last tokens as latent frames, by PSNR and SSIM."""
    results = RunResults()
    for name in roster.machines:
        last = free[name][-1]
        images = frames(last["tokens"], roster.scene.shape)
        found.frames[name] = list(images)
        named = {f"frame {index:02d}": image for index, image in enumerate(images)}
        results.append((name, [IterationResult(named, last.runtime, name)]))
    pairs = roster.pairs()
    functions = [frame_function(constant(roster.bounds(pair[1]).frame_psnr)) for pair in pairs]
    for pair, output, result in _measured(results, pairs, functions):
        found.rows.append(_row("frame", pair, output, None, result))
    return results


def compare_videos(
    roster: Roster, spec: CompareSpec, free: RunResults, found: Comparison, progress: Report
) -> RunResults:
    """The final latents decoded, frame by frame."""
    results = decode(roster, spec, free, found, progress)
    names = [name for name, _ in results.items()]
    pairs = [pair for pair in roster.pairs() if set(pair) <= set(names)]
    functions = [frame_function(constant(roster.bounds(pair[1]).video_psnr), measure) for pair in pairs]
    with progress.stage("compare the videos"):
        for pair, output, result in _measured(results, pairs, functions):
            found.rows.append(_row("video", pair, output, None, result))
    return results


class _BlockFeeds:
    """Each block's feed: the reference's own x of the block before."""

    def __init__(self, roster: Roster, step: int, tokens: Tensor, reference: BlockRunner) -> None:
        self._roster, self._step, self._tokens, self._reference = roster, step, tokens, reference

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        roster = self._roster
        made = embedded(roster.machines[roster.reference], roster.scene, self._step, self._tokens)
        x, context, e0 = (tensor.float().cpu() for tensor in (made.x, made.context, made.e0))
        cos, sin = roster.scene.tables()
        for layer in range(roster.model.layers):
            self.last = {"x": x, "context": context, "e0": e0, "cos": cos, "sin": sin, "layer": torch.tensor(layer)}
            yield self.last
            x = self._reference.last[BLOCK_OUTPUT].float()


class BlockLevels:
    """Every block of one step, and every op of every block; then what rounding costs in the worst one."""

    def __init__(self, roster: Roster, step: int, tokens: Tensor) -> None:
        """``tokens``: the reference's latents before the step."""
        self._roster, self._expert = roster, roster.scene.steps[step].expert
        self._ops = {
            name: OpsRunner(machine, self._expert, exact=_exact(machine, roster.oracle))
            for name, machine in roster.op_machines().items()
        }
        self._blocks = {
            name: BlockRunner(machine, self._expert)
            for name, machine in roster.machines.items()
            if name not in self._ops or name == roster.reference
        }
        self._replays = {
            name: ReplayRunner(f"{ORACLE} for {name}", roster.oracle, runner, self._expert)
            for name, runner in self._ops.items()
        }
        self._feeds = _BlockFeeds(roster, step, tokens, self._blocks[roster.reference])
        self._worst: tuple[float, int, Mapping[str, Tensor], RunResults] | None = None

    def run(self, found: Comparison, progress: Report) -> None:
        roster = self._roster
        candidates = [runner for name, runner in self._ops.items() if name != roster.reference]
        replays = [replay for name, replay in self._replays.items() if name != roster.reference]
        others = list(self._blocks.values())
        first = [runner for runner in others if not roster.machines[runner.name].follows]
        last = [runner for runner in others if roster.machines[runner.name].follows]
        stream = quietly(
            Comparator.run, [*first, *candidates, *last, *replays], data_loader=self._feeds, streaming=True
        )
        with progress.stage("blocks and their ops, each from the reference's x") as update:
            for layer, single in enumerate(_drain(stream)):
                rows = [*self._block_rows(layer, single), *self._op_rows(layer, single)]
                found.rows += rows
                badness = max(row.badness for row in rows)
                if self._worst is None or badness > self._worst[0]:
                    self._worst = (badness, layer, self._feeds.last, single)
                update(layer + 1, roster.model.layers)

    def _block_rows(self, layer: int, single: RunResults) -> Iterator[Row]:
        pairs = self._roster.pairs()
        only = RunResults()
        for name, iterations in single.items():
            if name in self._roster.machines:
                only.append((name, [IterationResult({BLOCK_OUTPUT: iterations[0][BLOCK_OUTPUT]}, 0.0, name)]))
        functions = [tensor_function(constant(self._roster.bounds(pair[1]).block)) for pair in pairs]
        for pair, _, result in _measured(only, pairs, functions):
            yield _row("block", pair, f"block {layer}", layer, result)

    def _op_rows(self, layer: int, single: RunResults) -> Iterator[Row]:
        for name, replay in self._replays.items():
            if name == self._roster.reference:
                continue
            bounds = self._ops[name].bounds()
            only = _common(single, name, replay.name)
            function = tensor_function(bounds.get)
            for _, output, result in _measured(only, [(name, replay.name)], [function]):
                yield _row("op", (name, ORACLE), output, layer, result)

    def inspect(self, found: Comparison, progress: Report) -> tuple[Mapping[str, Tensor], RunResults]:
        """What rounding costs each op of the worst block, alone and summed up. Returns its feed and RunResults."""
        if self._worst is None:
            raise ValueError("run comes first")
        _, layer, feed, single = self._worst
        found.inspected = layer
        unrounded = self._roster.unrounded
        if unrounded is None:
            return feed, single
        with progress.stage(f"block {layer} without rounding") as update:
            exact = OpsRunner(unrounded, self._expert, exact=False)
            for index, (name, candidate) in enumerate(self._ops.items()):
                runners = [candidate, ReplayRunner("alone", unrounded, candidate, self._expert), exact]
                (results,) = _drain(quietly(Comparator.run, runners, data_loader=[feed], streaming=True))
                bounds = candidate.bounds()
                for other, into in (("alone", found.rounding), (exact.name, found.accumulated)):
                    function = tensor_function(constant(None))
                    rows = _measured(_common(results, name, other), [(name, other)], [function])
                    into[name] = {out: r.metric_values()["relative_l2"] for _, out, r in rows if out in bounds}
                update(index + 1, len(self._ops))
        return feed, single


def _exact(machine: OpMachine, oracle: OpMachine) -> bool:
    """Whether a machine's ops are answered just as the oracle's are."""
    return machine.evaluate is oracle.evaluate and machine.device == oracle.device


def _common(results: RunResults, name: str, other: str) -> RunResults:
    """Two runners' first iterations with the outputs that both gave."""
    first, second = results[name][0], results[other][0]
    shared = [output for output in first if output in second]
    only = RunResults()
    for runner, iteration in ((name, first), (other, second)):
        only.append((runner, [IterationResult({out: iteration[out] for out in shared}, 0.0, runner)]))
    return only
