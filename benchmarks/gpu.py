"""Measures `prune`, `recover`, `search`, masks and products on a GPU: seconds and peak memory.

    python benchmarks/gpu.py --model builtin:smollm2-135m --calibration wiki.valid.raw

Measures the parts one after the other, each in its own process, which is killed after eight
minutes, with nothing cached. Every part is written at once to benchmarks/results/gpu.json, so that
an interrupted run continues, and gpu.md is written from it; --at-most 1 fits a machine that is
lent for ten minutes. Without a GPU the script measures the CPU, and the page says so.
"""

import argparse
import json
import multiprocessing
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.sparse import to_sparse_semi_structured

from pruner_zero import prune, recover, search
from pruner_zero.devices import find_devices
from pruner_zero.files import write_atomic
from pruner_zero.provenance import measured, provenance
from pruner_zero.settings.prune import DEFAULT
from pruner_zero.sparsity import Pattern, SemiStructured, Unstructured, keep_mask

HERE = Path(__file__).parent
BEST = f"{DEFAULT['metric']}@{DEFAULT['scope']}"
METHODS = ("wanda", "sparsegpt", BEST, f"{BEST}+refine+asymmetric+exact")
# By part, the arguments of `prune`; without a metric it takes the default method.
PRUNED: Mapping[str, Mapping[str, Any]] = {
    **{method: {"metric": method, "sparsity": 0.5} for method in METHODS},
    "wanda, 2:4": {"metric": "wanda", "pattern": "2:4"},
    "sparsegpt, 2:4": {"metric": "sparsegpt", "pattern": "2:4"},
    "default, 2:4": {"pattern": "2:4"},
    "wanda, a fifth of the channels": {
        "metric": "wanda",
        "structure": "channels",
        "sparsity": 0.2,
    },
}
PARTS = (*PRUNED, "selection", "products", "recover", "search")
# Optimizer steps of `recover`, and rows of the inputs of products.
STEPS, TOKENS = 20, (1, 8, 64, 2048)
SECONDS = 480.0
TURNS = 7
PATTERNS: tuple[Pattern, ...] = (
    SemiStructured(2, 4),
    SemiStructured(4, 8),
    SemiStructured(16, 32),
    *(Unstructured(0.5, scope) for scope in ("row", "block", "matrix")),
)


@dataclass(frozen=True)
class Settings:
    """The settings that decide the numbers. rows: of the matrices that selection chooses in."""

    model: str
    calibration: str
    device: str
    windows: int
    seqlen: int
    minutes: float
    rows: int

    @property
    def common(self) -> dict[str, Any]:
        """The arguments that `prune` and `search` share, but for the zeros."""
        names = ("calibration", "device", "windows", "seqlen")
        return {name: getattr(self, name) for name in names}


def measure(part: str, settings: Settings) -> dict[str, Any]:
    """The numbers of a part, with its device and provenance."""
    measures = {
        "selection": selection,
        "products": products,
        "recover": recovering,
        "search": searching,
    }
    row = measures[part](settings) if part in measures else pruning(part, settings)
    device = str(find_devices(settings.device).first)
    return {**row, "device": device, "provenance": provenance()}


def pruning(part: str, settings: Settings) -> dict[str, Any]:
    """Seconds and peak memory of `prune`, with the statistics, without loading the model."""
    with TemporaryDirectory() as cache:
        result = prune(settings.model, cache=cache, **settings.common, **PRUNED[part])
    return {**result.cost.to_json(), "zeros": result.sparsity}


def recovering(settings: Settings) -> dict[str, Any]:
    """Seconds of an optimizer step and peak memory of `recover` by LoRA, with a teacher."""
    with TemporaryDirectory() as folder:
        pruned = Path(folder) / "pruned"
        prune(settings.model, "magnitude", output=pruned, sparsity=0.5, device=settings.device)
        result = recover(
            pruned,
            teacher=settings.model,
            text=settings.calibration,
            mode="lora",
            steps=STEPS,
            validation_windows=1,
            device=settings.device,
        )
    spent = result.curve[-1].seconds - result.curve[0].seconds
    return {**result.cost.to_json(), "seconds_a_step": round(spent / STEPS, 3)}


