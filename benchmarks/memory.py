"""Peak memory and time of `prune --offload`: flat in the number of blocks, within its plan.

Run: python benchmarks/memory.py -o benchmarks/results/memory.json
Random LLaMA-shaped checkpoints are made in --folder and pruned by the program itself, each in a
process of its own, whose peak resident memory the system tells at its end. By default: a small
shape at several depths, in memory and offloaded, and a 1B shape; --seven-billion adds LLaMA-2-7B's.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from shapes import Shape, make_checkpoint

SMALL = {"hidden": 256, "intermediate": 688, "heads": 4, "kv_heads": 4}
ONE_BILLION = Shape(2048, 5632, 22, 32, 4)
SEVEN_BILLION = Shape(4096, 11008, 32, 32, 32)


def measure(command: list[str], log: Path) -> tuple[int, float, int]:
    """Exit code, wall seconds and peak resident bytes of a process; its stderr goes to `log`."""
    start = time.monotonic()
    with open(log, "wb") as err:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return process.returncode, round(time.monotonic() - start, 1), usage.ru_maxrss * unit


def prune(
    shape: Shape, method: str, offload: bool, memory: str | None, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One run and what it took; its statistics are collected anew."""
    folder: Path = arguments.folder
    model = make_checkpoint(shape, folder / shape.name)
    output, cache, log = folder / "out", folder / "cache", folder / "log"
    for old in (output, cache):
        shutil.rmtree(old, ignore_errors=True)
    command = [sys.executable, "-m", "pruner_zero", "prune", str(model), "--metric", method]
    command += ["--sparsity", "0.5", "--calibration", "builtin:pydoc"]
    command += ["--windows", str(arguments.windows), "--seqlen", str(arguments.seqlen)]
    command += ["-o", str(output), "--cache", str(cache)]
    command += ["--offload"] if offload else []
    command += ["--memory", memory] if memory else []
    code, seconds, peak = measure(command, log)
    lines = log.read_text().splitlines()
    result = {
        "shape": shape.name,
        "blocks": shape.blocks,
        "method": method,
        "offload": offload,
        "memory": memory,
        "checkpoint_mib": round(sum(f.stat().st_size for f in model.iterdir()) / 2**20),
        "peak_mib": round(peak / 2**20),
        "seconds": seconds,
        "plan": next((line for line in lines if line.startswith("--offload")), None),
        "exit": code,
        "error": lines[-1] if code and lines else None,
    }
    for old in (output, cache):
        shutil.rmtree(old, ignore_errors=True)
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path("runs/memory"))
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--depths", type=int, nargs="*", default=[4, 8, 16])
    parser.add_argument("--methods", nargs="*", default=["wanda", "pruner-zero", "sparsegpt"])
    parser.add_argument("--small-only", action="store_true", help="leave out the 1B shape")
    parser.add_argument("--seven-billion", action="store_true", help="add LLaMA-2-7B's shape")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/memory.json"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)

    runs: list[tuple[Shape, str, bool, str | None]] = []
    for method in arguments.methods:
        for offload in (False, True):
            runs += [(Shape(**SMALL, blocks=d), method, offload, None) for d in arguments.depths]
        if not arguments.small_only:
            runs.append((ONE_BILLION, method, True, None))
    if arguments.seven_billion:
        runs.append((SEVEN_BILLION, "wanda", True, "3GiB"))
        runs.append((SEVEN_BILLION, "pruner-zero", True, "6GiB"))
    report = {
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "windows": arguments.windows,
        "seqlen": arguments.seqlen,
        "results": [prune(*run, arguments) for run in runs],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
