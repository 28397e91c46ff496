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
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from pruner_zero.files import write_json
from pruner_zero.tensor_file import TensorFile, write_tensors
from tables import machine, markdown, results, script_parser, write_page

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Shape:
    """The sizes of a LLaMA model."""

    hidden: int
    intermediate: int
    blocks: int
    heads: int
    kv_heads: int
    vocabulary: int = 32000

    @property
    def name(self) -> str:
        """A name for folders and tables."""
        return f"llama-{self.hidden}x{self.intermediate}x{self.blocks}"

    def config(self) -> LlamaConfig:
        """The configuration of a model with this shape."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=4096,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=False,
            dtype="bfloat16",
            architectures=["LlamaForCausalLM"],
        )


def make_checkpoint(shape: Shape, folder: Path, seed: int = 0) -> Path:
    """Write a random model of `shape` with a tokenizer to `folder`, unless it is there already."""
    if (folder / INDEX).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    shape.config().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        described = AutoModelForCausalLM.from_config(shape.config())
    parts: dict[str, dict[str, torch.Size]] = defaultdict(dict)
    for name, parameter in described.named_parameters():
        part = name.split(".")[2] if ".layers." in name else ""
        parts[part][name] = parameter.shape
    weight_map: dict[str, str] = {}
    total = 0
    for number, shapes in enumerate(parts.values(), 1):
        file = folder / f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = {name: _weight(size, generator) for name, size in shapes.items()}
        write_tensors(file, tensors, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file.name)
        total += TensorFile(file).nbytes
    # Written last, so that a folder with an index is complete.
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes: it encodes any text, and needs no download."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(["<s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def _weight(size: torch.Size, generator: torch.Generator) -> Tensor:
    """A norm of ones, or a matrix drawn like LLaMA's initialisation."""
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    return torch.empty(size, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)


SMALL = {"hidden": 1024, "intermediate": 2816, "heads": 16, "kv_heads": 16}
ONE_BILLION = Shape(2048, 5632, 22, 32, 4)
SEVEN_BILLION = Shape(4096, 11008, 32, 32, 32)
SHAPES = {"small": Shape(**SMALL, blocks=4), "1B": ONE_BILLION, "7B": SEVEN_BILLION}
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
    parser = script_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/memory"))
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--depths", type=int, nargs="*", default=[4, 8, 16])
    parser.add_argument("--shapes", nargs="*", default=["small", "1B"], choices=list(SHAPES))
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("-o", "--output", type=Path, default=results("memory.json"))
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
            write_page("memory", page(report))
        if shape.blocks not in arguments.depths and method == arguments.methods[-1]:
            shutil.rmtree(arguments.folder / shape.name, ignore_errors=True)
    write_page("memory", page(report))


def page(report: dict[str, Any]) -> str:
    """The page of all runs."""
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
    ]
    rows = []
    for run in report["results"]:
        cells = [
            *(run[name] for name in ("shape", "blocks", "checkpoint_mib", "tokens")),
            f"`{run['method']}`",
            "offloaded" if run["offload"] else "in memory",
            run["error"] if run["exit"] else run["peak_mib"],
            f"{run['seconds']:.0f}",
        ]
        rows.append([str(cell) for cell in cells])
    header = ["shape", "blocks", "checkpoint, MiB", "tokens", "method", "", "peak, MiB", "s"]
    return "\n".join([*lines, markdown(header, rows)])


if __name__ == "__main__":
    main()
