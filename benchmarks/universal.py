"""Universal: what metrics cost as masks alone, on models that a search saw and did not see.

    python benchmarks/universal.py smollm2-135m builtin:smollm2-135m --windows-eval 6 \\
        --texts wikitext=wiki.test.raw pydoc=builtin:pydoc/test news=news.txt
    python benchmarks/universal.py search RUN
    python benchmarks/universal.py page

`search` records which candidates of a search over several models, in the folder RUN, were judged on
all of them, and its final race.

Half of the weights of a model are zero, or two of four, by each metric of METRICS. Statistics are
of 96 windows of 256 tokens that the model wrote. Losses are those of windows of 1024 tokens of each
text. Rows that are there are kept; --only names the labels to fill.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from pruner_zero import prune
from pruner_zero.evolution.study import Study
from pruner_zero.files import write_atomic
from pruner_zero.models.load import load_model
from pruner_zero.models.loss import next_token_losses, to_perplexity
from pruner_zero.settings.prune import DEFAULT
from pruner_zero.text.corpus import load_corpus
from pruner_zero.text.windows import consecutive_windows
from tables import blocks_in_bfloat16, markdown, results, rounded, script_parser, write_page

ROWS = results("universal")
SEARCHES = ROWS / "searches"
DENSE, WANDA = "dense", "`wanda@row`"
# What each label stands for.
METRICS: Mapping[str, str] = {
    WANDA: "wanda@row",
    "`ria@row`": "ria@row",
    "`pruner-zero@row`": "pruner-zero@row",
    "product": "W * (O * X)^0.73@global",
    "default": f"{DEFAULT['metric']}@global",
    "G": "W * G^0.75@global",
    "G and O, relative rows": (
        "W * G^0.5 * (O * X)^0.25 * row_normalize(W * G^0.5 * X^0.25)^0.33@global"
    ),
    "evolved on SmolLM2 and Gemma": (
        "W * G^0.85 * (column_normalize(W * G^0.55) * row_normalize(W + (W * X)^0.85))^0.35@global"
    ),
}
PATTERNS: Mapping[str, Mapping[str, Any]] = {"50": {"sparsity": 0.5}, "2-4": {"pattern": "2:4"}}


def main() -> None:
    """Fill the rows that are missing, or write the page."""
    parser = script_parser(__doc__)
    parser.add_argument("name", help="a name for the rows of a model, or `search`, or `page`")
    parser.add_argument("model", nargs="?", help="what prune takes as MODEL, or the folder")
    parser.add_argument("--texts", nargs="*", default=[], help="each as NAME=TEXT")
    parser.add_argument("--windows-eval", type=int, default=8)
    parser.add_argument("--dtype", default="auto", help="of the weights, such as bfloat16")
    parser.add_argument("--patterns", nargs="*", default=["50"], choices=[*PATTERNS])
    parser.add_argument("--only", nargs="*", help="labels of rows, all where left out")
    parser.add_argument("--cache", help="a folder for statistics and texts")
    given = parser.parse_args()
    if given.name == "search":
        record_search(Path(given.model))
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
    model = load_model(given.model, given.dtype)
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
            if pattern == "50":
                settings["scope"] = scope
            result = prune(
                model, name, calibration="self", mode="one-shot", cache=given.cache, **settings
            )
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


def record_search(folder: Path) -> None:
    """Write what a search over several models judged on all of them, and its final race."""
    study = Study.open(folder)
    assert study.panel is not None
    models = [*study.panel.models, "all"]
    judged = [record for record in study.records if "all" in record.evaluation.results]
    judged.sort(key=lambda record: record.evaluation.results["all"])
    values = {
        "models": models[:-1],
        "minutes": study.settings["minutes"],
        "workers": study.settings["workers"],
        "seed": study.settings["seed"],
        "candidates": len(study.records),
        "judged": [
            {
                "metric": f"{record.candidate.expression}@{record.candidate.scope}",
                **{name: round(record.evaluation.results[name], 4) for name in models},
            }
            for record in judged
        ],
        "final": [
            {
                "metric": f"{each.record.candidate.expression}@{each.record.candidate.scope}",
                **{name: round(part, 4) for name, part in study.panel.parts(each.losses).items()},
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
        "# Metrics as masks alone, on several models\n\nMade by `python benchmarks/universal.py"
        " smollm2-135m builtin:smollm2-135m --windows-eval 6 --texts wikitext=wiki.test.raw"
        " pydoc=builtin:pydoc/test news=news.txt`, and the same for each model.\n"
    )
    for file in sorted(ROWS.glob("*.json")):
        rows = json.loads(file.read_text())
        means = {
            label: {text: fmean(of) for text, of in row["losses"].items()}
            for label, row in rows.items()
        }
        cells = []
        for label in (label for label in (DENSE, *METRICS) if label in rows):
            cells.append([label, *(f"{to_perplexity(loss):.2f}" for loss in means[label].values())])
            cells[-1].append("" if label == DENSE else f"{100 * beside_wanda(means, label):+.1f} %")
        header = ["metric", *means[DENSE], "loss beside Wanda's"]
        text += f"\n## {file.stem}\n\n" + markdown(header, cells)
    return text + search_tables()


def search_tables() -> str:
    """What the searches found, by their judgements on fresh windows."""
    text = ""
    for file in sorted(SEARCHES.glob("*.json")):
        found = json.loads(file.read_text())
        names = [*found["models"], "all"]
        text += f"\n## Search {file.stem}: {' and '.join(found['models'])}\n\n"
        text += (
            f"{found['minutes']:g} minutes, {found['workers']} worker, seed {found['seed']}, "
            f"{found['candidates']} candidates, {len(found['judged'])} judged on all models. "
            "The final race, on fresh windows:\n\n"
        )
        cells = [
            [f"`{row['metric']}`", *(f"{100 * row[name]:+.1f} %" for name in names)]
            for row in found["final"]
        ]
        text += markdown(["metric", *names], cells)
    return text


def beside_wanda(means: Mapping[str, Mapping[str, float]], label: str) -> float:
    """What a mask loses more than Wanda's, as a share of Wanda's, averaged over the texts."""
    dense, wanda = means[DENSE], means[WANDA]
    return fmean(
        (loss - wanda[text]) / (wanda[text] - dense[text]) for text, loss in means[label].items()
    )


if __name__ == "__main__":
    main()
