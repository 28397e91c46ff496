"""How much faster smaller models run, in PyTorch and in llama.cpp.

    python benchmarks/speed.py torch
    python benchmarks/speed.py llama.cpp gemma-3-270m-q4_k_m.gguf
    python benchmarks/speed.py page

In PyTorch models of two shapes with random weights, on which speed does not depend, take turns
with the dense shape. For llama.cpp, SmolLM2-135M and Gemma 3 270M are pruned in several ways,
written as GGUF files, and run by the public runtime. Every model continues a prompt greedily in
llama.cpp from its F16 file and in transformers from the same weights; the script compares the two
texts. Writes results/speed.json, results/llama-cpp.json and the tables
of speed.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from pruner_zero import prune
from pruner_zero.choices import GgufType
from pruner_zero.files import write_json
from pruner_zero.measuring.speed import measure_speed
from pruner_zero.models.gguf_file import save_gguf
from pruner_zero.models.gguf_source import read_source, source_of
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.matrices import find_matrices
from pruner_zero.provenance import provenance
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from tables import markdown, results, script_parser, write_table

TORCH, LLAMA_CPP = results("speed.json"), results("llama-cpp.json")
MODEL = "builtin:smollm2-135m"
TEXT: Mapping[str, Any] = {"calibration": "builtin:pydoc", "windows": 8, "distill": 0}
# By the model, what is done to it.
CASES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "SmolLM2-135M": {
        "dense": {},
        "half of the weights zero": {"metric": "wanda", "sparsity": 0.5},
        "a quarter of the channels": {"metric": "wanda", "structure": "channels", "sparsity": 0.25},
        "a third of the heads": {"metric": "wanda", "structure": "heads", "sparsity": 1 / 3},
        "a fifth of the blocks": {"structure": "blocks", "sparsity": 0.2},
        "half of the tokens": {"structure": "vocabulary", "sparsity": 0.5},
    },
    "Gemma 3 270M": {
        "dense": {},
        "three quarters of the tokens": {"structure": "vocabulary", "sparsity": 0.75},
    },
}
TYPES: Mapping[str, Sequence[GgufType]] = {
    "SmolLM2-135M": ("F16",),
    "Gemma 3 270M": ("F16", "Q8_0", "Q4_0"),
}
QUESTION = "Python is a programming language that"
# Numbers of tokens: of the compared greedy continuation; of the timed prompt and continuation.
GREEDY, PREFILL, DECODE = 24, 512, 64
TURNS = 5
KINDS = ("prefill", "decode")
# TinyLlama's shape.
LARGER = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
HALF, SEMI = "half of the weights zero", "2:4"
# By the model and its dtype: what is removed, and the changed fields of the configuration.
SHAPES: dict[tuple[str, str], dict[str, dict[str, int]]] = {
    ("135 M", "float32"): {
        "a quarter of the channels": {"intermediate_size": 1152},
        "a tenth of the blocks": {"num_hidden_layers": 27},
        "a third of the heads": {"num_attention_heads": 6, "num_key_value_heads": 2},
        HALF: {},
        SEMI: {},
    },
    ("1.1 B", "bfloat16"): {
        "a quarter of the channels": {"intermediate_size": 4224},
        "two of 22 blocks": {"num_hidden_layers": 20},
        "a quarter of the heads": {"num_attention_heads": 24, "num_key_value_heads": 3},
    },
}


def main() -> None:
    """Measure, and write the tables."""
    parser = script_parser(__doc__)
    parser.add_argument("what", choices=["torch", "llama.cpp", "page"])
    parser.add_argument("gemma", nargs="?", type=Path, help="the GGUF file of Gemma 3 270M")
    parser.add_argument("--turns", type=int, default=TURNS)
    given = parser.parse_args()
    if given.what == "torch":
        run_torch(given)
    elif given.what == "llama.cpp":
        run_llama_cpp(given)
    of_torch, of_llama_cpp = (json.loads(file.read_text()) for file in (TORCH, LLAMA_CPP))
    write_tables(of_torch, of_llama_cpp)


def run_torch(given: argparse.Namespace) -> None:
    """Measure the shapes in PyTorch that have no speed yet."""
    measured = json.loads(TORCH.read_text()) if TORCH.exists() else {}
    for (size, dtype), removed in SHAPES.items():
        for words, fields in removed.items():
            name = f"{size}, {words}"
            if name not in measured:
                measured[name] = torch_speed(config_of(size), dtype, words, fields, given.turns)
                write_json(TORCH, measured)


def config_of(size: str) -> PreTrainedConfig:
    """The configuration of SmolLM2-135M, or of the larger shape."""
    if size != "135 M":
        return LlamaConfig(**LARGER)
    config: PreTrainedConfig = load_model(MODEL).model.config
    # The width of a head otherwise follows from their number.
    config.head_dim = config.hidden_size // config.num_attention_heads
    return config


def torch_speed(
    config: PreTrainedConfig, dtype: str, words: str, fields: Mapping[str, int], turns: int
) -> dict[str, Any]:
    """How many times as fast as the dense shape, and how many times fewer multiplications it has.

    The two models take turns. Those of attention are not counted, and those of the head only for
    decoding, since prefill computes the logits of one token.
    """
    smaller = deepcopy(config)
    for field, size in fields.items():
        setattr(smaller, field, size)
    models = [
        AutoModelForCausalLM.from_config(shape, dtype=dtype).eval() for shape in (config, smaller)
    ]
    pattern = {HALF: Unstructured(0.5, "row"), SEMI: SemiStructured(2, 4)}.get(words)
    if pattern is not None:
        for matrix in find_matrices(models[1]):
            scores = {matrix.name: matrix.weight.abs().float()}
            matrix.weight.masked_fill_(~pattern.choose(scores)[matrix.name], 0)
    names = [LanguageModel(model, None, name) for model, name in zip(models, "ab", strict=True)]
    dense, other = measure_speed(names, PREFILL, turns=turns).rows
    blocks = [sum(m.weight.numel() for m in find_matrices(model)) for model in models]
    heads = [model.get_output_embeddings().weight.numel() for model in models]
    return {
        "dtype": dtype,
        "fewer_prefill": round(blocks[0] / blocks[1], 4),
        "fewer_decode": round((blocks[0] + heads[0]) / (blocks[1] + heads[1]), 4),
        "prefill": round(other["prefill"] / dense["prefill"], 4),
        "decode": round(other["decode"] / dense["decode"], 4),
        "tokens_a_second": [dense["prefill"], dense["decode"]],
        "provenance": provenance(),
    }


def run_llama_cpp(given: argparse.Namespace) -> None:
    """Measure all cases in llama.cpp anew."""
    sources = dict(zip(CASES, (MODEL, str(given.gemma)), strict=True))
    with TemporaryDirectory() as temporary:
        rows = {
            f"{model}, {case}, {kind}": row
            for model, cases in CASES.items()
            for case in cases
            for kind, row in prepare(model, case, sources[model], Path(temporary)).items()
        }
        turns = [
            {name: llama_speed(Path(row["file"])) for name, row in rows.items()}
            for _ in range(given.turns)
        ]
    report = {}
    for name, row in rows.items():
        measured = {kind: [turn[name][kind] for turn in turns] for kind in KINDS}
        report[name] = {**{key: row[key] for key in row if key != "file"}, **measured}
    write_json(LLAMA_CPP, report)


def prepare(model: str, case: str, name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Prune a case and write its files; by their types, their sizes and the continuations."""
    print(model, case, flush=True)
    loaded, settings = load_model(name, dtype="float32"), CASES[model][case]
    path = source_of(folder / "made.gguf", None, name)
    assert path is not None
    source = read_source(path, name, loaded.model)
    tokens: Sequence[int] = ()
    if settings:
        cut = prune(loaded, **TEXT, **settings).recipe.cut
        tokens = cut.kept_tokens if cut else ()
    rows: dict[str, dict[str, Any]] = {}
    for kind in TYPES[model]:
        file = folder / f"{model}-{case}-{kind}.gguf".replace(" ", "-")
        save_gguf(source, loaded.model, file, kind, tokens, {})
        parameters = sum(p.numel() for p in loaded.model.parameters())
        rows[kind] = {"file": str(file), "parameters": parameters, "bytes": file.stat().st_size}
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half())
        ids = loaded.tokenizer(QUESTION, return_tensors="pt").input_ids
        ends = loaded.model.generate(ids, max_new_tokens=GREEDY, do_sample=False)
    rows["F16"]["transformers"] = loaded.tokenizer.decode(ends[0, ids.shape[1] :])
    rows["F16"]["llama.cpp"] = ask(Path(rows["F16"]["file"]), QUESTION, GREEDY)["text"]
    return rows


