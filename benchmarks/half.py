"""What models in half precision cost on a CPU that emulates their products.

    OMP_NUM_THREADS=1 python benchmarks/half.py

The loss of one window and its gradients, in float32 and in both half-precision dtypes, by torch
alone and with `half_products`; and one linear layer by the rows of its input. Writes half.md and
results/half.json.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from pruner_zero.devices import emulated_dtypes
from pruner_zero.models import load_model, next_token_loss
from pruner_zero.text.corpus import load_corpus
from pruner_zero.text.windows import consecutive_windows
from tables import markdown

HERE = Path(__file__).parent
FILE = HERE / "results" / "half.json"
MODEL, TOKENS, TURNS = "builtin:smollm2-135m", 256, 3
ROWS, LAYER_TURNS = (1, 2, 4, 8, 64), 30
EMULATED = "pruner_zero.models.half_precision.emulated_dtypes"
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def main() -> None:
    """Measure, and write the page."""
    torch.set_num_threads(1)
    emulated = [DTYPES[dtype] for dtype in emulated_dtypes()]
    rows: list[dict[str, Any]] = [
        {"dtype": name, "by": by, "seconds": [], "losses": []}
        for name in DTYPES.values()
        for by in ("torch alone", "float32 products")
        if by == "torch alone" or name in emulated
    ]
    corpus = load_corpus("builtin:pydoc/test", role="test")
    for _ in range(TURNS):
        for row in rows:
            model = load_model(MODEL, dtype=row["dtype"])
            window = consecutive_windows(corpus, model.tokenizer, TOKENS, 1).tokens
            with patch(EMULATED, tuple if row["by"] == "torch alone" else emulated_dtypes):
                start = time.process_time()
                loss = next_token_loss(model.model, window)
                loss.backward()
                row["seconds"].append(round(time.process_time() - start, 2))
            row["losses"].append(round(float(loss.detach()), 5))
    layers = [
        {"dtype": name, "rows": rows, **of_a_layer(dtype, rows)}
        for dtype, name in DTYPES.items()
        if name in emulated
        for rows in ROWS
    ]
    capability = torch.backends.cpu.get_cpu_capability()
    result = {"capability": capability, "emulated": emulated, "torch": torch.__version__}
    FILE.write_text(json.dumps({**result, "rows": rows, "layers": layers}, indent=2) + "\n")
    write_page()


def of_a_layer(dtype: torch.dtype, rows: int) -> dict[str, float]:
    """Milliseconds of a layer with 576 inputs and 1536 outputs, medians of turns."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 576, generator=generator).to(dtype)
    weight = torch.randn(1536, 576, generator=generator).to(dtype)
    ways: dict[str, Callable[[], Tensor]] = {
        "torch": lambda: functional.linear(x, weight),
        "float32": lambda: functional.linear(x.float(), weight.float()).to(dtype),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(LAYER_TURNS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


def write_page() -> None:
    """Write half.md from the result file."""
    result = json.loads(FILE.read_text())
    seconds = {(row["dtype"], row["by"]): row["seconds"] for row in result["rows"]}
    base = seconds["float32", "torch alone"]
    cells = []
    for row in result["rows"]:
        ratio = statistics.median(a / b for a, b in zip(row["seconds"], base, strict=True))
        middle, loss = statistics.median(row["seconds"]), row["losses"][0]
        cells.append([row["dtype"], row["by"], f"{middle:.1f}", f"{ratio:.1f}", f"{loss:.4f}"])
    layers = [
        [layer["dtype"], str(layer["rows"]), f"{layer['torch']:.2f}", f"{layer['float32']:.2f}"]
        for layer in result["layers"]
    ]
    lines = [
        "# Half precision on a CPU that emulates its products",
        "",
        f"Made by `OMP_NUM_THREADS=1 python benchmarks/half.py` on a CPU of which torch"
        f" {result['torch']} uses {result['capability']}: the loss of a window of {TOKENS} tokens"
        f" of SmolLM2-135M and all its gradients, one thread, medians of {TURNS} turns in which the"
        " rows follow one another; ratios are taken within a turn."
        " [Result file](results/half.json).",
        "",
        markdown(["dtype", "products", "seconds", "×", "loss"], cells),
        "Most checkpoints are bfloat16. torch multiplies it by a slow reference path where it has"
        " no AVX-512, and float16 where the CPU has no instructions for it"
        " ([pytorch#146508](https://github.com/pytorch/pytorch/issues/146508)). *float32 products*:"
        " `half_products` takes them in float32 and rounds once, as processors do that have such"
        " products. The model keeps its dtype and its memory. All forward passes of this package"
        " do so on such CPUs, but not those that `evaluate --speed` times; products of experts by"
        " grouped kernels are among them where torch has `nn.functional.grouped_mm`. On other CPUs"
        " nothing changes.",
        "",
        "One layer with 576 inputs and 1536 outputs, medians of"
        f" {LAYER_TURNS} turns. With one or two rows casting the weights takes as long as the"
        " product: below four rows products are left to torch.",
        "",
        markdown(["dtype", "rows", "torch alone, ms", "float32 products, ms"], layers).rstrip(),
    ]
    (HERE / "half.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
