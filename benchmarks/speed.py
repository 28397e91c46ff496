"""How much faster smaller models run, in PyTorch and in llama.cpp, and whether folders load there.

    python benchmarks/speed.py torch
    python benchmarks/speed.py llama.cpp --converter llama.cpp/convert_hf_to_gguf.py
    python benchmarks/speed.py page

In PyTorch models of two shapes with random weights, on which speed does not depend, take turns
with the dense shape. For llama.cpp (`pip install xllamacpp sentencepiece`), SmolLM2-135M is pruned
in several ways; every folder is converted by the public converter (in the repository of llama.cpp,
and in the source archive of llama-cpp-python from 0.3.36 on) and run by the public runtime. Every
model continues a prompt greedily in llama.cpp from 32-bit weights and in transformers; the script
compares the two texts. Writes results/speed.json, results/llama-cpp.json and speed.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from pruner_zero import prune
from pruner_zero.evaluation.speed import measure_speed
from pruner_zero.files import write_json
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.save import save_model
from pruner_zero.models.structure import find_matrices
from pruner_zero.provenance import provenance
from pruner_zero.sparsity.pattern import keep_mask
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from tables import markdown, results, script_parser, write_page

TORCH, LLAMA_CPP = results("speed.json"), results("llama-cpp.json")
MODEL = "builtin:smollm2-135m"
TEXT: Mapping[str, Any] = {"calibration": "builtin:pydoc", "windows": 8, "distill": 0}
CASES: Mapping[str, Mapping[str, Any]] = {
    "dense": {},
    "half of the weights zero": {"metric": "wanda", "sparsity": 0.5},
    "a quarter of the channels": {"metric": "wanda", "structure": "channels", "sparsity": 0.25},
    "a third of the heads": {"metric": "wanda", "structure": "heads", "sparsity": 1 / 3},
    "a fifth of the blocks": {"structure": "blocks", "sparsity": 0.2},
}
QUESTION = "Python is a programming language that"
# Numbers of tokens: of the compared greedy continuation; of the timed prompt and continuation.
GREEDY, PREFILL, DECODE = 24, 512, 64
FILES = ("f32", "f16")
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
    """Measure, and write the page."""
    parser = script_parser(__doc__)
    parser.add_argument("what", choices=["torch", "llama.cpp", "page"])
    parser.add_argument("--converter", type=Path, help="convert_hf_to_gguf.py")
    parser.add_argument("--turns", type=int, default=TURNS)
    given = parser.parse_args()
    if given.what == "torch":
        run_torch(given)
    elif given.what == "llama.cpp":
        run_llama_cpp(given)
    of_torch, of_llama_cpp = (json.loads(file.read_text()) for file in (TORCH, LLAMA_CPP))
    write_page("speed", page(of_torch, of_llama_cpp))


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
            matrix.weight.masked_fill_(~keep_mask(matrix.weight.abs().float(), pattern), 0)
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
    with TemporaryDirectory() as temporary:
        rows = {name: prepare(name, Path(temporary), given.converter) for name in CASES}
        turns = [
            {name: llama_speed(Path(row["f16"])) for name, row in rows.items()}
            for _ in range(given.turns)
        ]
    report = {}
    for name, row in rows.items():
        measured = {kind: [turn[name][kind] for turn in turns] for kind in KINDS}
        kept = {key: value for key, value in row.items() if key not in FILES}
        report[name] = {**kept, **measured}
    write_json(LLAMA_CPP, report)


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
    for kind in FILES:
        row[kind] = str(place.with_suffix(f".{kind}.gguf"))
        command = [sys.executable, converter, place, "--outfile", row[kind], "--outtype", kind]
        subprocess.run([*map(str, command)], check=True, capture_output=True)
    row["bytes"] = Path(row["f16"]).stat().st_size
    with torch.no_grad():
        tokens = model.tokenizer(QUESTION, return_tensors="pt").input_ids
        ends = model.model.generate(tokens, max_new_tokens=GREEDY, do_sample=False)
    row["transformers"] = model.tokenizer.decode(ends[0, tokens.shape[1] :])
    row["llama.cpp"] = ask(Path(row["f32"]), QUESTION, GREEDY)["text"]
    return row


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


def page(of_torch: Mapping[str, Any], of_llama_cpp: Mapping[str, Any]) -> str:
    """The page: how much faster, beside the ratio of sizes."""
    faster = [
        [name, *(f"×{row[kind]:.2f} (×{row[f'fewer_{kind}']:.2f})" for kind in KINDS)]
        for name, row in of_torch.items()
    ]
    dense = of_llama_cpp["dense"]
    rows = []
    for name, row in of_llama_cpp.items():
        fewer = f"×{dense['parameters'] / row['parameters']:.2f}"
        cells = [name, f"{row['parameters'] / 1e6:.1f}", fewer, f"{row['bytes'] / 1e6:.0f}"]
        for kind in KINDS:
            median = statistics.median(row[kind])
            cells.append(f"{median:.0f} ({min(row[kind]):.0f} to {max(row[kind]):.0f})")
            cells.append(f"×{median / statistics.median(dense[kind]):.2f}")
        rows.append([*cells, "yes" if row["transformers"] == row["llama.cpp"] else "no"])
    header = ["", "million parameters", "fewer", "MB", "prefill", "faster", "decode", "faster"]
    return (
        "# The speed of smaller models\n\nMade by `python benchmarks/speed.py torch` and `python"
        " benchmarks/speed.py llama.cpp --converter convert_hf_to_gguf.py`: one thread of a CPU,"
        f" batch 1, medians of {TURNS} turns in which the models follow one another. *Prefill*: a"
        f" pass over {PREFILL} tokens; *decode*: the tokens after them, one by one, 32 in PyTorch"
        f" and {DECODE} in llama.cpp. Result files: [PyTorch](results/{TORCH.name}),"
        f" [llama.cpp](results/{LLAMA_CPP.name}).\n\n## In PyTorch\n\nHow many times as fast as"
        " the dense model, and in brackets how many times fewer multiplications, without those of"
        " attention, and in prefill without the head, which is needed for one token. Random"
        " weights; 135 M: the shape of SmolLM2-135M in float32, 1.1 B: that of TinyLlama in"
        " bfloat16. The machine was busy with other work, so that single rows are off by a tenth"
        f" or two.\n\n{markdown(('removed', *KINDS), faster)}\n## In llama.cpp\n\nSmolLM2-135M,"
        " converted by the public converter and run by the public runtime. *MB*: of the file with"
        " 16-bit weights. *Fewer*: the dense model's parameters over those of the row. *Prefill*,"
        " *decode*: tokens a second (lowest to highest). *Same text*: the first"
        f" {GREEDY} greedy tokens, from 32-bit weights, are those that transformers generates from"
        f" the folder.\n\n{markdown([*header, 'same text'], rows)}"
    )


if __name__ == "__main__":
    main()