def llama_speed(path: Path) -> dict[str, float]:
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


def write_tables(of_torch: Mapping[str, Any], of_llama_cpp: Mapping[str, Any]) -> None:
    """Write both tables: how much faster, beside the ratio of sizes."""
    faster = [
        [name, *(f"×{row[kind]:.2f} (×{row[f'fewer_{kind}']:.2f})" for kind in KINDS)]
        for name, row in of_torch.items()
    ]
    rows = []
    for name, row in of_llama_cpp.items():
        model, _, kind = name.split(", ")
        dense = of_llama_cpp[f"{model}, dense, {kind}"]
        fewer = f"×{dense['parameters'] / row['parameters']:.2f}"
        cells = [name, f"{row['parameters'] / 1e6:.1f}", fewer, f"{row['bytes'] / 1e6:.0f}"]
        for of in KINDS:
            median = statistics.median(row[of])
            cells.append(f"{median:.0f} ({min(row[of]):.0f} to {max(row[of]):.0f})")
            cells.append(f"×{median / statistics.median(dense[of]):.2f}")
        same = row["transformers"] == row["llama.cpp"] if "llama.cpp" in row else None
        rows.append([*cells, {True: "yes", False: "no", None: ""}[same]])
    header = ["", "million parameters", "fewer", "MB", "prefill", "faster", "decode", "faster"]
    write_table("speed", markdown(("removed", *KINDS), faster), "torch")
    write_table("speed", markdown([*header, "same text"], rows), "llama.cpp")


if __name__ == "__main__":
    main()
