"""Whether the folders of smaller models load in llama.cpp, and how much faster they run there.

    pip install xllamacpp sentencepiece
    python benchmarks/llama_cpp.py llama.cpp/convert_hf_to_gguf.py

Prunes SmolLM2-135M in several ways, converts every folder with the public converter (in the
repository of llama.cpp, and in the source archive of llama-cpp-python from 0.3.36 on) and runs it
by the public runtime, with one thread and 16-bit weights. Every model continues a prompt greedily
in llama.cpp from 32-bit weights and in transformers; the script compares the two texts. The models
take turns; tokens a second are medians over the turns. Writes results/llama-cpp.json and
llama-cpp.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pruner_zero import prune
from pruner_zero.files import write_atomic, write_json
from pruner_zero.models import load_model, save_model

HERE = Path(__file__).parent
FILE = HERE / "results" / "llama-cpp.json"
NOTES = HERE / "results" / "llama-cpp-notes.md"
MODEL = "builtin:smollm2-135m"
TEXT: Mapping[str, Any] = {"calibration": "builtin:pydoc", "windows": 8, "distill": 0}
CASES: Mapping[str, Mapping[str, Any]] = {
    "dense": {},
    "half of the weights zero": {"metric": "wanda", "sparsity": 0.5},
    "a quarter of the channels": {"metric": "wanda", "structure": "channels", "sparsity": 0.25},
    "a third of the heads": {"metric": "wanda", "structure": "heads", "sparsity": 1 / 3},
    "a fifth of the blocks": {"structure": "blocks", "sparsity": 0.2},
}
PROMPT = "Python is a programming language that"
# Numbers of tokens: of the compared greedy continuation; of the timed prompt and continuation.
GREEDY, PREFILL, DECODE = 24, 512, 64
WORDS = {"f32": "32-bit", "f16": "16-bit"}


def main() -> None:
    """Prune, convert, compare and measure; write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("converter", type=Path, nargs="?", help="convert_hf_to_gguf.py")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    if given.converter:
        run(given)
    write_atomic(HERE / "llama-cpp.md", page(json.loads(FILE.read_text())))


def run(given: argparse.Namespace) -> None:
    """Measure all cases anew."""
    with TemporaryDirectory() as temporary:
        rows = {name: prepare(name, Path(temporary), given.converter) for name in CASES}
        turns = [
            {name: speed(Path(row["f16"])) for name, row in rows.items()}
            for _ in range(given.turns)
        ]
    report = {}
    for name, row in rows.items():
        measured = {kind: [turn[name][kind] for turn in turns] for kind in ("prefill", "decode")}
        kept = {key: value for key, value in row.items() if key not in WORDS}
        report[name] = {**kept, **measured}
    write_json(FILE, report)


def prepare(name: str, folder: Path, converter: Path) -> dict[str, Any]:
    """Prune and convert a case; its files and sizes, and the two continuations of the prompt."""
    print(name, flush=True)
    settings, place = CASES[name], folder / name.replace(" ", "-")
    model = load_model(MODEL, dtype="float32")
    if settings:
        prune(model, output=place, **TEXT, **settings)
    else:
        save_model(model, place)
    row: dict[str, Any] = {"parameters": sum(p.numel() for p in model.model.parameters())}
    for kind in WORDS:
        row[kind] = str(place.with_suffix(f".{kind}.gguf"))
        command = [sys.executable, converter, place, "--outfile", row[kind], "--outtype", kind]
        subprocess.run([*map(str, command)], check=True, capture_output=True)
    row["bytes"] = Path(row["f16"]).stat().st_size
    with torch.no_grad():
        tokens = model.tokenizer(PROMPT, return_tensors="pt").input_ids
        ends = model.model.generate(tokens, max_new_tokens=GREEDY, do_sample=False)
    row["transformers"] = model.tokenizer.decode(ends[0, tokens.shape[1] :])
    row["llama.cpp"] = ask(Path(row["f32"]), PROMPT, GREEDY)["text"]
    return row


def speed(path: Path) -> dict[str, float]:
    """Tokens a second of a prompt of `PREFILL` tokens and of the `DECODE` tokens after it."""
    # The server takes a list as tokens.
    times = ask(path, list(range(1000, 1000 + PREFILL)), DECODE)["timings"]
    return {"prefill": times["prompt_per_second"], "decode": times["predicted_per_second"]}


def ask(path: Path, prompt: str | list[int], count: int) -> dict[str, Any]:
    """The greedy continuation of `prompt` by `count` tokens, with its times."""
    # Runs in its own process, since the runtime does not free the memory of a model.
    source = (
        "import json, sys, xllamacpp\n"
        "path, prompt, count = json.loads(sys.argv[1])\n"
        "settings = xllamacpp.CommonParams()\n"
        "settings.model.path, settings.n_ctx, settings.n_parallel = path, 1024, 1\n"
        "settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1\n"
        "server = xllamacpp.Server(settings)\n"
        "request = {'prompt': prompt, 'n_predict': count, 'temperature': 0.0,\n"
        "           'cache_prompt': False, 'ignore_eos': True}\n"
        "answer = server.handle_completions(request)\n"
        "print(answer if isinstance(answer, str) else json.dumps(answer))\n"
    )
    command = [sys.executable, "-c", source, json.dumps([str(path), prompt, count])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"text": answer["choices"][0]["text"], "timings": answer["timings"]}


def page(report: Mapping[str, dict[str, Any]]) -> str:
    """The page: a table of sizes and speeds, each with its ratio to the dense model's."""
    lines = [
        "# Smaller models in llama.cpp",
        "",
        "Made by `python benchmarks/llama_cpp.py convert_hf_to_gguf.py`: SmolLM2-135M, converted by"
        " the public converter and run by the public runtime on one thread. *MB*: of the file with"
        " 16-bit weights. *fewer*: the dense model's parameters over those of the row, which is how"
        " much faster it would be if time followed them. *prefill*, *decode*: tokens a second of a"
        f" prompt of {PREFILL} tokens and of the {DECODE} after it, medians of"
        f" {len(report['dense']['decode'])} turns in which the models follow one another (lowest to"
        " highest), and how much faster than the dense model. *same text*: the first"
        f" {GREEDY} greedy tokens, from 32-bit weights, are those that transformers generates from"
        " the folder. [Result file](results/llama-cpp.json).",
        "",
        "| | million parameters | fewer | MB | prefill | faster | decode | faster | same text |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    dense = report["dense"]
    for name, row in report.items():
        fewer = f"×{dense['parameters'] / row['parameters']:.2f}"
        cells = [name, f"{row['parameters'] / 1e6:.1f}", fewer, f"{row['bytes'] / 1e6:.0f}"]
        for kind in ("prefill", "decode"):
            median = statistics.median(row[kind])
            faster = median / statistics.median(dense[kind])
            cells.append(f"{median:.0f} ({min(row[kind]):.0f} to {max(row[kind]):.0f})")
            cells.append(f"×{faster:.2f}")
        same = row["transformers"] == row["llama.cpp"]
        lines.append(f"| {' | '.join([*cells, 'yes' if same else 'no'])} |")
    lines += ["", NOTES.read_text()] if NOTES.exists() else []
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
