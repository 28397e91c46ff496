"""Compares `prune` with llm-compressor's `oneshot`: time, peak memory, perplexity and masks.

    python benchmarks/end_to_end.py --calibration wiki.valid.raw --text wiki.test.raw \
        --peer PYTHON_WITH_LLMCOMPRESSOR

All cases have the same model folder, the same 24 windows of 1024 tokens and the same threads. Each
case runs in its own process, from start to saved model, with no statistics cached. Cases alternate
over --repeats rounds. The peer's environment: `pip install 'llmcompressor==0.14.*'
'transformers<=5.17'`. Every run is written at once to benchmarks/results/end-to-end.json.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memory import measure
from pruner_zero import evaluate
from pruner_zero.files import write_json
from pruner_zero.models.load import load_model
from pruner_zero.models.matrices import find_matrices
from pruner_zero.text.corpus import load_corpus
from pruner_zero.text.token_windows import random_windows
from tables import machine, markdown, results, script_parser, write_page

OURS = {
    f"{method}, {name}": (method, options)
    for method in ("wanda", "sparsegpt")
    for name, options in (
        ("sequential", ["--mode", "sequential"]),
        ("one-shot", ["--mode", "one-shot"]),
        ("offloaded", ["--mode", "sequential", "--offload"]),
    )
}
PEER = {f"{method}, llm-compressor": method for method in ("wanda", "sparsegpt")}
CASES = ("wanda, llm-compressor", *list(OURS)[:3], "sparsegpt, llm-compressor", *list(OURS)[3:])


def main() -> None:
    """Measure the rounds that are missing and write the page."""
    parser = script_parser(__doc__)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", required=True, help="WikiText-2 validation, raw")
    parser.add_argument("--text", required=True, help="WikiText-2 test, raw")
    parser.add_argument("--peer", required=True, help="a Python that has llm-compressor")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--windows-eval", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--folder", type=Path, default=Path("runs/end-to-end"))
    parser.add_argument("-o", "--output", type=Path, default=results("end-to-end.json"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    model = load_model(given.model)
    dense = given.folder / "dense"
    model.model.save_pretrained(dense)
    model.tokenizer.save_pretrained(dense)
    corpus = load_corpus(given.calibration, role="calibration")
    windows = random_windows(corpus, model.tokenizer, given.windows, given.seqlen, 0)
    np.save(given.folder / "windows.npy", windows.tokens.numpy())
    report = json.loads(given.output.read_text()) if given.output.exists() else {"runs": []}
    taken = {"windows": [given.windows, given.seqlen], "windows_eval": given.windows_eval}
    report["machine"] = machine() | taken
    masks: dict[str, dict[str, torch.Tensor]] = {}
    for repeat in range(given.repeats):
        for case in given.cases:
            if any((run["case"], run["repeat"]) == (case, repeat) for run in report["runs"]):
                continue
            run = {"case": case, "repeat": repeat, **run_case(case, dense, given, masks)}
            report["runs"].append(run)
            write_json(given.output, report)
            write_page("end-to-end", page(report))
    write_page("end-to-end", page(report))


def run_case(
    case: str, dense: Path, given: argparse.Namespace, masks: dict[str, dict[str, torch.Tensor]]
) -> dict[str, Any]:
    """Prune in one process: its time and memory, and the perplexity and masks of its model."""
    output, cache = given.folder / "out", given.folder / "cache"
    for old in (output, cache):
        shutil.rmtree(old, ignore_errors=True)
    if case in PEER:
        script, windows = Path(__file__).with_name("peers.py"), given.folder / "windows.npy"
        command = [given.peer, *map(str, (script, PEER[case], dense, windows, 0.5, output))]
    else:
        method, options = OURS[case]
        command = [sys.executable, "-m", "pruner_zero", "prune", str(dense), "--metric", method]
        command += ["--sparsity", "0.5", "--calibration", given.calibration, *options]
        command += ["--windows", str(given.windows), "--seqlen", str(given.seqlen), "--seed", "0"]
        command += ["--cache", str(cache), "-o", str(output)]
    code, seconds, peak = measure(command, given.folder / "log")
    run: dict[str, Any] = {"seconds": seconds, "peak_mib": round(peak / 2**20), "exit": code}
    if code:
        return run | {"error": (given.folder / "log").read_text().splitlines()[-1:]}
    pruned = load_model(output)
    masks[case] = {matrix.name: matrix.parameter != 0 for matrix in find_matrices(pruned.model)}
    total = sum(mask.numel() for mask in masks[case].values())
    kept = sum(int(mask.sum()) for mask in masks[case].values())
    run["sparsity"] = 1 - kept / total
    peer = masks.get(f"{case.split(',')[0]}, llm-compressor")
    if peer is not None and case not in PEER:
        same = sum(int((mask == peer[name]).sum()) for name, mask in masks[case].items())
        run["agreement"] = same / total
    result = evaluate(pruned, text=given.text, windows=given.windows_eval, seqlen=given.seqlen)
    return run | {"perplexity": result.perplexity}


def page(report: dict[str, Any]) -> str:
    """The page: medians, and their ratios to the peer's medians."""
    where = report["machine"]
    lines = [
        "# `prune` beside llm-compressor",
        "",
        "Made by `python benchmarks/end_to_end.py --calibration wiki.valid.raw --text"
        " wiki.test.raw --peer …`: SmolLM2-135M in fp32 at 50 %, 24 windows of 1024 tokens of"
        f" WikiText-2 validation, {where['threads']} threads, llm-compressor 0.14 (sequential,"
        " its default) in an environment of its own. Each case is one process from start to saved"
        " model. *agreement*: of the masks with the peer's. Perplexity on the first"
        f" {where['windows_eval']} windows of test. [Result file](results/end-to-end.json).",
        "",
    ]
    header = ["case", "seconds", "of the peer's", "peak, MiB", "of the peer's"]
    rows = []
    runs = [run for run in report["runs"] if not run["exit"]]

    def median(case: str, key: str) -> float | None:
        values = [run[key] for run in runs if run["case"] == case and key in run]
        return statistics.median(values) if values else None

    for case in CASES:
        if (seconds := median(case, "seconds")) is None:
            continue
        cells = [case]
        peer = f"{case.split(',')[0]}, llm-compressor"
        for key, value in (("seconds", seconds), ("peak_mib", median(case, "peak_mib"))):
            base = median(peer, key)
            cells += [f"{value:.0f}", f"{value / base:.2f}" if base and value else "–"]
        agreement = median(case, "agreement")
        cells += [f"{median(case, 'perplexity'):.2f}", f"{agreement:.4f}" if agreement else ""]
        rows.append(cells)
    lines.append(markdown([*header, "perplexity", "agreement"], rows))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
