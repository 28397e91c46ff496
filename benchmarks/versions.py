"""Compares two versions of this program: the size of the source, and the cost of `prune`.

    python benchmarks/versions.py size --old COMMIT
    python benchmarks/versions.py prune --old COMMIT --calibration wiki.valid.raw
    python benchmarks/versions.py commands

`size` counts lines and parameters in the source of both commits. `prune` runs the command line of
both, old and new in turn over --rounds, each case in its own process with no statistics cached.
`commands` clones the repository and runs `make demo` and `make test` there, with the installation
of the environment, --rounds times. Every number is written at once to
benchmarks/results/versions.json.
"""

import argparse
import ast
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memory import measure
from pruner_zero.files import write_atomic, write_json
from tables import machine, markdown

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "versions.json"
METHODS = ("wanda", "sparsegpt", "wanda+refine+asymmetric+exact")

# Names of folders and modules in either version: of the search's loop, of the analysis of
# searches, and of the algebra of metrics.
LOOP = ("search", "evolution")
ANALYSIS = ("analysis", "correlations", "features", "lineage", "principles", "statistics")
ALGEBRA = ("algebra", "bounds", "normal", "canonical")

# The text that ends the page, written by hand.
NOTES = HERE / "results" / "versions-notes.md"


def main() -> None:
    """Measure one part and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=["size", "prune", "commands", "page"])
    parser.add_argument("--old", default="61b2180", help="the commit to compare with")
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", help="WikiText-2 validation, raw")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--targets", nargs="*", default=["demo", "test"])
    parser.add_argument("--beside", default="", help="what else ran on the machine, for the page")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--folder", type=Path, default=Path("runs/versions"))
    given = parser.parse_args()
    given.folder = given.folder.resolve()
    given.folder.mkdir(parents=True, exist_ok=True)
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if given.part == "size":
        report["size"] = {
            "old": sizes(checkout(given.old, given.folder) / "src" / "pruner_zero"),
            "new": sizes(ROOT / "src" / "pruner_zero"),
        }
    elif given.part == "prune":
        compare_prune(given, report)
    elif given.part == "commands":
        time_commands(given, report)
    write(report)


def write(report: dict[str, Any]) -> None:
    """Write the result file and its page."""
    write_json(RESULTS, report)
    write_atomic(HERE / "versions.md", page(report))


def checkout(commit: str, folder: Path) -> Path:
    """A folder with the files of `commit`."""
    target = folder / commit
    if not target.exists():
        target.mkdir()
        archive = subprocess.run(
            ["git", "archive", commit], cwd=ROOT, check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", str(target)], input=archive, check=True)
    return target


def sizes(source: Path) -> dict[str, int]:
    """Lines of Python below `source`, and the most parameters that a function has."""
    lines: dict[Path, int] = {}
    parameters = {"": 0}
    for path in sorted(source.rglob("*.py")):
        text = path.read_text()
        lines[path.relative_to(source)] = len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                parts = node.args
                names = [*parts.posonlyargs, *parts.args, *parts.kwonlyargs]
                count = sum(name.arg not in ("self", "cls") for name in names)
                parameters[f"{path.relative_to(source)}:{node.name}"] = count

    def total(rooms: tuple[str, ...], without: tuple[str, ...] = ()) -> int:
        return sum(
            count
            for path, count in lines.items()
            if path.parts[0] in rooms and not set(without) & {path.stem, *path.parts[1:-1]}
        )

    return {
        "all source lines": sum(lines.values()),
        "search: loop, executors and analysis": total((*LOOP, "execution", "analysis")),
        "search: loop and executors": total((*LOOP, "execution"), ANALYSIS),
        "search: loop": total(LOOP, (*ANALYSIS, "executor", "ray_executor")),
        "`metric/` without the algebra": total(("metric",), ALGEBRA),
        "the largest module": max(lines.values()),
        "the most parameters of a function": max(parameters.values()),
    }


def compare_prune(given: argparse.Namespace, report: dict[str, Any]) -> None:
    """Run every method with both versions in turn; keeps finished runs."""
    if given.calibration is None:
        raise SystemExit("--calibration is missing: give WikiText-2 validation, raw")
    sources = {"old": checkout(given.old, given.folder) / "src", "new": ROOT / "src"}
    runs: list[dict[str, Any]] = report.setdefault("prune", [])
    report["prune_machine"] = machine() | {"windows": [given.windows, 1024], "beside": given.beside}
    for round_ in range(given.rounds):
        for method in given.methods:
            # Old and new alternate as the first, so that neither always meets the colder disk.
            versions = list(sources) if round_ % 2 == 0 else list(sources)[::-1]
            for version in versions:
                case = {"method": method, "version": version, "round": round_}
                if any(case.items() <= run.items() for run in runs):
                    continue
                runs.append(case | prune_once(method, sources[version], given))
                write(report)


def prune_once(method: str, source: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One process, from start to saved model: seconds and peak memory."""
    output, cache = given.folder / "out", given.folder / "cache"
    for folder in (output, cache):
        shutil.rmtree(folder, ignore_errors=True)
    command = ["env", f"PYTHONPATH={source}", sys.executable, "-m", "pruner_zero", "prune"]
    command += [given.model, "--metric", method]
    command += ["--sparsity", "0.5", "--calibration", str(Path(given.calibration).resolve())]
    command += ["--windows", str(given.windows), "--cache", str(cache), "-o", str(output)]
    code, seconds, peak = measure(command, given.folder / "log")
    if code:
        raise SystemExit((given.folder / "log").read_text())
    return {"seconds": round(seconds, 2), "peak_mib": round(peak / 2**20)}


