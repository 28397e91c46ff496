"""Universal: what metrics cost, on models that a search saw and did not see.

    python benchmarks/universal.py smollm2-135m builtin:smollm2-135m --windows-eval 6 \\
        --texts wikitext=wiki.test.raw pydoc=builtin:pydoc/test news=news.txt
    python benchmarks/universal.py search RUN
    python benchmarks/universal.py duel builtin:smollm2-135m gemma.gguf --seeds 0 1 2 --minutes 5
    python benchmarks/universal.py page

`search` records which candidates of a search over several models, in the folder RUN, were judged on
all of them, and its final race. `duel` runs such searches and random search, seed by seed, on the
same windows, the smallest model first; the clock advances by the time of the processor that each
judgement took.

Half of the weights of a model are zero, or two of four, by each metric of METRICS; PATTERNS says
what else is done. Statistics are of 96 windows of 256 tokens that the model wrote. Losses are those
of windows of 1024 tokens of each text. Rows that are there are kept; --only names the labels to
fill.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from scipy import stats

from pruner_zero import prune
from pruner_zero.evolution.algorithm import make_algorithm
from pruner_zero.evolution.record import Archive
from pruner_zero.evolution.build import JudgedModel, space_of
from pruner_zero.evolution.evaluator import Judge, Outcome, Task
from pruner_zero.evolution.final import FinalRace
from pruner_zero.evolution.run import run_batches
from pruner_zero.evolution.several_models import Models, judge_several
from pruner_zero.evolution.study import Study
from pruner_zero.files import write_atomic
from pruner_zero.models.load import load_model
from pruner_zero.models.next_token import next_token_losses, to_perplexity
from pruner_zero.settings.search_settings import SearchSettings
from pruner_zero.text.corpus import load_corpus
from pruner_zero.text.mixture import load_mixture
from pruner_zero.text.token_windows import consecutive_windows
from recorded import Clock
from tables import blocks_in_bfloat16, markdown, results, rounded, script_parser, write_page

ROWS = results("universal")
SEARCHES, DUELS = ROWS / "searches", ROWS / "duel"
DENSE, WANDA = "dense", "`wanda@row`"
# What each label stands for.
METRICS: Mapping[str, str] = {
    WANDA: "wanda@row",
    "`ria@row`": "ria@row",
    "`pruner-zero@row`": "pruner-zero@row",
    "product": "W * (O * X)^0.73@global",
    "made by hand": "W * (O * X)^0.73 * row_normalize(W * X^0.73)^0.33@global",
    "G": "W * G^0.75@global",
    "G and O, relative rows": (
        "W * G^0.5 * (O * X)^0.25 * row_normalize(W * G^0.5 * X^0.25)^0.33@global"
    ),
    "evolved on SmolLM2 and Gemma": (
        "W * G^0.85 * (column_normalize(W * G^0.55) * row_normalize(W + (W * X)^0.85))^0.35@global"
    ),
    "evolved on both at 2:4": "W * X^1.15@row",
    "shares by price": "row_odds(W * X) * P^0.5@global",
    "shares by price, columns": "row_odds(W * column_normalize(W) * X) * P^0.5@global",
    "odds, gradients and price": "row_odds(W * X)^0.5 * W * G^0.85 * P^0.1@global",
    "evolved with prices": "O * W * X^1.35 * row_odds(W * X) * sqrt(P * row_odds(W))@global",
    "evolved in five minutes": "G * W * sqrt(P) * row_odds(W * X)@global",
    "O * X in the place of G": "O * W * X * sqrt(P) * row_odds(W * X)@global",
}
# Settings of prune by the name of the pattern. 50-trained is the default with fewer steps.
PATTERNS: Mapping[str, Mapping[str, Any]] = {
    "50": {"sparsity": 0.5, "mode": "one-shot"},
    "2-4": {"pattern": "2:4", "mode": "one-shot"},
    "50-trained": {"sparsity": 0.5, "reconstruct": 2, "distill": 20},
}


def main() -> None:
    """Fill the rows that are missing, or write the page."""
    parser = script_parser(__doc__)
    parser.add_argument("name", help="a name for the rows of a model, or `search`, or `page`")
    parser.add_argument("model", nargs="*", help="what prune takes as MODEL, or the folder")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], help="of `duel`")
    parser.add_argument("--minutes", type=float, default=5, help="of a run of `duel`")
    parser.add_argument("--texts", nargs="*", default=[], help="each as NAME=TEXT")
    parser.add_argument("--windows-eval", type=int, default=8)
    parser.add_argument("--dtype", default="auto", help="of the weights, such as bfloat16")
    parser.add_argument("--patterns", nargs="*", default=["50"], choices=[*PATTERNS])
    parser.add_argument("--only", nargs="*", help="labels of rows, all where left out")
    parser.add_argument("--cache", help="a folder for statistics and texts")
    given = parser.parse_args()
    if given.name == "search":
        record_search(Path(given.model[0]))
    elif given.name == "duel":
        torch.set_num_threads(1)
        duel(given)
    elif given.name != "page":
        texts = dict(text.split("=", 1) for text in given.texts)
        for pattern in given.patterns:
            fill(given, pattern, texts)
    write_page("universal", page())


@torch.no_grad()
def fill(given: Any, pattern: str, texts: Mapping[str, str]) -> None:
    """Measure the rows of one model and pattern, each written as soon as it is known."""
    file = ROWS / f"{given.name}-{pattern}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(file.read_text()) if file.exists() else {}
    model = load_model(given.model[0], given.dtype)
    windows = {
        name: consecutive_windows(
            load_corpus(text, role="test"), model.tokenizer, 1024, given.windows_eval
        ).tokens
        for name, text in texts.items()
    }
    dense = {name: value.clone() for name, value in model.model.state_dict().items()}
    for label, metric in {DENSE: "", **METRICS}.items():
        if label in rows or not (given.only is None or label in given.only):
            continue
        row: dict[str, Any] = {}
        if metric:
            name, _, scope = metric.rpartition("@")
            row = {"metric": name, "scope": scope}
            settings: dict[str, Any] = {**PATTERNS[pattern], "windows": 96, "seqlen": 256}
            if pattern != "2-4":
                settings["scope"] = scope
            result = prune(model, name, calibration="self", cache=given.cache, **settings)
            row["seconds"] = result.cost.to_json()
        with blocks_in_bfloat16(model.model):
            losses = {
                text: [float(next_token_losses(model.model, each[None])) for each in tokens]
                for text, tokens in windows.items()
            }
        rows[label] = {**row, "losses": {text: rounded(of) for text, of in losses.items()}}
        model.model.load_state_dict(dense)
        write_atomic(file, json.dumps(rows, indent=1) + "\n")
        print(label, {text: round(to_perplexity(fmean(of)), 2) for text, of in losses.items()})


class Timed:
    """Makes each judgement once; its clock advances by its seconds of the processor."""

    def __init__(self, judge: Judge, made: dict[Task, Outcome]) -> None:
        self.judge, self.made, self.clock = judge, made, Clock()

    def map(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """The outcome of every task."""
        for task in tasks:
            question = replace(task, number=0)
            if question not in self.made:
                start = time.process_time()
                outcome = self.judge.run(task)
                self.made[question] = replace(outcome, seconds=time.process_time() - start)
            outcome = self.made[question]
            self.clock.seconds += outcome.seconds
            yield replace(outcome, number=task.number)

    def close(self) -> None:
        """Nothing to stop."""


def duel(given: Any) -> None:
    """Search with evolution and at random; every run ends with the race on the same windows."""
    model, *others = given.model
    settings = SearchSettings(
        model=model,
        others=others,
        sparsity=0.5,
        minutes=given.minutes,
        search_windows=6,
        final_windows=6,
    )
    text, cache = load_mixture("self"), None if given.cache is None else Path(given.cache)
    loaded = [load_model(name) for name in given.model]
    judged = [JudgedModel.of(each, settings, text, text, cache) for each in loaded]
    models = Models.named([each.name for each in loaded], worst=False)
    judge = judge_several(models, [each.evaluator(settings) for each in judged], "row")
    made: dict[Task, Outcome] = {}
    for seed, algorithm in product(given.seeds, ("default", "random")):
        file = DUELS / f"{given.minutes:g}-minutes-{algorithm}-{seed}.json"
        if file.exists():
            continue
        executor = Timed(judge, made)
        with (
            TemporaryDirectory() as folder,
            patch("pruner_zero.evolution.run.time", executor.clock),
        ):
            archive = Archive(Path(folder), settings.identity())
            search = make_algorithm(algorithm, space_of(settings), seed)
            run_batches(search, archive, executor, settings, Path(folder), lambda _: None, models)
            race = FinalRace.of(
                archive.records, archive.outcomes, archive.journal.finalists, models
            )
        assert race.winner is not None
        candidate = race.winner.record.candidate
        ran = Counter(outcome.rung for outcome in archive.outcomes)
        values = {
            "models": list(models.names),
            "candidates": len(archive.records),
            "judgements": dict(ran),
            "winner": f"{candidate.expression}@{candidate.scope}",
            "parts": {k: round(v, 5) for k, v in models.parts(race.winner.losses).items()},
            "all": round(race.winner.loss, 5),
        }
        DUELS.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(values, indent=1) + "\n")
        print(file.stem, values["winner"], f"{race.winner.loss:+.1%}", flush=True)


def record_search(folder: Path) -> None:
    """Write what a search over several models judged on all of them, and its final race."""
    study = Study.open(folder)
    assert study.models is not None
    names = [*study.models.names, "all"]
    judged = [record for record in study.records if "all" in record.evaluation.results]
    judged.sort(key=lambda record: record.evaluation.results["all"])
    values = {
        "models": names[:-1],
        "zeros": study.settings["pattern"] or f"{100 * study.settings['sparsity']:g} %",
        "minutes": study.settings["minutes"],
        "workers": study.settings["workers"],
        "seed": study.settings["seed"],
        "journal_sha256": sha256((folder / "journal.jsonl").read_bytes()).hexdigest(),
        "candidates": len(study.records),
        "judged": [
            {
                "metric": f"{record.candidate.expression}@{record.candidate.scope}",
                **{name: round(record.evaluation.results[name], 4) for name in names},
            }
            for record in judged
        ],
        "final": [
            {
                "metric": f"{each.record.candidate.expression}@{each.record.candidate.scope}",
                **{name: round(part, 4) for name, part in study.models.parts(each.losses).items()},
                "all": round(each.loss, 4),
            }
            for each in study.final_race.finalists
        ],
    }
    SEARCHES.mkdir(parents=True, exist_ok=True)
    count = len(list(SEARCHES.glob("*.json")))
    write_atomic(SEARCHES / f"{count + 1}.json", json.dumps(values, indent=1) + "\n")


def page() -> str:
    """The page of all rows, with what they lose of what Wanda's mask loses."""
    text = (
        "# Metrics on several models\n\nMade by `python benchmarks/universal.py"
        " smollm2-135m builtin:smollm2-135m --windows-eval 6 --texts wikitext=wiki.test.raw"
        " pydoc=builtin:pydoc/test news=news.txt`, and the same for each model.\n"
    )
    for file in sorted(ROWS.glob("*.json")):
        means = text_means(file.stem)
        cells = []
        for label in (label for label in (DENSE, *METRICS) if label in means):
            cells.append([label, *(f"{to_perplexity(loss):.2f}" for loss in means[label].values())])
            cells[-1].append("" if label == DENSE else f"{100 * beside_wanda(means, label):+.1f} %")
        header = ["metric", *means[DENSE], "loss beside Wanda's"]
        text += f"\n## {file.stem}\n\n" + markdown(header, cells)
    return text + agreement() + search_tables() + duel_table()


