"""Peak memory and time of `prune --offload`: flat in the number of blocks.

    python benchmarks/memory.py --shapes 7B small 1B

The script makes random LLaMA-shaped bf16 checkpoints in --folder. `prune` runs on each in its own
process, whose peak resident memory the system reports at its end. The checkpoints: a small shape at
several depths, in memory and offloaded, a 1B shape, and LLaMA-2-7B's shape. Every run is written at
once to benchmarks/results/memory.json, and memory.md is written from that file.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from pruner_zero.files import write_json
from shapes import Shape, make_checkpoint
from tables import machine

SMALL = {"hidden": 1024, "intermediate": 2816, "heads": 16, "kv_heads": 16}
ONE_BILLION = Shape(2048, 5632, 22, 32, 4)
SEVEN_BILLION = Shape(4096, 11008, 32, 32, 32)
SHAPES = {"small": Shape(**SMALL, blocks=4), "1B": ONE_BILLION, "7B": SEVEN_BILLION}
HERE = Path(__file__).parent
# Methods that need more options than a metric at a sparsity of one half.
OPTIONS = {
    "channels": ["--metric", "wanda", "--structure", "channels", "--sparsity", "0.2"],
}
METHODS = ("wanda", "pruner-zero", "W * (O * X)^0.75@global", *OPTIONS)


# Run by a bare interpreter, since the memory of the forking process counts in its child's peak.
_LAUNCHER = """
import json, os, subprocess, sys, time
start = time.monotonic()
with open(sys.argv[1], "wb") as err:
    process = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL, stderr=err)
    _, status, usage = os.wait4(process.pid, 0)
code = os.waitstatus_to_exitcode(status)
print(json.dumps([code, time.monotonic() - start, usage.ru_maxrss]))
"""


def measure(command: list[str], log: Path) -> tuple[int, float, int]:
    """Exit code, wall seconds and peak resident bytes of a process; its stderr goes to `log`."""
    launch = [sys.executable, "-S", "-c", _LAUNCHER, str(log), *command]
    output = subprocess.run(launch, check=True, capture_output=True, text=True).stdout
    code, seconds, peak = json.loads(output)
    return code, round(seconds, 1), peak * (1 if sys.platform == "darwin" else 1024)


def prune(
    shape: Shape, method: str, offload: bool, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One run, with its time and peak memory; its statistics are collected anew."""
    folder: Path = arguments.folder
    model = make_checkpoint(shape, folder / shape.name)
    output, cache, log = folder / "out", folder / "cache", folder / "log"
    for old in (output, cache):
        shutil.rmtree(old, ignore_errors=True)
    command = [sys.executable, "-m", "pruner_zero", "prune", str(model)]
    command += OPTIONS.get(method, ["--metric", method, "--sparsity", "0.5"])
    command += ["--calibration", "builtin:pydoc"]
    command += ["--windows", str(arguments.windows), "--seqlen", str(arguments.seqlen)]
    command += ["-o", str(output), "--cache", str(cache)]
    command += ["--offload"] if offload else []
    code, seconds, peak = measure(command, log)
    lines = log.read_text().splitlines()
    result = {
        "shape": shape.name,
        "blocks": shape.blocks,
        "method": method,
        "offload": offload,
        "tokens": f"{arguments.windows} × {arguments.seqlen}",
        "checkpoint_mib": round(sum(f.stat().st_size for f in model.iterdir()) / 2**20),
        "peak_mib": round(peak / 2**20),
        "seconds": seconds,
        "exit": code,
        "error": lines[-1] if code and lines else None,
    }
    for old in (output, cache):
        shutil.rmtree(old, ignore_errors=True)
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    """Make the runs that are missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path("runs/memory"))
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--depths", type=int, nargs="*", default=[4, 8, 16])
    parser.add_argument("--shapes", nargs="*", default=["small", "1B"], choices=list(SHAPES))
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "memory.json")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    runs: list[tuple[Shape, str, bool]] = []
    for name in arguments.shapes:
        for method in arguments.methods:
            if name == "small":
                shapes = [Shape(**SMALL, blocks=depth) for depth in arguments.depths]
                runs += [(shape, method, offload) for offload in (False, True) for shape in shapes]
            else:
                runs.append((SHAPES[name], method, True))
    report = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    report["machine"] = machine() | {"python": platform.python_version()}
    done = report.setdefault("results", [])
    for shape, method, offload in runs:
        key = (shape.name, shape.blocks, method, offload)
        if key not in [(o["shape"], o["blocks"], o["method"], o["offload"]) for o in done]:
            done.append(prune(shape, method, offload, arguments))
            write_json(arguments.output, report)
            write_page(report)
        if shape.blocks not in arguments.depths and method == arguments.methods[-1]:
            shutil.rmtree(arguments.folder / shape.name, ignore_errors=True)
    write_page(report)


def write_page(report: dict[str, Any]) -> None:
    """Write memory.md."""
    lines = [
        "# Peak memory of `prune`",
        "",
        "Made by `python benchmarks/memory.py --shapes 7B small 1B`: random bf16 checkpoints of"
        " LLaMA's shape, each run"
        " a process of its own with nothing cached, statistics included, on the built-in text. Half"
        " of the weights by a metric (gradients for the published tree, those of outputs for `O`);"
        " or, as *channels*, a fifth of the channels with the refit. In the 7B run of `wanda` the"
        " activations between two blocks were in memory (4 MiB); they are on disk now. The runs of"
        " *channels* of the two largest shapes shared two cores with three other processes. [Result"
        " file](results/memory.json).",
        "",
        "| shape | blocks | checkpoint, MiB | tokens | method | | peak, MiB | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in report["results"]:
        cells = [
            *(run[name] for name in ("shape", "blocks", "checkpoint_mib", "tokens")),
            f"`{run['method']}`",
            "offloaded" if run["offload"] else "in memory",
            run["error"] if run["exit"] else run["peak_mib"],
            f"{run['seconds']:.0f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    (HERE / "memory.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