def products(settings: Settings) -> dict[str, Any]:
    """Times of x·Wᵀ in bfloat16 beside the dense product: W half zero, 2:4, or with half the rows.

    W is square. 2:4 is multiplied by torch's semi-structured kernels; a device without them has
    the reason in place of their times.
    """
    device = find_devices(settings.device).first
    dense = torch.randn(settings.rows, settings.rows, device=device, dtype=torch.bfloat16)

    def masked(pattern: Pattern) -> Tensor:
        return dense * keep_mask(dense.abs().float(), pattern)

    weights = {"half zero": masked(Unstructured(0.5, "row")), "half the rows": dense[::2].clone()}
    report: dict[str, Any] = {}
    try:
        weights["2:4"] = to_sparse_semi_structured(masked(SemiStructured(2, 4)))
        linear(dense[:1], weights["2:4"])
    except (RuntimeError, NotImplementedError) as error:
        weights.pop("2:4", None)
        report["without"] = f"2:4 has no times: {' '.join(str(error).split())[:200]}"
    rows = []
    for tokens in TOKENS:
        inputs = torch.randn(tokens, settings.rows, device=device, dtype=torch.bfloat16)
        usual = seconds(lambda: linear(inputs, dense), device)  # noqa: B023
        row = {"tokens": tokens, "ms": round(1e3 * usual, 4)}
        for name, weight in weights.items():
            taken = seconds(lambda: linear(inputs, weight), device)  # noqa: B023
            row[name] = round(usual / taken, 3)
        rows.append(row)
    return {**report, "products": rows, "shape": [settings.rows, settings.rows]}


def searching(settings: Settings) -> dict[str, Any]:
    """Candidates a minute, without the statistics, and peak memory of a search by one worker."""
    with TemporaryDirectory() as folder, measured() as cost:
        study = search(
            settings.model,
            output=Path(folder) / "search",
            cache=Path(folder) / "cache",
            minutes=settings.minutes,
            workers=1,
            sparsity=0.5,
            **settings.common,
        )
    candidates = len(study.records)
    per_minute = 60 * candidates / study.elapsed
    return {**cost.to_json(), "candidates": candidates, "per_minute": round(per_minute, 1)}