def text_means(name: str) -> dict[str, dict[str, float]]:
    """The mean loss on each text, by the label of the rows of a model and pattern."""
    rows = json.loads((ROWS / f"{name}.json").read_text())
    return {
        label: {text: fmean(of) for text, of in row["losses"].items()}
        for label, row in rows.items()
    }


def agreement() -> str:
    """How well the order of masks alone agrees with their order after training."""
    text = ""
    for file in sorted(ROWS.glob("*-50-trained.json")):
        trained, alone = text_means(file.stem), text_means(file.stem.removesuffix("-trained"))
        labels = [label for label in METRICS if label in trained and label in alone]
        losses = [[fmean(of[label].values()) for label in labels] for of in (alone, trained)]
        text += (
            f"\nOf {len(labels)} masks, {file.stem} and the masks alone have a rank correlation of "
            f"{stats.spearmanr(*losses).statistic:.2f} (Spearman's, mean loss over the texts).\n"
        )
    return text


def search_tables() -> str:
    """What the searches found, by their judgements on fresh windows."""
    text = ""
    for file in sorted(SEARCHES.glob("*.json")):
        found = json.loads(file.read_text())
        names = [*found["models"], "all"]
        text += f"\n## Search {file.stem}: {' and '.join(found['models'])}\n\n"
        text += (
            f"{found['zeros']} zeros, {found['minutes']:g} minutes, "
            f"workers: {found['workers'] or 'one per core'}, seed {found['seed']}, "
            f"{found['candidates']} "
            f"candidates, {len(found['judged'])} judged on all models. "
        )
        if journal := found.get("journal_sha256"):
            text += f"SHA-256 of its journal: {journal[:12]}. "
        text += "The final race, on fresh windows:\n\n"
        cells = [
            [f"`{row['metric']}`", *(f"{100 * row[name]:+.1f} %" for name in names)]
            for row in found["final"]
        ]
        text += markdown(["metric", *names], cells)
    return text