def time_commands(given: argparse.Namespace, report: dict[str, Any]) -> None:
    """Time `make demo` and `make test`, each time in a fresh clone with a fresh environment."""
    runs: list[dict[str, Any]] = report.setdefault("commands", [])
    report["commands_machine"] = machine()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    for _ in range(given.rounds):
        clone = given.folder / "clone"
        shutil.rmtree(clone, ignore_errors=True)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        cache = {"PRUNER_ZERO_CACHE": str(given.folder / "clone-cache")}
        shutil.rmtree(given.folder / "clone-cache", ignore_errors=True)
        for target in given.targets:
            started = time.monotonic()
            with (given.folder / f"{target}.log").open("w") as log:
                subprocess.run(
                    ["make", target],
                    cwd=clone,
                    check=True,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**without_python_path(), **cache},
                )
            runs.append(
                {
                    "command": f"make {target}",
                    "commit": commit,
                    "seconds": time.monotonic() - started,
                }
            )
            write(report)


def without_python_path() -> dict[str, str]:
    """This environment without the variable that may select another version of the program."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def page(report: dict[str, Any]) -> str:
    """The page of the parts that are measured."""
    text = "# Before and after the redesign\n\nMade by `python benchmarks/versions.py`"
    text += " (`size`, `prune --calibration wiki.valid.raw`, `commands`).\n"
    if size := report.get("size"):
        rows = [
            [name, f"{count:,}", f"{size['new'][name]:,}"] for name, count in size["old"].items()
        ]
        table = markdown(("lines, unless said", "before", "after"), rows)
        text += f"\n## Size of the source\n\n{table}"
    if runs := report.get("prune"):
        text += prune_table(runs, report["prune_machine"])
    if runs := report.get("commands"):
        seconds: dict[str, list[float]] = {}
        for run in runs:
            seconds.setdefault(run["command"], []).append(run["seconds"])
        text += "\n## The two commands\n\nEach time from a fresh clone, `make demo` with the "
        text += "installation of its environment, on "
        text += f"{report['commands_machine']['cores']} cores.\n\n"
        rows = []
        for command, times in seconds.items():
            each = ", ".join(f"{time_:.0f}" for time_ in times)
            rows.append([f"`{command}`", each, f"{statistics.median(times):.0f}"])
        text += markdown(("command", "seconds, each time", "median"), rows)
    return text + "\n" + NOTES.read_text()


def prune_table(runs: list[dict[str, Any]], where: dict[str, Any]) -> str:
    """Seconds and peak memory of each method, and the medians of the ratios within a round."""
    count, length = where["windows"]
    text = "\n## `prune`, both versions in turn\n\n"
    text += f"SmolLM2-135M at 50 %, {count} windows of {length} tokens of WikiText-2 validation, "
    text += f"{where['threads']} threads, a process each, nothing cached. Medians over the rounds; "
    text += f"the ratio is the median of the ratios within a round.{where['beside']}\n\n"
    after = ["after", "ratio"]
    header = ["method", "rounds", "seconds before", *after, "MiB before", *after]
    rows = []
    for method in dict.fromkeys(run["method"] for run in runs):
        pairs = list(paired(runs, method))
        if not pairs:
            continue
        cells = [f"`{method}`", str(len(pairs))]
        for field, digits in (("seconds", 1), ("peak_mib", 0)):
            old = statistics.median(pair[0][field] for pair in pairs)
            new = statistics.median(pair[1][field] for pair in pairs)
            ratio = statistics.median(pair[1][field] / pair[0][field] for pair in pairs)
            cells += [f"{old:.{digits}f}", f"{new:.{digits}f}", f"{ratio:.2f}"]
        rows.append(cells)
    return text + markdown(header, rows)


def paired(
    runs: list[dict[str, Any]], method: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The old and the new run of each round that has both."""
    rounds: dict[int, dict[str, dict[str, Any]]] = {}
    for run in runs:
        if run["method"] == method:
            rounds.setdefault(run["round"], {})[run["version"]] = run
    for versions in rounds.values():
        if len(versions) == 2:
            yield versions["old"], versions["new"]


if __name__ == "__main__":
    main()
