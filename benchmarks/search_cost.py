"""What a search costs: by rung, by windows and size of the model, and without what is shared.

    OMP_NUM_THREADS=1 python benchmarks/search_cost.py

Searches on the built-in model and text, and masks random models of its width (`shapes.py`) at
several depths. All is done by one thread and told in processor time, so that what else the
machine does shows little. What candidates share is switched off piece by piece, in turn
with runs that have all of it, and every run must leave the same archive. Sections that are in
benchmarks/results/search-cost.json are kept, `--again SECTION` measures one anew; search_cost.md
is written from that file.
"""

import argparse
import cProfile
import json
import os
import pstats
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor

import pruner_zero
from pruner_zero.files import read_lines, write_atomic
from pruner_zero.metric import Call, Constant, Expression, Terminal, canonical
from pruner_zero.models import find_matrices, load_model, next_token_loss
from pruner_zero.provenance import provenance
from pruner_zero.search.algorithm import make_algorithm
from pruner_zero.search.archive import JOURNAL, Archive, Record
from pruner_zero.search.batch import BatchAlgorithm, Proposal
from pruner_zero.search.build import build_evaluator, search_windows
from pruner_zero.search.evaluator import RUNGS, Evaluator, Outcome, Rung, Task
from pruner_zero.search.executor import Executor, SerialExecutor
from pruner_zero.search.masked_model import MaskedModel
from pruner_zero.search.search import Status, run
from pruner_zero.search.settings import SearchSettings
from pruner_zero.search.time_limit import UNLIMITED, TimeLimit
from pruner_zero.sparsity import Scope
from pruner_zero.sparsity.layer_error import output_sensitivity, row_errors
from pruner_zero.text import load_corpus
from selection import machine
from shapes import Shape, make_checkpoint

HERE = Path(__file__).parent
RESULT = HERE / "results" / "search-cost.json"
TEXT = "builtin:pydoc"
# The built-in model's width; one, two, four and eight times as many blocks.
WIDTH = {"hidden": 576, "intermediate": 1536, "heads": 9, "kv_heads": 3, "vocabulary": 49152}
DEPTHS = (8, 16, 32, 64)
WINDOWS = (1, 2, 4, 8)
METRICS: tuple[tuple[str, Scope], ...] = (
    ("W * X", "row"),
    ("abs(W * W) * mms(G)", "row"),
    ("W * G^0.5 * X^0.25", "global"),
)
TIMED = ("seconds", "elapsed", "sha256")
TOP = 15

SHARED = {
    "subexpressions": "a subtree that occurs twice in a formula is computed once; off: each time",
    "canonical forms": "a proposal with the canonical form of an earlier one is not asked; off: it"
    " is judged on the rungs the earlier one reached",
    "fingerprints": "a candidate with the mask of an earlier one on the probe rows goes no"
    " further; off: it is judged on the rungs the earlier one reached",
    "sample": "norms and sensitivities of the sampled rows are computed once for all candidates;"
    " off: for each",
    "model": "one copy of the model is masked in place and restored; off: each loss has a copy of"
    " its own",
}


@dataclass(frozen=True)
class Searched:
    """One search: what it took and left, and what it took to see whether proposals are new."""

    seconds: float
    journal: list[dict[str, Any]]
    rejection: list[float]
    again: Counter[str]

    @property
    def archive(self) -> list[dict[str, Any]]:
        """The journal without what time decides."""
        return [{k: v for k, v in line.items() if k not in TIMED} for line in self.journal]

    @property
    def candidates(self) -> int:
        """How many were asked."""
        return sum(line["kind"] == "candidate" for line in self.journal)


class Copying(MaskedModel):
    """Puts every candidate on a copy of the model, which is then thrown away."""

    @torch.no_grad()
    def losses(
        self,
        expression: Expression,
        scope: Scope,
        windows: Tensor,
        shares: Mapping[str, float] | None = None,
        limit: TimeLimit = UNLIMITED,
    ) -> list[float]:
        """As `MaskedModel.losses`."""
        model = deepcopy(self.model)
        masks = self.masks(expression, scope, shares, limit)
        for matrix, mask in zip(find_matrices(model), masks, strict=True):
            matrix.weight.masked_fill_(~mask, 0)
        return [float(next_token_loss(model, window[None])) for window in limit.steps(windows)]


class Clocked(Evaluator):
    """Tells processor time."""

    def run(self, task: Task) -> Outcome:
        """As `Evaluator.run`."""
        start = time.process_time()
        outcome = super().run(task)
        return replace(outcome, seconds=round(time.process_time() - start, 4))


