"""Exact selection against a stable sort per row and a loop over column groups for 2:4.

Run: python benchmarks/selection.py -o benchmarks/results/selection.json
Selection and baseline take turns, so a busy machine slows both; read the ratios. Other work on the
machine disturbs the ratio of the fastest runs least. Asserts that every mask is equal to the
baseline's.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruner_zero.sparsity import Pattern, SemiStructured, Unstructured, keep_mask


def sorted_rows(scores: Tensor, sparsity: float) -> Tensor:
    """The baseline per row: a stable full sort, then a scatter of the pruned columns."""
    pruned = int(scores.shape[1] * sparsity)
    order = scores.sort(dim=1, stable=True).indices[:, :pruned]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, order, False)


def looped_groups(scores: Tensor, n: int, m: int) -> Tensor:
    """The baseline for N:M: `topk` and a scatter for every group of columns, in a loop."""
    keep = torch.ones_like(scores, dtype=torch.bool)
    for start in range(0, scores.shape[1], m):
        lowest = scores[:, start : start + m].topk(n, dim=1, largest=False).indices
        keep.scatter_(1, start + lowest, False)
    return keep


def seconds(task: Callable[[], Tensor]) -> float:
    """The wall time of one call."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def compare(scores: Tensor, pattern: Pattern, repeats: int) -> dict[str, Any]:
    """Medians in milliseconds and their ratio, from alternating runs after one warm-up."""

    def ours() -> Tensor:
        return keep_mask(scores, pattern)

    def baseline() -> Tensor:
        if isinstance(pattern, SemiStructured):
            return looped_groups(scores, pattern.n, pattern.m)
        return sorted_rows(scores, pattern.sparsity)

    assert torch.equal(ours(), baseline()), f"masks differ at {pattern}"
    pairs = [(seconds(ours), seconds(baseline)) for _ in range(repeats)]
    our_times, baseline_times = zip(*pairs, strict=True)
    return {
        "shape": list(scores.shape),
        "pattern": str(pattern),
        "baseline": "topk per column group"
        if isinstance(pattern, SemiStructured)
        else "stable sort per row",
        "ours_ms": round(1e3 * statistics.median(our_times), 1),
        "baseline_ms": round(1e3 * statistics.median(baseline_times), 1),
        "ratio": round(statistics.median(slow / fast for fast, slow in pairs), 1),
        "ratio_of_fastest": round(min(baseline_times) / min(our_times), 1),
        "masks_equal": True,
    }


def distinct_in_groups(shape: tuple[int, int], seed: int) -> Tensor:
    """Random scores; no two of any eight neighbours tie, as `topk` does not order ties."""
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    lane = torch.arange(shape[1], dtype=torch.int32) % 8
    return ((scores.view(torch.int32) & ~7) | lane).view(torch.float32)


def machine() -> dict[str, Any]:
    """The facts of this machine that the figures depend on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=4096, help="rows, and columns of the square")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("benchmarks/results/selection.json")
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    # The second width is that of LLaMA-7B's down projection, in proportion to the hidden size.
    widths = (arguments.size, arguments.size * 11008 // 4096 // 8 * 8)
    patterns: tuple[Pattern, ...] = (Unstructured(0.5), SemiStructured(2, 4), SemiStructured(4, 8))
    results = []
    for seed, width in enumerate(widths):
        scores = distinct_in_groups((arguments.size, width), seed)
        for pattern in patterns:
            results.append(compare(scores, pattern, arguments.repeats))
            print(json.dumps(results[-1]), flush=True)
    report = {"machine": machine(), "repeats": arguments.repeats, "results": results}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