def selection(settings: Settings) -> dict[str, Any]:
    """For each pattern the seconds of a mask, and its bandwidth as a share of a copy's bandwidth.

    A mask must read four bytes and write one byte for each score; other traffic is not counted.
    """
    device = find_devices(settings.device).first
    copied = torch.rand(settings.rows, 1 << 14, device=device)
    target = torch.empty_like(copied)
    bandwidth = 2 * copied.nbytes / seconds(lambda: target.copy_(copied), device)
    kernels = []
    for columns in (settings.rows, settings.rows * 11008 // 4096 // 32 * 32):
        scores = torch.rand(settings.rows, columns, device=device)
        for pattern in PATTERNS:
            taken = seconds(lambda: keep_mask(scores, pattern), device)  # noqa: B023
            share = 5 * scores.numel() / taken / bandwidth
            kernels.append(
                {
                    "pattern": str(pattern),
                    "shape": list(scores.shape),
                    "ms": round(1e3 * taken, 3),
                    "share": round(share, 4),
                }
            )
    return {"gigabytes_a_second": round(bandwidth / 1e9, 1), "kernels": kernels}


def seconds(task: Callable[[], object], device: torch.device) -> float:
    """The median time of a task on `device`, after a run that warms up."""
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type)
    times = []
    for _ in range(TURNS + 1):
        start = time.perf_counter()
        task()
        if wait is not None:
            wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def apart(part: str, settings: Settings, limit: float = SECONDS) -> dict[str, Any]:
    """`measure` in its own process; where it fails or is too slow, the reason as "failed"."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(part, settings, sender))
    process.start()
    sender.close()
    try:
        # A process that dies without a message closes the pipe, which ends the wait.
        if receiver.poll(limit):
            row: dict[str, Any] = receiver.recv()
            process.join(10)
            return row
        return {"failed": f"not finished after {limit:g} s", "provenance": provenance()}
    except EOFError:
        process.join()
        return {"failed": f"its process died ({process.exitcode})", "provenance": provenance()}
    finally:
        process.kill()
        process.join()


def _send(part: str, settings: Settings, sender: Connection) -> None:
    try:
        sender.send(measure(part, settings))
    except Exception as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
        sender.send({"failed": message, "provenance": provenance()})


def write_page(report: dict[str, Any], command: str, page: Path) -> None:
    """Write the page: the measured parts, the missing parts, and the devices."""
    rows, settings = report["parts"], report["settings"]
    used = {part: _gpus(row) for part, row in rows.items()}
    gpus = sorted({name for names in used.values() for name in names})
    lines = [
        "# What a GPU takes",
        "",
        f"Made by `{command}`: {settings['windows']} windows of {settings['seqlen']} tokens of"
        f" {settings['calibration']}, 50 % where a part says nothing else, device"
        f" `{settings['device']}`; each part in a process"
        f" of its own with nothing cached, ended after {SECONDS:g} s.",
        "",
        f"Measured on {', '.join(gpus)}."
        if gpus
        else "**No GPU was there.** These are numbers of a CPU: they show that the parts run, and"
        " nothing of how fast or in how much memory a GPU would.",
        "",
    ]
    without = [part for part, names in used.items() if gpus and not names]
    lines += [f"No GPU was there for {_listed(without)}.", ""] * bool(without)
    missing = [part for part in PARTS if part not in rows]
    lines += [f"Not measured yet: {_listed(missing)}.", ""] * bool(missing)
    failed = {part: row["failed"] for part, row in rows.items() if "failed" in row}
    lines += [f"`{part}` has no numbers: {why}.\n" for part, why in failed.items()]
    if pruned := {part: row for part, row in rows.items() if "zeros" in row}:
        lines += [
            "| `prune` | s | peak on the GPU, MiB | peak in main memory, MiB |",
            "|---|--:|--:|--:|",
        ]
        lines += [
            f"| `{part}` | {row['seconds']:.1f} | {_mib(row)} | {row['peak_rss_bytes'] >> 20} |"
            for part, row in pruned.items()
        ]
        lines.append("")
    if kernels := rows.get("selection", {}).get("kernels"):
        lines += [
            f"Masks of a matrix whose scores are there, medians of {TURNS}; the share is that of"
            f" {rows['selection']['gigabytes_a_second']} GB/s, which a copy reaches, if scores were"
            " read once and masks written once.",
            "",
            "| pattern | shape | ms | share of the bandwidth |",
            "|---|---|--:|--:|",
        ]
        for row in kernels:
            shape = " × ".join(map(str, row["shape"]))
            lines.append(f"| {row['pattern']} | {shape} | {row['ms']:.2f} | {row['share']:.1%} |")
        lines.append("")
    if multiplied := rows.get("products", {}).get("products"):
        names = [name for name in multiplied[0] if name not in ("tokens", "ms")]
        shape = " × ".join(map(str, rows["products"]["shape"]))
        lines += [
            f"Products in bfloat16 with a matrix of {shape}: the dense product's time, and how many"
            f" times as fast others are, medians of {TURNS}.",
            "",
            f"| tokens | dense, ms | {' | '.join(names)} |",
            f"|--:|--:|{'--:|' * len(names)}",
        ]
        for row in multiplied:
            cells = " | ".join(f"×{row[name]:.2f}" for name in names)
            lines.append(f"| {row['tokens']} | {row['ms']:.3f} | {cells} |")
        lines += ["", f"{rows['products'].get('without', '')}", ""]
    if "seconds_a_step" in (recovered := rows.get("recover", {})):
        lines += [
            f"`recover --mode lora` with a dense teacher: {recovered['seconds_a_step']} s for a"
            f" step of 1024 tokens, peak on the GPU, MiB: {_mib(recovered)}.",
            "",
        ]
    if (searched := rows.get("search", {})).get("candidates"):
        peak = f", peak on the GPU {_mib(searched)} MiB" if "peak_gpu_bytes" in searched else ""
        lines += [
            f"`search`: {searched['per_minute']} candidates a minute by one worker"
            f" ({searched['candidates']} judged){peak}.",
            "",
        ]
    write_atomic(page, "\n".join(lines))


def _listed(parts: list[str]) -> str:
    return ", ".join(f"`{part}`" for part in parts)


def _gpus(row: dict[str, Any]) -> list[str]:
    """The names of the GPUs that a part used; for a GPU without CUDA, the name of its device."""
    elsewhere = [device for device in [row.get("device", "cpu")] if device != "cpu"]
    names: list[str] = row["provenance"].get("gpus", elsewhere)
    return names


def _mib(row: dict[str, Any]) -> str:
    return str(row["peak_gpu_bytes"] >> 20) if "peak_gpu_bytes" in row else "none used"


def main(given: list[str]) -> None:
    """Measure the missing parts and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", default="builtin:pydoc")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--minutes", type=float, default=4.0, help="of search")
    parser.add_argument("--rows", type=int, default=4096, help="of matrices to select in")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--at-most", type=int, default=len(PARTS), help="parts of this call")
    parser.add_argument("--again", action="store_true", help="measure parts that are there anew")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "gpu.json")
    parser.add_argument("--page", type=Path, default=HERE / "gpu.md")
    arguments = parser.parse_args(given)
    settings = Settings(**{name: getattr(arguments, name) for name in Settings.__annotations__})
    report: dict[str, Any] = {"settings": asdict(settings), "parts": {}}
    if arguments.output.exists():
        report = json.loads(arguments.output.read_text())
        if report["settings"] != asdict(settings):
            parser.error(f"{arguments.output} has other settings: give another --output, or theirs")
    due = [part for part in arguments.parts if arguments.again or part not in report["parts"]]
    command = shlex.join(["python", "benchmarks/gpu.py", *given])
    for part in due[: arguments.at_most]:
        print(f"{part} …", flush=True)
        report["parts"][part] = apart(part, settings)
        write_atomic(arguments.output, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    write_page(report, command, arguments.page)


if __name__ == "__main__":
    main(sys.argv[1:])
