"""Compares swaps of a mask with SparseSwaps' rule: layer error, perplexity and seconds.

    python benchmarks/swaps.py --calibration wiki.valid.raw --text wiki.test.raw

SparseSwaps (Zimmer et al. 2025, 2512.10922) takes the best single swap of every row, one at a time,
until no swap helps. This script has its own implementation of that rule, which runs as a step after
Wanda's mask. On every matrix, this program's swaps start from the same mask with the same Gram
matrix, and the two run directly after one another, so that the load of the machine is the same.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pruner_zero import compare
from pruner_zero.cli.progress import LineProgress
from pruner_zero.files import write_json
from pruner_zero.models import load_model
from pruner_zero.sparsity import STEPS, Layer, SemiStructured, Updated, refine_mask
from tables import markdown

HERE = Path(__file__).parent
FILE = HERE / "results" / "swaps.json"
# Both rules ignore a gain below this share of a row's error.
LEAST_GAIN = 1e-5
# SparseSwaps' rule is also timed without bounds on matrices with at most this number of rows.
PLAIN_ROWS = 200
ZEROS: dict[str, dict[str, Any]] = {"2:4": {"pattern": "2:4"}, "50 %": {"sparsity": 0.5}}
METHODS = ("wanda+single", "wanda+refine", "wanda")

# A function of W, C, mask, and the change (rows, in) of the error by flipping each weight, that
# returns for each row the effect of the best swap, the weight to revive and the weight to prune.
Pair = tuple[Tensor, Tensor, Tensor]
BestPair = Callable[[Tensor, Tensor, Tensor, Tensor], Pair]


def single_swaps(W: Tensor, C: Tensor, mask: Tensor, best_pair: BestPair) -> tuple[Tensor, int]:
    """SparseSwaps' mask, by the best swap of each row until none helps; the most swaps of a row.

    W, mask: (rows, in). C: (in, in).
    """
    refined = mask.clone()
    rows = torch.arange(len(W))
    gradient = W.masked_fill(mask, 0.0) @ C
    diagonal = C.diagonal()
    swaps = 0
    while len(rows):
        kept, weight = refined[rows], W[rows]
        delta = weight.masked_fill(kept, 0.0)
        error = (delta * gradient).sum(1)
        slope, square = 2 * weight * gradient, weight * weight * diagonal
        change = torch.where(kept, square + slope, square - slope)
        effect, revive, prune = best_pair(weight, C, kept, change)
        better = effect < -LEAST_GAIN * error
        rows, gradient = rows[better], gradient[better]
        revive, prune = revive[better], prune[better]
        refined[rows, revive] = True
        refined[rows, prune] = False
        gradient -= W[rows, revive][:, None] * C[revive]
        gradient += W[rows, prune][:, None] * C[prune]
        swaps += bool(len(rows))
    return refined, swaps


def of_all_pairs(W: Tensor, C: Tensor, mask: Tensor, change: Tensor) -> Pair:
    """The best of all pairs of a pruned and a kept weight of each row, as in the paper."""
    results = []
    chunk = max(1, 2**24 // W.shape[1] ** 2)
    for w, kept, alone in zip(*(part.split(chunk) for part in (W, mask, change)), strict=True):
        effect = alone[:, :, None] + alone[:, None, :] - 2 * w[:, :, None] * w[:, None, :] * C
        effect.masked_fill_(kept[:, :, None] | ~kept[:, None, :], torch.inf)
        results.append(effect.flatten(1).min(1))
    place = torch.cat([result.indices for result in results])
    values = torch.cat([result.values for result in results])
    return values, place // W.shape[1], place % W.shape[1]


def within_groups(m: int) -> BestPair:
    """The best of all pairs within groups of m columns."""

    def best_pair(W: Tensor, C: Tensor, mask: Tensor, change: Tensor) -> Pair:
        groups = torch.arange(W.shape[1] // m)
        inner = C.reshape(len(groups), m, len(groups), m)[groups, :, groups]
        w, kept, alone = (part.view(len(W), -1, m) for part in (W, mask, change))
        effect = alone[..., :, None] + alone[..., None, :]
        effect -= 2 * w[..., :, None] * w[..., None, :] * inner
        effect.masked_fill_(kept[..., :, None] | ~kept[..., None, :], torch.inf)
        best, place = effect.flatten(1).min(1)
        start = place // (m * m) * m
        return best, start + place % (m * m) // m, start + place % m

    return best_pair


def bounded(C: Tensor) -> BestPair:
    """The same pair as `of_all_pairs`, without computing pairs that cannot be the best.

    |2·w_p·w_q·C_pq| is at most 2·ρ_p·s_p·s_q with s = |w|·√C_jj and ρ_p the largest correlation of
    p with any other channel. The best pair among the 16 most promising weights of either side is an
    upper bound on the effect; weights whose lower bound is above it are left out.
    """
    root = C.diagonal().clamp_min(1e-30).sqrt()
    correlation = (C / root[:, None] / root).fill_diagonal_(0.0).abs().amax(1)

    def best_pair(W: Tensor, C: Tensor, mask: Tensor, change: Tensor) -> Pair:
        gain = change.masked_fill(mask, torch.inf)
        cost = change.masked_fill(~mask, torch.inf)
        size = W.abs() * root
        reach = 2 * correlation * size
        levels = torch.logspace(-3, 0, 24) * float(reach.max())
        first = _pairs(
            W, C, gain, cost, *(side.topk(16, 1, False).indices for side in (gain, cost))
        )
        limit = first[0]
        near, counts = [], []
        for side, partners in ((gain, cost), (cost, gain)):
            least = torch.stack([(partners - level * size).amin(1) for level in levels], 1)
            # The next level above each weight's reach keeps the bound valid.
            place = torch.bucketize(reach, levels).clamp_max(len(levels) - 1)
            bound = side + least.gather(1, place)
            counts.append((bound <= limit[:, None]).sum(1).clamp_min(1))
            near.append(bound.topk(int(counts[-1].max()), 1, largest=False).indices)
        # Rows with similar numbers of candidates share a batch.
        results = [W.new_zeros(len(W)), *(torch.zeros(2, len(W), dtype=torch.long))]
        for rows in (counts[0] * counts[1]).argsort().split(32):
            sides = (
                side[rows, : int(count[rows].max())]
                for side, count in zip(near, counts, strict=True)
            )
            best = _pairs(W[rows], C, gain[rows], cost[rows], *sides)
            for result, part in zip(results, best, strict=True):
                result[rows] = part
        return results[0], results[1], results[2]

    return best_pair


def _pairs(
    W: Tensor, C: Tensor, gain: Tensor, cost: Tensor, revived: Tensor, pruned: Tensor
) -> Pair:
    """The best pair of each row among the columns `revived` and `pruned` (rows, candidates)."""
    results = []
    chunk = max(1, 2**22 // (revived.shape[1] * pruned.shape[1]))
    parts = (part.split(chunk) for part in (W, gain, cost, revived, pruned))
    for w, a, b, p, q in zip(*parts, strict=True):
        effect = a.gather(1, p)[:, :, None] + b.gather(1, q)[:, None, :]
        across = w.gather(1, p)[:, :, None] * w.gather(1, q)[:, None, :]
        effect -= 2 * across * C[p[:, :, None], q[:, None, :]]
        best, place = effect.flatten(1).min(1)
        width = q.shape[1]
        results.append(
            (
                best,
                p.gather(1, (place // width)[:, None])[:, 0],
                q.gather(1, (place % width)[:, None])[:, 0],
            )
        )
    effect, revive, prune = (torch.cat(part) for part in zip(*results, strict=True))
    return effect, revive, prune


def layer_error(W: Tensor, C: Tensor, mask: Tensor) -> float:
    """The sum of δ·C·δᵀ over all rows."""
    delta = W.masked_fill(mask, 0.0)
    return float((delta * (delta @ C)).sum(dtype=torch.float64))


def measured(layers: list[dict[str, Any]], save: Callable[[], None]) -> Callable[[Layer], Updated]:
    """SparseSwaps' rule as a step that also measures both rules on every layer."""

    def run(layer: Layer) -> Updated:
        W, C, mask = layer.dense.float(), layer.required_hessian.gram, layer.required_mask
        pattern = layer.pattern
        row: dict[str, Any] = {"name": layer.name, "shape": list(W.shape), "clock": "processor"}
        begin = time.process_time()
        ours = refine_mask(layer).mask
        row["seconds_ours"] = time.process_time() - begin
        begin = time.process_time()
        semi = isinstance(pattern, SemiStructured)
        best_pair = within_groups(pattern.m) if isinstance(pattern, SemiStructured) else bounded(C)
        single, row["swaps"] = single_swaps(W, C, mask, best_pair)
        row["seconds_single"] = time.process_time() - begin
        if not semi and len(W) <= PLAIN_ROWS:
            begin = time.process_time()
            plain, _ = single_swaps(W, C, mask, of_all_pairs)
            row["seconds_plain"] = time.process_time() - begin
            row["differ"] = int((plain != single).any(1).sum())
        row["error"] = {
            name: layer_error(W, C, chosen)
            for name, chosen in (("wanda", mask), ("single", single), ("ours", ours))
        }
        layers.append(row)
        save()
        return Updated(layer.weight, single)

    return run