def duel_table() -> str:
    """Evolution beside random search, seed by seed."""
    text = ""
    for minutes in sorted({file.stem.split("-")[0] for file in DUELS.glob("*.json")}, key=float):
        runs = {
            file.stem.split("-")[-1]: {
                arm: json.loads((DUELS / f"{minutes}-minutes-{arm}-{seed}.json").read_text())
                for arm in ("default", "random")
            }
            for file in sorted(DUELS.glob(f"{minutes}-minutes-random-*.json"))
            for seed in [file.stem.split("-")[-1]]
        }
        ahead = sum(run["default"]["all"] < run["random"]["all"] for run in runs.values())
        text += f"\n## Evolution beside random search, {minutes} minutes\n\nOn the fresh windows "
        text += f"of the final race evolution is ahead on {ahead} of {len(runs)} seeds.\n\n"
        cells = [
            [seed, arm, str(of["candidates"]), f"{100 * of['all']:+.1f} %", f"`{of['winner']}`"]
            for seed, run in runs.items()
            for arm, of in run.items()
        ]
        text += markdown(["seed", "search", "candidates", "beside Wanda's", "chosen"], cells)
    return text


def beside_wanda(means: Mapping[str, Mapping[str, float]], label: str) -> float:
    """What a mask loses more than Wanda's, as a share of Wanda's, averaged over the texts."""
    dense, wanda = means[DENSE], means[WANDA]
    return fmean(
        (loss - wanda[text]) / (wanda[text] - dense[text]) for text, loss in means[label].items()
    )


if __name__ == "__main__":
    main()
