"""The search against random search, seed by seed, and on another model beside fixed metrics.

    python benchmarks/duel.py --calibration wiki.valid.raw --text wiki.test.raw \
        --arms default random --minutes 6

All runs share the model, the statistics, the search windows and the rungs, and have the same
minutes, on a clock that advances by what judging a candidate costs: `recorded.py`. What each run
chose is measured on windows of another text, which no search has read. A run is a file under
benchmarks/results/duel; runs that are there are kept. Judgements are kept in a table in the folder
--runs: a run that needs no others needs neither the texts nor the model. The page is duel.md.
--model searches another model, and --beside measures fixed metrics on the same windows:

    python benchmarks/duel.py --calibration wiki.valid.raw --text wiki.test.raw \
        --model gemma-3-270m-q4_k_m.gguf --arms default --seeds 0 --minutes 30 --windows-eval 24 \
        --beside 'W * X@row' 'W * (O * X)^0.75@global' 'W * G^0.75@global'
"""

import argparse
import json
import math
import re
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from pruner_zero.choices import Group
from pruner_zero.cli.terminal import LineProgress
from pruner_zero.evolution.algorithm import make_algorithm
from pruner_zero.evolution.record import Archive
from pruner_zero.evolution.build import JudgedModel, space_of
from pruner_zero.evolution.evaluator import Evaluator
from pruner_zero.evolution.run import run_batches
from pruner_zero.evolution.study import Study
from pruner_zero.files import write_json
from pruner_zero.metric.grammar import parse
from pruner_zero.models.load import load_model
from pruner_zero.progress import reported_to
from pruner_zero.settings.search_settings import SearchSettings
from pruner_zero.text.corpus import load_corpus
from pruner_zero.text.mixture import load_mixture
from pruner_zero.text.token_windows import consecutive_windows
from recorded import Costs, Recorded, Table, measure_costs
from tables import markdown, results, script_parser, write_page

RESULTS = results("duel")
USUAL = "builtin:smollm2-135m"
# How the names of results begin whose minutes are of the processor.
PROCESSOR = "processor-"


# What the settings of `search` are in an arm.
ARMS: dict[str, dict[str, Any]] = {"default": {}, "random": {"algorithm": "random"}}
# A run has reached the best where its loss on the search windows is this near, in nats, to the
# lowest of all runs of the table.
NEAR = 0.01
# Measured on one thread of one machine (decisions.md, "Cost of a search").
COSTS = {USUAL: Costs(closed_form=0.26, masks=1.1, window=1.48)}


def main() -> None:
    """Run what is missing, and write the page."""
    parser = script_parser(__doc__)
    parser.add_argument("--model", default=USUAL)
    parser.add_argument("--calibration", help="WikiText-2 validation, raw")
    parser.add_argument("--text", help="WikiText-2 test, raw")
    parser.add_argument("--sparsity", type=float)
    parser.add_argument("--pattern")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=[])
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(10)))
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--windows-eval", type=int, default=48)
    parser.add_argument("--beside", nargs="*", default=[], metavar="METRIC@SCOPE")
    parser.add_argument("--runs", type=Path, default=Path("runs/duel"))
    given = parser.parse_args()
    if given.arms or given.beside:
        torch.set_num_threads(1)
        run(given)
    write_page("duel", page())