def main() -> None:
    """Measure the rows that are missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", required=True, help="WikiText-2 validation, raw")
    parser.add_argument("--text", required=True, help="WikiText-2 test, raw")
    parser.add_argument("--blocks", type=int, nargs="*", help="prune these blocks alone")
    given = parser.parse_args()
    include = [f"*.{block}.*" for block in given.blocks or ()]
    torch.set_num_threads(1)
    model = load_model(given.model)
    report: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    builtin = dict(STEPS.items())
    for method in METHODS:
        for zeros, options in ZEROS.items():
            table = report.setdefault(zeros, {"rows": [], "layers": []})
            if any(row["method"] == method for row in table["rows"]):
                continue
            if method == "wanda+single":
                table["layers"] = []
                run = measured(table["layers"], lambda: save(report))
                step = replace(STEPS["refine"], name="single", run=run, option=None)
                # The registry takes plug-ins of installed packages only, so this sets its table.
                STEPS._builtin = MappingProxyType({**builtin, "single": step})
            result = compare(
                model,
                [method],
                calibration=given.calibration,
                text=given.text,
                windows=24,
                seqlen=1024,
                seed=0,
                windows_eval=12,
                include=include,
                progress=LineProgress(),
                **options,
            )
            table["rows"] += result.rows
            report["provenance"] = result.provenance
            save(report)
            write_page(report)
    write_page(report)


def save(report: dict[str, Any]) -> None:
    """Write the result file."""
    write_json(FILE, report)


def write_page(report: dict[str, Any]) -> None:
    """Write swaps.md from the result file."""
    settings = report["provenance"]["settings"]
    include = settings.get("include") or []
    pruned = "all blocks"
    if include:
        numbers = [pattern.strip("*.") for pattern in include]
        pruned = f"blocks {', '.join(numbers[:-1])} and {numbers[-1]} alone"
    lines = [
        "# Swaps beside SparseSwaps' rule, on SmolLM2-135M",
        "",
        "Made by `python benchmarks/swaps.py --calibration wiki.valid.raw --text wiki.test.raw"
        f"{' --blocks ' + ' '.join(numbers) if include else ''}`: calibrated on 24 random windows"
        " of 1024 tokens of WikiText-2 validation (seed 0), blocks in order, one thread,"
        f" perplexity on the first 12 windows of the test text. Pruned: {pruned}.",
        "",
        "SparseSwaps ([2512.10922](https://arxiv.org/abs/2512.10922)) takes the best single swap of"
        " every row, one at a time, until none helps. `+refine` takes several swaps of a row in"
        " each round, among the 16 most promising weights of either side. Both start from Wanda's"
        " mask and have the same Gram matrix; on every matrix one runs right after the other.",
        "",
    ]
    header = ["zeros", "matrices", "error after SparseSwaps' rule", "after `+refine`"]
    header += ["seconds, rule to `+refine`", "clock", "most swaps of a row"]
    table = []
    for zeros in ZEROS:
        layers = report.get(zeros, {}).get("layers", [])
        kinds = {layer["name"].split(".")[-1]: None for layer in layers}
        for kind in [*kinds, "all"]:
            chosen = [layer for layer in layers if kind in ("all", layer["name"].split(".")[-1])]
            if chosen:
                table.append([zeros, kind, *_row(chosen)])
    lines += [
        markdown(header, table),
        "Errors are δ·C·δᵀ beside that of Wanda's mask, the mean over matrices; rows of 50 % are of"
        f" {len(report.get('50 %', {}).get('layers', []))} matrices, of 2:4 of"
        f" {len(report.get('2:4', {}).get('layers', []))}. The rule as timed looks only at pairs"
        " that can be the best of their row: at 50 % by bounds that change nothing in the mask.",
    ]
    plain = [row for row in report.get("50 %", {}).get("layers", []) if "seconds_plain" in row]
    if plain:
        times = sum(row["seconds_plain"] for row in plain) / sum(
            row["seconds_single"] for row in plain
        )
        differ = sum(row["differ"] for row in plain)
        lines[-1] += (
            f" Looking at every pair takes {times:.1f} times as long on the {len(plain)} smallest"
            f" matrices, and {differ} rows of their masks differ."
        )
    rows = {
        (row["method"], zeros): row
        for zeros in ZEROS
        for row in report.get(zeros, {}).get("rows", [])
    }
    if rows:
        names = {
            "wanda": "`wanda`",
            "wanda+single": "SparseSwaps' rule",
            "wanda+refine": "`wanda+refine`",
        }
        table = []
        for method, shown in names.items():
            cells = [
                f"{rows[method, zeros]['perplexity']:.3f}" if (method, zeros) in rows else "–"
                for zeros in ZEROS
            ]
            table.append([shown, *cells])
        lines += ["", markdown(("perplexity", *ZEROS), table).rstrip()]
    (HERE / "swaps.md").write_text("\n".join([*lines, ""]))


def _row(layers: list[dict[str, Any]]) -> list[str]:
    """The cells of a table row: mean relative errors, the ratio of seconds, the most swaps."""
    relative = [
        sum(layer["error"][name] / layer["error"]["wanda"] for layer in layers) / len(layers)
        for name in ("single", "ours")
    ]
    single, ours = (
        sum(layer[f"seconds_{name}"] for layer in layers) for name in ("single", "ours")
    )
    swaps = max(layer["swaps"] for layer in layers)
    clock = layers[0].get("clock", "wall")
    return [*(f"{error:.4f}" for error in relative), f"{single / ours:.1f}", clock, str(swaps)]


if __name__ == "__main__":
    main()