class Resampling(Clocked):
    """Computes what the closed form compares with for every candidate, and throws it away."""

    def reconstruction(
        self,
        expression: Expression,
        scope: Scope,
        shares: Mapping[str, float] | None = None,
        limit: TimeLimit = UNLIMITED,
    ) -> float:
        """As `Evaluator.reconstruction`."""
        for one in self.sample:
            row_errors(one.weight, one.gram.float())
            output_sensitivity(one.terminals["G"], one.gram)
        return super().reconstruction(expression, scope, shares, limit)


def evaluate_plainly(
    expression: Expression, terminals: Mapping[str, Tensor], shape: tuple[int, int] | None = None
) -> Tensor:
    """`evaluate` with every subtree computed as often as it occurs."""

    def value(node: Expression) -> Tensor:
        if isinstance(node, Terminal):
            return terminals[node.name].float()
        if isinstance(node, Constant):
            return torch.tensor([[node.value]])
        assert isinstance(node, Call)
        return node.operator.apply(*map(value, node.operands))

    return value(expression).expand(shape or terminals["W"].shape).contiguous()


def prepare(model: str, **given: Any) -> tuple[SearchSettings, Evaluator]:
    """The settings of a search on the built-in text, and what judges its candidates."""
    settings = SearchSettings(
        model=model, calibration=TEXT, search_text=TEXT, sparsity=0.5, **given
    )
    language_model = load_model(model)
    texts = load_corpus(TEXT, role="calibration"), load_corpus(TEXT, role="search")
    windows, judged = search_windows(settings, *texts, language_model.tokenizer)
    evaluator = build_evaluator(language_model, settings, windows, judged)
    return settings, Clocked(**_fields(evaluator))


