"""Smaller models: without a quarter of the MLP channels or a tenth of the blocks, refit or not.

    python benchmarks/structured.py --calibration wiki.valid.raw --text wiki.test.raw

Measures the speed of such shapes too, of two sizes, with random weights, on which speed does not
depend. Writes benchmarks/results/structured.json and structured.md. Finished runs are kept.
"""

import argparse
import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from pruner_zero import evaluate, prune
from pruner_zero.cli.progress import LineProgress
from pruner_zero.evaluation.speed import measure_speed
from pruner_zero.files import write_json
from pruner_zero.models import LanguageModel, find_matrices, load_model
from pruner_zero.provenance import provenance
from pruner_zero.sparsity import SemiStructured, Unstructured, keep_mask
from tables import markdown

HERE = Path(__file__).parent
FILE = HERE / "results" / "structured.json"
RUNS: dict[str, dict[str, Any]] = {
    "channels, as chosen": {"structure": "channels", "sparsity": 0.25, "update": "none"},
    "channels, refitted": {"structure": "channels", "sparsity": 0.25},
    "blocks, as chosen": {"structure": "blocks", "sparsity": 0.1, "update": "none"},
    "blocks, folded": {"structure": "blocks", "sparsity": 0.1},
}
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
PROMPT, TURNS = 512, 5
KINDS = ("prefill", "decode")


def main() -> None:
    """Measure the runs that are missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", required=True, help="WikiText-2 validation, raw")
    parser.add_argument("--text", required=True, help="WikiText-2 test, raw")
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS))
    given = parser.parse_args()
    report: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"rows": {}}
    rows = report["rows"]
    with TemporaryDirectory() as folder:
        if "dense" not in rows:
            rows["dense"] = judged(load_model(given.model, dtype="float32"), given.text)
        for name in given.runs:
            if name in rows:
                continue
            result = prune(
                load_model(given.model, dtype="float32"),
                None if name.startswith("blocks") else "wanda",
                calibration=given.calibration,
                output=Path(folder) / name,
                progress=LineProgress(),
                **RUNS[name],
            )
            rows[name] = {
                **judged(load_model(Path(folder) / name), given.text),
                "seconds": round(result.cost.seconds, 1),
            }
            report["calibration"] = result.calibration
            report["provenance"] = provenance()
            write_json(FILE, report)
    for (size, dtype), removed in SHAPES.items():
        for words, fields in removed.items():
            measured = report.setdefault("speeds", {})
            name = f"{size}, {words}"
            if name not in measured:
                measured[name] = speed(config_of(given.model, size), dtype, words, fields)
                write_json(FILE, report)
    write_page(report)


def config_of(model: str, size: str) -> PreTrainedConfig:
    """The configuration of the model, or of the larger shape."""
    if size != "135 M":
        return LlamaConfig(**LARGER)
    config: PreTrainedConfig = load_model(model).model.config
    # The width of a head otherwise follows from their number.
    config.head_dim = config.hidden_size // config.num_attention_heads
    return config


def speed(
    config: PreTrainedConfig, dtype: str, words: str, fields: Mapping[str, int]
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
    dense, other = measure_speed(names, PROMPT, turns=TURNS).rows
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


def judged(model: LanguageModel, text: str) -> dict[str, Any]:
    """Perplexity on the first 8 windows of 1024 tokens, and the number of parameters."""
    perplexity = evaluate(model, text, windows=8, seqlen=1024)
    return {"perplexity": perplexity.perplexity, "parameters": model.model.num_parameters()}


def write_page(report: dict[str, Any]) -> None:
    """Write structured.md."""
    page = [
        "# A smaller model",
        "",
        "Made by `python benchmarks/structured.py --calibration wiki.valid.raw --text"
        " wiki.test.raw`: SmolLM2-135M in float32; a quarter of the channels by Wanda's scores, a"
        " tenth of the blocks by their influence; calibrated on 24 windows of 1024 tokens of"
        " WikiText-2 validation, perplexity on the first 8 windows of 1024 tokens of its test."
        " [Result file](results/structured.json).",
        "",
    ]
    rows = []
    for name in ("dense", *(name for name in RUNS if name in report["rows"])):
        row = report["rows"][name]
        rows.append([name, f"{row['parameters'] / 1e6:.1f} M", f"{row['perplexity']:.2f}"])
    page.append(markdown(("model", "parameters", "perplexity"), rows))
    page += [
        "## Speed",
        "",
        "How many times as fast as the dense model, and in brackets how many times fewer"
        " multiplications, without those of attention, and in prefill without the head, which is"
        f" needed for one token. *prefill*: a pass over {PROMPT} tokens; *decode*: 32 tokens after"
        " them, one by one. One thread of a CPU, batch 1, the two models in turns, medians of"
        f" {TURNS}, random weights. 135 M: the shape of SmolLM2-135M in float32; 1.1 B: that of"
        " TinyLlama in bfloat16. The machine was busy with other work, so that single rows are off"
        " by a tenth or two.",
        "",
    ]
    faster = []
    for name, row in report.get("speeds", {}).items():
        times = [f"×{row[kind]:.2f} (×{row[f'fewer_{kind}']:.2f})" for kind in KINDS]
        faster.append([name, *times])
    page.append(markdown(("removed", *KINDS), faster))
    (HERE / "structured.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
