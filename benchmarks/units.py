"""Whole units by named metrics and by an evolved one, at several shares, with and without refit.

    python benchmarks/units.py --calibration wiki.valid.raw \\
        --texts wikitext=wiki.test.raw pydoc=builtin:pydoc/test news=news.txt --evolved METRIC
    python benchmarks/units.py --search runs/heads
    python benchmarks/units.py --prices wiki.valid.raw
    python benchmarks/units.py --page

Every model is a line of results/units.jsonl, and lines that are there are kept. All are made by
`prune --structure` from statistics of the dense model (--mode one-shot), so that they differ in
nothing but the units that go and the refit, but for those that say "block after block". --search
writes what a search of units found, results/units-search-STRUCTURE.json; --prices measures how far
predictions diverge without some units, beside their price `F`, results/units-prices.json. news.txt
is that of proof.py. The page is units.md.
"""

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import quantiles
from typing import Any
from unittest.mock import patch

import torch
from scipy.stats import spearmanr
from torch import Tensor
from transformers import PreTrainedModel

from pruner_zero import evaluate, prune
from pruner_zero.calibration.calibrate import StatisticsStore, calibrate
from pruner_zero.calibration.windows import open_calibration, take_windows
from pruner_zero.cli.terminal import LineProgress
from pruner_zero.evolution.study import Study
from pruner_zero.files import read_lines, write_json
from pruner_zero.models.couplings import Coupling, find_couplings
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.predictions import compare_logits
from pruner_zero.progress import reported_to
from pruner_zero.structure.units import UnitMask
from pruner_zero.text.mixture import load_mixture
from tables import machine, markdown, results, script_parser, write_page

RESULTS = results("units.jsonl")
MODEL = "builtin:smollm2-135m"
# Windows of 1024 tokens of each text.
WINDOWS = 8
# Windows that the model writes, of which prices are made, and their tokens; and those on which the
# divergence is measured.
PRICED, MEASURED = (24, 256), (2, 256)
# The first tokens of a window are not among those whose divergence is measured.
FIRST_TOKENS = 8
# SmolLM2-135M has 3 key-value heads in a block, of which only one can go.
SHARES = {
    "channels": (0.2, 0.5, 0.3, 0.1),
    "heads": (0.3334,),
    "blocks": (0.1, 0.2, 0.3),
}
# The settings of a search that its file names.
SEARCHED = (
    *("calibration", "windows", "seqlen", "seed", "sparsity", "model", "minutes", "structure"),
    *("update", "search_windows", "final_windows"),
)
RANDOM, EVOLVED = "random units", "evolved"
METRICS = {
    RANDOM: "magnitude",
    "Wanda-sp": "sqrt(W * X)",
    "Wanda": "wanda",
    EVOLVED: None,
}
# What else the refit of Wanda's channels can have, at one share: statistics of each block from the
# smaller blocks before it, and the distillation that `prune` adds where no metric is named.
FURTHER: Mapping[str, Mapping[str, Any]] = {
    "block after block": {"mode": "sequential"},
    "then 40 steps of distillation": {"mode": "one-shot", "distill": 40},
}
FURTHER_AT = ("channels", 0.2)
REFITS = {"none": "without refit", "exact": "with refit", "peer": "by other packages"}