def run(given: argparse.Namespace) -> None:
    """Search with every arm and seed that has no result yet."""
    zeros = {"pattern": given.pattern} if given.pattern else {"sparsity": given.sparsity or 0.5}
    name = str(next(iter(zeros.values()))).replace(":", "-")
    if given.model != USUAL:
        name = f"{Path(given.model).stem}-{name}"
    table = Table(given.runs / f"{name}.table.jsonl", given.runs / f"{name}.added.jsonl")
    judge = Judge(given, zeros, table)
    for metric in given.beside:
        file = RESULTS / f"{name}-{re.sub('[^A-Za-z0-9.^@]+', '-', metric)}.json"
        if not file.exists():
            expression, _, scope = metric.partition("@")
            losses = judge.test_losses(expression, scope)
            row = {"model": given.model, "zeros": zeros, "metric": metric, "losses": losses}
            # Of the searches that it is beside.
            row["minutes"] = given.minutes
            write_json(file, row)
    for seed in given.seeds:
        for arm in given.arms:
            run_name = f"{name}-{given.minutes:g}-minutes-{arm.replace(' ', '-')}-{seed}"
            file = RESULTS / f"{run_name}.json"
            if file.exists():
                continue
            table.refresh()
            chosen = SearchSettings(**judge.base, **ARMS[arm], seed=seed)
            folder = given.runs / run_name
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            executor = Recorded(judge.evaluator, table, judge.costs, judge.windows)
            algorithm = make_algorithm(
                chosen.algorithm, space_of(chosen), seed, chosen.algorithm_settings
            )
            archive = Archive(folder, chosen.identity())
            with patch("pruner_zero.evolution.run.time", executor.clock):
                run_batches(algorithm, archive, executor, chosen, folder, lambda status: None)
            study = Study.open(folder)
            best = study.hall_of_fame.best
            assert best is not None
            candidate = best.candidate
            result = {
                "model": given.model,
                "arm": arm,
                "seed": seed,
                "zeros": zeros,
                "minutes": given.minutes,
                "arm_settings": ARMS[arm],
                "winner": f"{candidate.expression} @{candidate.scope}",
                "losses": judge.test_losses(str(candidate.expression), candidate.scope),
                "final": study.final_race.to_rows(),
                "candidates": len(study.records),
                "batches": len(study.batches),
                "by_rung": {rung: len(seconds) for rung, seconds in study.seconds.items()},
                "seconds_by_rung": {rung: sum(s) for rung, s in study.seconds.items()},
                "curve": curve(study),
            }
            write_json(file, result)
            table.refresh()
            table.pack()
            print(file.stem, result["candidates"], result["batches"], result["by_rung"])
            print(" ", result["winner"], math.exp(statistics.mean(result["losses"])), flush=True)


class Judge:
    """What judges the candidates of all runs: a table, and a model for what the table lacks."""

    def __init__(self, given: argparse.Namespace, zeros: dict[str, Any], table: Table) -> None:
        self.given = given
        self.table = table
        self.base = {
            "model": given.model,
            "executor": "serial",
            "minutes": given.minutes,
            "judge_dtype": "float32",
            **zeros,
        }

    @cached_property
    def evaluator_and_windows(self) -> tuple[Evaluator, Tensor]:
        """The evaluator, and the windows of the test."""
        given = self.given
        if not (given.calibration and given.text):
            raise SystemExit("the table lacks a judgement: give --calibration and --text")
        language_model = load_model(given.model)
        text = load_mixture(given.calibration, role="calibration")
        settings = SearchSettings(**self.base)
        judged = JudgedModel.of(language_model, settings, text, text, given.runs / "cache")
        test = consecutive_windows(
            load_corpus(given.text), language_model.tokenizer, settings.seqlen, given.windows_eval
        )
        described = {**judged.describe(), "test": test.describe()}
        header = self.table.header
        if header and hashes(header["windows"]) != hashes(described):
            raise SystemExit(f"{self.table.whole} is of other texts: move it elsewhere")
        with reported_to(LineProgress()):
            evaluator = judged.evaluator(settings)
        if not header:
            costs = COSTS.get(given.model) or measure_costs(evaluator)
            self.table.add({"windows": described, "costs": asdict(costs)})
        return evaluator, test.tokens

    @property
    def costs(self) -> Costs:
        """What the clock counts, from the table's header."""
        if not self.table.header:
            self.evaluator()
        return Costs(**self.table.header["costs"])

    def evaluator(self) -> Evaluator:
        """The evaluator, built when it is first asked for."""
        return self.evaluator_and_windows[0]

    @property
    def windows(self) -> dict[str, int]:
        """The number of windows of each rung."""
        settings = SearchSettings(**self.base)
        return {
            "few": settings.few_windows,
            "all": settings.search_windows,
            "final": settings.final_windows,
        }

    def test_losses(self, expression: str, scope: Group) -> list[float]:
        """The losses on the windows of the test."""
        losses: list[float] | None = self.table.find(expression, scope, "test")
        if losses is None:
            evaluator, test = self.evaluator_and_windows
            losses = evaluator.masked.losses(parse(expression), scope, test)
            self.table.add({"expression": expression, "scope": scope, "test": losses})
        return losses


def hashes(described: Mapping[str, Any]) -> list[str]:
    """What tells the windows of one table from those of another."""
    return [windows["tokens_sha256"] for windows in described.values()]