def search(
    settings: SearchSettings, evaluator: Evaluator, folder: Path, off: Iterable[str] = ()
) -> Searched:
    """One whole search in one process, without what is switched `off`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if "model" in off:
        evaluator = replace(evaluator, masked=Copying(**_fields(evaluator.masked)))
    if "sample" in off:
        evaluator = Resampling(**_fields(evaluator))
    algorithm = cast(
        BatchAlgorithm,
        make_algorithm(
            settings.algorithm, settings.search_space, settings.seed, settings.algorithm_settings
        ),
    )
    executor = SerialExecutor(evaluator)
    avoided: list[Proposal] = []
    rejection: list[float] = []
    again: Counter[str] = Counter()
    seen = 0

    def is_new(proposal: Proposal) -> bool:
        start = time.process_time()
        new = type(algorithm).is_new(algorithm, proposal)
        rejection.append(time.process_time() - start)
        if not new:
            avoided.append(proposal)
        return new

    def observe(status: Status) -> None:
        nonlocal seen
        if "canonical forms" in off:
            again.update(_judge_avoided(avoided, status.records, executor))
        if "fingerprints" in off:
            again.update(_judge_twins(status.records[seen:], status.records, executor))
        avoided.clear()
        seen = len(status.records)

    archive = Archive(folder, settings.identity())
    plainly = patch.object(
        import_module("pruner_zero.metric.evaluate"), "evaluate", evaluate_plainly
    )
    with (
        patch.object(algorithm, "is_new", is_new),
        plainly if "subexpressions" in off else nullcontext(),
    ):
        start = time.process_time()
        run(algorithm, archive, executor, settings, folder, observe)
        seconds = time.process_time() - start
    return Searched(seconds, read_lines(folder / JOURNAL), rejection, again)


def _judge_avoided(
    avoided: Sequence[Proposal], records: Sequence[Record], executor: Executor
) -> Iterator[Rung]:
    first = {(one.canonical, one.candidate.scope): one for one in reversed(records)}
    for proposal in avoided:
        form = str(canonical(proposal.expression, proposal.scope))
        twin = first.get((form, proposal.scope))
        yield from _judge(proposal, twin, records, executor)


def _judge_twins(
    new: Sequence[Record], records: Sequence[Record], executor: Executor
) -> Iterator[Rung]:
    for record in new:
        twin = record.evaluation.same_as
        if twin is not None:
            # Its probe it has had.
            yield from _judge(record.candidate, records[twin], records, executor, RUNGS[1:])


def _judge(
    one: Any,
    twin: Record | None,
    records: Sequence[Record],
    executor: Executor,
    among: Sequence[Rung] = RUNGS,
) -> Iterator[Rung]:
    """Judge a formula on the rungs that its twin reached; what is found is thrown away."""
    while twin is not None and twin.evaluation.same_as is not None:
        twin = records[twin.evaluation.same_as]
    reached = {"probe", *(twin.evaluation.results if twin else ())}
    tasks = [Task(0, rung, str(one.expression), one.scope) for rung in among if rung in reached]
    yield from (outcome.rung for outcome in executor.map(tasks))


def measure_rungs(folder: Path) -> dict[str, Any]:
    """Where the time of a short search with default windows goes."""
    settings, evaluator = prepare(
        "builtin:smollm2-135m",
        windows=4,
        evaluations=60,
        algorithm_settings={"initial": 48, "batch": 24},
    )
    found = search(settings, evaluator, folder)
    seconds: dict[str, list[float]] = {"rejection": found.rejection}
    for line in found.journal:
        if line["kind"] == "outcome":
            seconds.setdefault(line["rung"], []).append(line["seconds"])
    rungs = {
        rung: {
            "count": len(own),
            "median_seconds": statistics.median(own),
            "share": sum(own) / found.seconds,
        }
        for rung, own in seconds.items()
    }
    windows = {"few": settings.few_windows, "all": settings.search_windows}
    return {
        "candidates": found.candidates,
        "seconds": found.seconds,
        "windows": windows,
        "seqlen": settings.seqlen,
        "rungs": rungs,
    }


def measure_windows(folder: Path, repeats: int) -> dict[str, Any]:
    """What a candidate costs on the dearest rung by the number of windows, in turn."""
    del folder
    settings, evaluator = prepare(
        "builtin:smollm2-135m", windows=4, evaluations=1, search_windows=max(WINDOWS)
    )
    tasks: dict[str, tuple[Evaluator, Sequence[Rung]]] = {
        str(count): (replace(evaluator, windows=evaluator.windows[:count]), ("all",))
        for count in WINDOWS
    }
    found = in_turn(tasks, repeats)
    medians = {count: own["all"] for count, own in found.items()}
    return {"seqlen": settings.seqlen, "repeats": repeats, "seconds": medians}


def measure_sizes(folder: Path, repeats: int) -> dict[str, Any]:
    """What a candidate costs on each rung by the number of blocks of the same width."""
    given = {"windows": 2, "seqlen": 256, "search_windows": 4, "few_windows": 1, "evaluations": 1}
    rows = []
    for blocks in DEPTHS:
        model = make_checkpoint(Shape(**WIDTH, blocks=blocks), folder / f"blocks-{blocks}")
        _, evaluator = prepare(str(model), **given)
        weights = sum(one.weight.numel() for one in evaluator.masked.matrices)
        own = in_turn({"": (evaluator, RUNGS)}, repeats)[""]
        rows.append({"blocks": blocks, "weights": weights, "seconds": own})
        print(json.dumps(rows[-1]), flush=True)
        shutil.rmtree(model)
    return {**given, "repeats": repeats, "rows": rows}


def in_turn(
    tasks: Mapping[str, tuple[Evaluator, Sequence[Rung]]], repeats: int
) -> dict[str, dict[str, float]]:
    """Median seconds of a candidate on each rung, the evaluators taking turns."""
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in tasks}
    for _ in range(repeats):
        for expression, scope in METRICS:
            for name, (evaluator, rungs) in tasks.items():
                for rung in rungs:
                    outcome = evaluator.run(Task(0, rung, expression, scope))
                    assert outcome.reason is None, outcome.reason
                    seconds[name].setdefault(rung, []).append(outcome.seconds)
    return {
        name: {rung: statistics.median(every) for rung, every in own.items()}
        for name, own in seconds.items()
    }


def short_search() -> tuple[SearchSettings, Evaluator]:
    """A search that is repeated often: the defaults on fewer and shorter windows."""
    return prepare(
        "builtin:smollm2-135m",
        windows=4,
        seqlen=128,
        search_windows=4,
        few_windows=1,
        evaluations=24,
        algorithm_settings={"initial": 20, "batch": 10},
    )


def measure_sharing(folder: Path, repeats: int) -> dict[str, Any]:
    """Candidates a minute with everything shared, and without each piece, in turn."""
    settings, evaluator = short_search()
    runs: dict[str, tuple[str, ...]] = {"nothing": (), **{one: (one,) for one in SHARED}}
    runs["all of it"] = tuple(SHARED)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    again: dict[str, dict[str, int]] = {}
    reference: list[dict[str, Any]] | None = None
    for _ in range(repeats):
        for name, off in runs.items():
            found = search(settings, evaluator, folder, off)
            reference = reference or found.archive
            assert found.archive == reference, f"without {name} the archive is another"
            seconds[name].append(found.seconds)
            again[name] = dict(found.again)
            print(name, round(found.seconds, 1), again[name], flush=True)
    candidates = sum(line["kind"] == "candidate" for line in reference or ())
    rows = [
        {
            "off": name,
            "seconds": own,
            "per_minute": 60 * candidates / statistics.median(own),
            "ratio": statistics.median(
                fast / slow for fast, slow in zip(seconds["nothing"], own, strict=True)
            ),
            "judged_again": again[name],
        }
        for name, own in seconds.items()
    ]
    return {
        "settings": settings.model_dump(mode="json", exclude_unset=True),
        "candidates": candidates,
        "repeats": repeats,
        "archives_equal": True,
        "rows": rows,
    }


def measure_profile(folder: Path) -> dict[str, Any]:
    """The functions of this project that a search spends its time under."""
    settings, evaluator = short_search()
    profile = cProfile.Profile()
    profile.enable()
    found = search(settings, evaluator, folder)
    profile.disable()
    root = str(Path(pruner_zero.__file__).parent) + os.sep
    stats = cast(Any, pstats.Stats(profile)).stats
    own = [
        (cumulative, total, calls, f"{file.removeprefix(root)}:{line} {name}")
        for (file, line, name), (_, calls, total, cumulative, _) in stats.items()
        if file.startswith(root) and not name.startswith("<")
    ]
    lines = [
        f"{cumulative:8.2f} {total:8.2f} {calls:8d}  {where}"
        for cumulative, total, calls, where in sorted(own, reverse=True)[:TOP]
    ]
    header = f"{'cumul. s':>8} {'own s':>8} {'calls':>8}  function"
    return {"seconds": found.seconds, "text": "\n".join([header, *lines])}


def committed() -> list[dict[str, Any]]:
    """Seconds and shares of the rungs in the committed searches of this evolution."""
    rows = []
    for file in sorted((HERE / "results").glob("search-*-default-*.json")):
        found = json.loads(file.read_text())
        total = {rung: one["count"] * one["mean_seconds"] for rung, one in found["rungs"].items()}
        rungs = {
            rung: (found["rungs"][rung]["mean_seconds"], seconds / sum(total.values()))
            for rung, seconds in total.items()
        }
        rows.append({"run": file.stem.removeprefix("search-"), "rungs": rungs})
    return rows


def write_page(report: dict[str, Any]) -> None:
    """Write search_cost.md."""
    lines = [
        "# What a search costs",
        "",
        "Made by `OMP_NUM_THREADS=1 python benchmarks/search_cost.py`: one process with one thread,"
        f" at 50 %, statistics and losses on {TEXT}. Seconds are of processor time."
        " [Result file](results/search-cost.json).",
    ]
    writers: dict[str, Callable[[dict[str, Any]], list[str]]] = {
        "rungs": _rungs_part,
        "windows": _windows_part,
        "sizes": _sizes_part,
        "sharing": _sharing_part,
        "profile": _profile_part,
    }
    for name, write in writers.items():
        if name in report:
            lines += ["", *write(report[name])]
    (HERE / "search_cost.md").write_text("\n".join([*lines, ""]))


def _rungs_part(found: dict[str, Any]) -> list[str]:
    rungs, windows = found["rungs"], found["windows"]
    titles = {
        "rejection": "rejection, by form",
        "probe": "probe",
        "reconstruction": "reconstruction",
        "few": f"few ({windows['few']} windows)",
        "all": f"all ({windows['all']} windows)",
    }
    rest = 1 - sum(one["share"] for one in rungs.values())
    lines = [
        "## By rung",
        "",
        f"A search of {found['candidates']} candidates on SmolLM2-135M, windows of"
        f" {found['seqlen']} tokens, {found['seconds']:.0f} s. Rejection: whether a proposal can"
        " mask and is new, by its canonical form, before it becomes a candidate.",
        "",
        "| rung | asked | median | share of the time |",
        "|---|---|---|---|",
    ]
    for rung, title in titles.items():
        if rung in rungs:
            one = rungs[rung]
            median = _time(one["median_seconds"])
            lines.append(f"| {title} | {one['count']} | {median} | {one['share']:.1%} |")
    lines += [
        f"| drawing proposals, deciding, journal | | | {rest:.1%} |",
        "",
        "The same from the [committed searches](search.md), which had longer to find what is"
        " worth a loss: mean wall time and share of what was spent on judging.",
        "",
        "| run | " + " | ".join(RUNGS) + " |",
        "|---|---|---|---|---|",
    ]
    for row in committed():
        cells = [f"{_time(row['rungs'][rung][0])}, {row['rungs'][rung][1]:.0%}" for rung in RUNGS]
        lines.append("| " + " | ".join([row["run"], *cells]) + " |")
    return lines


def _windows_part(found: dict[str, Any]) -> list[str]:
    counts = [int(count) for count in found["seconds"]]
    seconds = list(found["seconds"].values())
    slope, start = statistics.linear_regression(counts, seconds)
    return [
        "## By windows",
        "",
        f"Masking all matrices and the loss on so many windows of {found['seqlen']} tokens,"
        f" medians over {len(METRICS)} metrics and {found['repeats']} turns. The line through"
        f" them: {start:.1f} s, and {slope:.2f} s a window.",
        "",
        "| windows | " + " | ".join(map(str, counts)) + " |",
        "|---|" + "---|" * len(counts),
        "| seconds | " + " | ".join(f"{one:.1f}" for one in seconds) + " |",
    ]


def _sizes_part(found: dict[str, Any]) -> list[str]:
    rows = found["rows"]
    least = rows[0]
    lines = [
        "## By size of the model",
        "",
        "Random models of SmolLM2-135M's width, bfloat16, windows of"
        f" {found['seqlen']} tokens; the median of a candidate, and how many times those of"
        " the smallest.",
        "",
        f"| blocks | weights | × | probe | reconstruction | few ({found['few_windows']} window)"
        f" | all ({found['search_windows']} windows) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{_time(row['seconds'][rung])} ({row['seconds'][rung] / least['seconds'][rung]:.1f}×)"
            for rung in RUNGS
        ]
        head = [str(row["blocks"]), f"{row['weights'] / 1e6:.0f} M"]
        lines.append(
            "| " + " | ".join([*head, f"{row['weights'] / least['weights']:.0f}", *cells]) + " |"
        )
    return lines


def _sharing_part(found: dict[str, Any]) -> list[str]:
    lines = [
        "## With and without what is shared",
        "",
        f"The same search of {found['candidates']} candidates on SmolLM2-135M, seed and number of"
        f" evaluations equal, in {found['repeats']} turns; all archives (expressions,"
        " fingerprints, losses) are asserted to be equal. Medians; ratios are taken within a turn.",
        "",
        "| switched off | candidates a minute | × | judged again |",
        "|---|---|---|---|",
    ]
    for row in found["rows"]:
        again = ", ".join(f"{count} {rung}" for rung, count in row["judged_again"].items())
        lines.append(f"| {row['off']} | {row['per_minute']:.1f} | {row['ratio']:.2f} | {again} |")
    lines += ["", *(f"- {name}: {told}." for name, told in SHARED.items())]
    lines += [
        "",
        "Not separable with the same archive:",
        "",
        "- Forward passes in bfloat16: losses differ from the fourth decimal on; what they save"
        " is [measured apart](judging.md).",
        "- The rungs and the surrogate: they decide who is judged at all. What judging everyone on"
        " all windows would cost follows from the first table.",
        "- A prefix of unchanged blocks: every candidate masks every block, so there is none.",
        "- Statistics: without them kept, every candidate would wait for a calibration.",
    ]
    return lines


def _profile_part(found: dict[str, Any]) -> list[str]:
    lines = [
        "## Where the time is",
        "",
        f"The functions of this project by cumulative time in one such search under cProfile,"
        f" {found['seconds']:.0f} s.",
        "",
        "| cumulative, s | own, s | calls | function |",
        "|---|---|---|---|",
    ]
    for line in found["text"].splitlines()[1:]:
        cumulative, own, calls, where = line.split(maxsplit=3)
        lines.append(f"| {cumulative} | {own} | {calls} | `{where}` |")
    return lines


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"


def _fields(value: Any) -> dict[str, Any]:
    return {one.name: getattr(value, one.name) for one in fields(value)}


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Measure the sections that are missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/search-cost"))
    parser.add_argument("--again", nargs="*", default=[], help="sections to measure anew")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sections: dict[str, Callable[[Path], dict[str, Any]]] = {
        "rungs": measure_rungs,
        "windows": lambda folder: measure_windows(folder, given.repeats),
        "sizes": lambda folder: measure_sizes(folder, given.repeats),
        "sharing": lambda folder: measure_sharing(folder, given.repeats),
        "profile": measure_profile,
    }
    report = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name, measure in sections.items():
        if name not in report or name in given.again:
            start = time.monotonic()
            with scratch(given.folder) as folder:
                found = measure(folder)
            made = {"machine": machine(), "provenance": provenance()}
            report[name] = {**found, **made, "took_seconds": round(time.monotonic() - start)}
            write_atomic(RESULT, json.dumps(report, indent=2) + "\n")
            write_page(report)
    write_page(report)


if __name__ == "__main__":
    main()