def main() -> None:
    """Measure the models that are missing, and write the page."""
    parser = script_parser(__doc__)
    parser.add_argument("--calibration", help="WikiText-2 validation, raw")
    parser.add_argument("--texts", nargs="*", default=[], metavar="NAME=TEXT")
    parser.add_argument("--evolved", help="the metric that a search found")
    parser.add_argument("--structures", nargs="*", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--search", type=Path, help="the folder of a search of units")
    parser.add_argument("--prices", help="a text on which divergences are measured")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    given = parser.parse_args()
    if given.search:
        write_search(Study.open(given.search))
    elif given.prices:
        measure_prices(given.prices)
    elif not given.page:
        run(given)
    write_page("units", page(read_lines(RESULTS)))


def run(given: argparse.Namespace) -> None:
    """Append a line for every model that has none."""
    known = {key(line) for line in read_lines(RESULTS)}
    texts = dict(text.split("=", 1) for text in given.texts)
    for row in rows(given):
        if key(row) in known:
            continue
        print(row, flush=True)
        model = load_model(MODEL, dtype="float32")
        settings = {name: row[name] for name in row if name not in ("name", "metric")}
        units = random_units() if row["name"] == RANDOM else nullcontext()
        with units, reported_to(LineProgress()):
            result = prune(model, row["metric"], calibration=given.calibration, **settings)
        line = {
            **row,
            "kept": result.parameters[1],
            "dense": result.parameters[0],
            "seconds": round(result.cost.seconds, 1),
            "perplexity": perplexities(model, texts),
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
        write_page("units", page(read_lines(RESULTS)))


def write_search(study: Study) -> None:
    """Write the settings, the hall of fame and the final race of a search."""
    found = {
        "settings": {name: study.settings[name] for name in SEARCHED},
        "candidates": len(study.records),
        "hall_of_fame": study.hall_of_fame.to_rows(),
        "final": study.final_race.to_rows(),
    }
    file = results(f"units-search-{study.settings['structure']}.json")
    write_json(file, found)


def measure_peers(given: argparse.Namespace) -> None:
    """Append a line for every folder of another package that has none."""
    known = {key(line) for line in read_lines(RESULTS)}
    texts = dict(text.split("=", 1) for text in given.texts)
    for folder in given.peers:
        made = json.loads((folder / "peer.json").read_text())
        share = float(folder.name.rpartition("-")[2])
        units = {"structure": "channels", "sparsity": share, "update": "peer"}
        row = {"name": made["peer"], "metric": None, **units}
        if key(row) in known:
            continue
        model = load_model(folder, dtype="float32")
        line = {
            **row,
            **made,
            "kept": model.model.num_parameters(),
            "perplexity": perplexities(model, texts),
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


def measure_prices(text: str) -> None:
    """Write price and measured divergence of single units, blocks and sets of channels."""
    language_model = load_model(MODEL, dtype="float32")
    model, mixture = language_model.model, load_mixture("self", role="calibration")
    windows, store = open_calibration(mixture, language_model, PRICED, 0)
    calibrate(language_model, windows, ("F", "block_price", "X"), store)
    held_out = take_windows(load_mixture(text, role="calibration"), language_model, *MEASURED, 0)
    with torch.no_grad():
        dense = [model(window[None]).logits[0] for window in held_out.tokens]
    channels, heads = (find_couplings(model, kind) for kind in ("channels", "heads"))
    drawn = random.Random(0)
    rows = []
    for kind, removed, price, wanda in priced_units(model, channels, heads, store, drawn):
        weights = {name: model.get_parameter(f"{name}.weight") for name in removed}
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        with torch.no_grad():
            for name, columns in removed.items():
                weights[name][:, columns] = 0
            pairs = zip(held_out.tokens, dense, strict=True)
            nats = torch.stack([compare_logits(model(w[None]).logits[0], d)[0] for w, d in pairs])
            for name, weight in before.items():
                weights[name].copy_(weight)
        measured = {"all": float(nats.mean()), "after_first": float(nats[:, FIRST_TOKENS:].mean())}
        units = sum(map(len, removed.values())) if kind.startswith("channels") else 1
        row = {"kind": kind, "units": units, "price": price, "wanda": wanda}
        rows.append({**row, "divergence": measured})
        print(rows[-1], flush=True)
    facts = {
        "model": MODEL,
        "windows": PRICED,
        "measured": MEASURED,
        "text": Path(text).name,
        **machine(),
    }
    write_json(results("units-prices.json"), {"settings": facts, "rows": rows})


def priced_units(
    model: PreTrainedModel,
    channels: Sequence[Coupling],
    heads: Sequence[Coupling],
    store: StatisticsStore,
    drawn: random.Random,
) -> Iterator[tuple[str, dict[str, Any], float, float]]:
    """What goes: its kind, columns by matrix name, price, and Wanda's total."""
    single: dict[str, list[tuple[str, Any, float, float]]] = {"channel": [], "heads": []}
    for kind, couplings in (("channel", channels), ("heads", heads)):
        for coupling in couplings:
            name, block = coupling.consumer, coupling.block
            F, X = (store.read(of, block, [name])[name][0] for of in ("F", "X"))
            energy = model.get_parameter(f"{name}.weight").detach().square().sum(0) * X.square()
            columns = torch.arange(len(F)).view(coupling.count, -1)
            prices, totals = F[columns].sum(1).tolist(), energy[columns].sum(1).tolist()
            single[kind] += zip([name] * len(prices), columns, prices, totals, strict=True)
    for kind, count in (("channel", 40), ("heads", 20)):
        ordered = sorted(single[kind], key=lambda unit: unit[2])
        for index in range(count):
            # Of each part of the units, by their price.
            part = ordered[index * len(ordered) // count : (index + 1) * len(ordered) // count]
            name, columns, price, total = drawn.choice(part)
            yield kind, {name: columns}, price, total
    for attention, mlp in list(zip(heads, channels, strict=True))[::3]:
        name = mlp.consumer
        price = float(store.read("block_price", mlp.block, [name])[name])
        yield "block", {attention.consumer: slice(None), name: slice(None)}, price, 0.0
    for index in range(30):
        name, size = drawn.choice(channels).consumer, (16, 64, 256)[index % 3]
        inside = [unit for unit in single["channel"] if unit[0] == name]
        kind, pool = "channels of a block", inside
        if index >= 15:
            kind, pool, size = "channels of all blocks", single["channel"], 8 * size
        chosen = drawn.sample(pool, size)
        removed: dict[str, Any] = {}
        for name, columns, _, _ in chosen:
            removed[name] = torch.cat([removed.get(name, columns[:0]), columns])
        yield kind, removed, sum(unit[2] for unit in chosen), sum(unit[3] for unit in chosen)


def perplexities(model: LanguageModel, texts: Mapping[str, str]) -> dict[str, float]:
    """The perplexity on the first windows of every text."""
    return {
        name: evaluate(model, text, windows=WINDOWS, seqlen=1024).perplexity
        for name, text in texts.items()
    }


def rows(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The settings of every model, those of the first share first."""
    for structure in given.structures:
        for share in SHARES[structure]:
            units = {"structure": structure, "sparsity": share}
            if structure == "blocks":
                influence = {"name": "block influence", "metric": "block-influence"}
                for update in ("none", "exact"):
                    yield {**influence, **units, "update": update}
                continue
            for name, metric in METRICS.items():
                chosen = {"metric": metric or given.evolved, "mode": "one-shot"}
                for update in ("none", "exact") if chosen["metric"] else ():
                    yield {"name": name, **units, **chosen, "update": update}
            if (structure, share) == FURTHER_AT:
                for words, settings in FURTHER.items():
                    chosen = {"metric": "wanda", "update": "exact", **settings}
                    yield {"name": f"Wanda, {words}", **units, **chosen}


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells one model from another."""
    return tuple(row[name] for name in ("name", "metric", "structure", "sparsity", "update"))


@contextmanager
def random_units() -> Iterator[None]:
    """Units go by drawn numbers, whatever the metric."""
    choose = UnitMask.choose

    def draw(self: UnitMask, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        drawn = {}
        for name in scores:
            generator = torch.Generator().manual_seed(sum(name.encode()))
            shape = scores[name].shape
            drawn[name] = torch.rand(shape[1], generator=generator).expand(shape)
        return choose(self, drawn)

    with patch.object(UnitMask, "choose", draw):
        yield


def page(lines: Sequence[Mapping[str, Any]]) -> str:
    """The tables: a structure each, a row a metric, a column a share."""
    text = [
        "# Whole units: named metrics and an evolved one",
        "",
        "Made by `python benchmarks/units.py --calibration wiki.valid.raw --texts"
        " wikitext=wiki.test.raw pydoc=builtin:pydoc/test news=news.txt --evolved METRIC`."
        " SmolLM2-135M in float32, calibrated on 24 windows of 1024 tokens of WikiText-2"
        f" validation; perplexity on the first {WINDOWS} windows of each text: WikiText-2 test,"
        " Python's documentation, news. No training.",
        "",
    ]
    for structure in dict.fromkeys(line["structure"] for line in lines):
        for update, words in REFITS.items():
            chosen = [
                line
                for line in lines
                if line["structure"] == structure and line["update"] == update
            ]
            if not chosen:
                continue
            shares = sorted({line["sparsity"] for line in chosen})
            sizes = {line["sparsity"]: f"{line['kept'] / 1e6:.1f} M" for line in chosen}
            heads = [f"{100 * share:.0f} % ({sizes[share]})" for share in shares]
            table = []
            order = list(METRICS)
            named = dict.fromkeys((line["name"], line["metric"]) for line in chosen)
            for name, metric in sorted(
                named, key=lambda row: order.index(row[0]) if row[0] in order else len(order)
            ):
                cells = []
                for share in shares:
                    values = [
                        line["perplexity"].values()
                        for line in chosen
                        if (line["name"], line["metric"], line["sparsity"]) == (name, metric, share)
                    ]
                    cells.append(" / ".join(f"{value:.1f}" for row in values for value in row))
                label = name.replace(EVOLVED, f"{EVOLVED}, `{metric}`")
                table.append([label, *cells])
            text += [f"## {structure.capitalize()}, {words}", ""]
            text.append(markdown(["chosen by", *heads], table))
    if results("units-prices.json").exists():
        text += price_table(json.loads(results("units-prices.json").read_text()))
    return "\n".join(text)


def price_table(measured: Mapping[str, Any]) -> list[str]:
    """Prices beside the divergences that were measured, by what went."""
    table = []
    for kind in dict.fromkeys(row["kind"] for row in measured["rows"]):
        rows = [row for row in measured["rows"] if row["kind"] == kind]
        nats = [row["divergence"]["after_first"] for row in rows]
        known = [of for of in ("price", "wanda") if any(row[of] for row in rows)]
        # Of a unit: that more of them cost more would give high correlations to any numbers.
        of_unit = [value / row["units"] for row, value in zip(rows, nats, strict=True)]
        ranks = {
            of: f"{spearmanr([row[of] / row['units'] for row in rows], of_unit)[0]:.2f}"
            for of in known
        }
        ratios = [row["price"] / value for row, value in zip(rows, nats, strict=True)]
        low, middle, high = quantiles(ratios, n=4)
        spread = f"{min(nats):.1e} to {max(nats):.1e}"
        shares = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        correlations = [ranks.get(of, "") for of in ("price", "wanda")]
        table.append([kind, str(len(rows)), spread, *correlations, shares])
    head = [
        "what went",
        "trials",
        "divergence, nats per token",
        "rank correlation of the price, per unit",
    ]
    head += ["of Wanda's total", "price by divergence: median (quartiles)"]
    (windows, tokens), (few, long) = (measured["settings"][of] for of in ("windows", "measured"))
    return [
        "## Prices",
        "",
        f"Made by `python benchmarks/units.py --prices wiki.valid.raw`: the price `F`, and that of"
        f" blocks, from {windows} windows of {tokens} tokens that the model wrote; the divergence"
        f" without these units, nothing repaired, on {few} windows of {long} tokens of WikiText-2"
        f" validation, each without its first {FIRST_TOKENS} tokens.",
        "",
        markdown(head, table),
    ]


if __name__ == "__main__":
    main()