def curve(study: Study) -> list[tuple[float, float]]:
    """Seconds and the lowest loss on all search windows, after every batch that has one."""
    points, first = [], 0
    best = math.inf
    for candidates, seconds in study.batches:
        for record in study.records[first:candidates]:
            best = min(best, record.evaluation.results.get("all", math.inf))
        first = candidates
        if best < math.inf:
            points.append((seconds, best))
    return points


def page() -> str:
    """The page of the result files that are there."""
    found = {file: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))}
    lines = [
        "# The search beside random search, seed by seed",
        "",
        "Made by `python benchmarks/duel.py --calibration wiki.valid.raw --text wiki.test.raw` with"
        " the zeros, arms, seeds and minutes in the tables. All runs of a table share the"
        " statistics (24 windows of the first half of WikiText-2 validation), the search windows"
        " (of its second half), the rungs and the final race. The loss is that of what a run chose,"
        " on windows of WikiText-2 test, which no search has read.",
        "",
    ]
    tables: dict[str, list[dict[str, Any]]] = {}
    for file, result in found.items():
        model = Path(result.get("model", USUAL)).stem.removeprefix("builtin:")
        title = f"{model}, " + " ".join(f"{key} {value}" for key, value in result["zeros"].items())
        # Before there was a clock of judgements.
        if file.stem.startswith(PROCESSOR):
            title += ", minutes of the processor, an earlier version"
        else:
            title += f", {result['minutes']:g} minutes"
        tables.setdefault(title, []).append(result)
    for title, rows in tables.items():
        arms = [row for row in rows if "arm" in row]
        fixed = [row for row in rows if "metric" in row]
        lines += [f"## {title}", "", *_against(arms), *_runs(arms, fixed), ""]
    return "\n".join(lines)


def _against(rows: list[dict[str, Any]]) -> list[str]:
    """Every arm against the default, over the seeds that both have."""
    by_arm: dict[str, dict[int, float]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], {})[row["seed"]] = statistics.mean(row["losses"])
    first = by_arm.get("default", {})
    rows_of_arms = []
    for arm, losses in by_arm.items():
        seeds = sorted(losses.keys() & first.keys())
        if arm == "default" or not seeds:
            continue
        ahead = [losses[seed] - first[seed] for seed in seeds]
        cells = [
            arm,
            str(len(seeds)),
            str(sum(difference > 0 for difference in ahead)),
            f"{statistics.median(ahead):+.3f}",
            f"{math.exp(statistics.median(losses[seed] for seed in seeds)):.2f}",
            f"{math.exp(statistics.median(first[seed] for seed in seeds)):.2f}",
        ]
        rows_of_arms.append(cells)
    header = ["against the default", "seeds", "default is better in", "median difference, nats"]
    header += ["median perplexity of the arm", "of the default"]
    return [markdown(header, rows_of_arms)] if rows_of_arms else []


def _runs(rows: list[dict[str, Any]], fixed: list[dict[str, Any]]) -> list[str]:
    windows = len((rows + fixed)[0]["losses"])
    header = ["seed", "arm", "minutes", "candidates", "few", "all", "minutes to the best"]
    header += ["perplexity on test, 12 windows", f"{windows} windows", "chosen"]
    table = []
    lowest = min((row["curve"][-1][1] for row in rows if row["curve"]), default=math.inf)
    for row in sorted(rows, key=lambda row: (row["seed"], row["arm"])):
        cells = [
            str(row["seed"]),
            row["arm"],
            f"{row['minutes']:g}",
            str(row["candidates"]),
            *(str(row["by_rung"].get(rung, 0)) for rung in ("few", "all")),
            _minutes_to(row["curve"], lowest + NEAR),
            *_perplexities(row),
            f"`{row['winner']}`",
        ]
        table.append(cells)
    for row in fixed:
        cells = ["", "fixed", "", "", "", "", "", *_perplexities(row), f"`{row['metric']}`"]
        table.append(cells)
    return [markdown(header, table)]


def _minutes_to(points: list[list[float]], loss: float) -> str:
    """The minutes until the loss on all search windows was as low as this; a dash if never."""
    first = next((seconds for seconds, value in points if value <= loss), None)
    return "–" if first is None else f"{first / 60:.1f}"


def _perplexities(row: dict[str, Any]) -> list[str]:
    parts = (row["losses"][:12], row["losses"])
    return [f"{math.exp(statistics.mean(losses)):.2f}" for losses in parts]


if __name__ == "__main__":
    main()
