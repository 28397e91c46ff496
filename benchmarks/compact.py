"""Whether a compact file of a pruned model pays: bytes, and seconds to write and to read.

    python benchmarks/compact.py

The matrices have the built-in model's shapes, in bf16, and are pruned by magnitude per row to 50 %
and to 2:4. Their weights are the model's own or random normal numbers: the model's own come from
four bits, so they compress better. *bitmask* stores a bit for each weight, and the kept weights.
*2:4* stores the two kept weights of each four, and two bits for the place of each. *dense* is the
plain file; zstd and gzip compress a file, and their seconds include those of the file inside. Each
file is written and read --times times, in turns; the fastest time counts.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruner_zero.files import write_json
from pruner_zero.models import find_matrices, load_model
from pruner_zero.sparsity import Pattern, SemiStructured, Unstructured, keep_mask
from pruner_zero.tensor_file import TensorFile, write_tensors
from tables import machine

HERE = Path(__file__).parent
Tensors = dict[str, Tensor]
Pack = Callable[[Tensor], tuple[Tensor, Tensor]]
Unpack = Callable[[Tensor, Tensor, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Form:
    """A file format: how tensors are written, and how they are read back."""

    name: str
    write: Callable[[Path, Tensors], object]
    read: Callable[[Path], Tensors]


def pack(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of a bf16 `tensor` that are not 0.0, in order, and a bitmask of their places."""
    numbers = tensor.contiguous().flatten().view(torch.int16)
    # Compared as integers: −0.0 is kept, so that the file restores every bit.
    kept = numbers != 0
    bits = torch.from_numpy(np.packbits(kept.numpy(), bitorder="little"))
    return numbers[kept].view(tensor.dtype), bits


def unpack(values: Tensor, bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor that `pack` was given."""
    whole = torch.zeros(shape, dtype=values.dtype)
    kept = np.unpackbits(bits.numpy(), count=whole.numel(), bitorder="little")
    return whole.view(-1).masked_scatter_(torch.from_numpy(kept).bool(), values).view(shape)


def read_dense(path: Path) -> Tensors:
    """All tensors of a plain file."""
    file = TensorFile(path)
    return {name: file.read(name) for name in file}


def pack_semi(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The two kept numbers of each four of a 2:4 `tensor`, and their places, four to a byte."""
    groups = tensor.reshape(-1, 4)
    places = (groups != 0).to(torch.uint8).topk(2, dim=1).indices.sort(dim=1).values
    two = places.to(torch.uint8).view(-1, 4)
    bits = two[:, 0] | two[:, 1] << 2 | two[:, 2] << 4 | two[:, 3] << 6
    return groups.gather(1, places), bits


def unpack_semi(values: Tensor, bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor that `pack_semi` was given."""
    places = torch.stack([bits >> shift & 3 for shift in (0, 2, 4, 6)], dim=1).view(-1, 2)
    whole = torch.zeros(2 * len(values), 2, dtype=values.dtype).view(-1, 4)
    return whole.scatter_(1, places.long(), values).view(shape)


def write_packed(pack: Pack, path: Path, tensors: Tensors) -> None:
    """Write every tensor packed, with its shape in its name."""
    parts = {}
    for name, tensor in tensors.items():
        parts[f"{name}|v|{json.dumps(tensor.shape)}"], parts[f"{name}|b"] = pack(tensor)
    write_tensors(path, parts)


def read_packed(unpack: Unpack, path: Path) -> Tensors:
    """The tensors that `write_packed` was given."""
    file, tensors = TensorFile(path), {}
    for key in file:
        name, kind, *shape = key.split("|")
        if kind == "v":
            values, bits = file.read(key), file.read(f"{name}|b")
            tensors[name] = unpack(values, bits, tuple(json.loads(shape[0])))
    return tensors


def through(inner: Form, *command: str) -> Form:
    """`inner`, its file compressed by a command that writes to stdout."""

    def write(path: Path, tensors: Tensors) -> None:
        plain = path.with_suffix(".plain")
        inner.write(plain, tensors)
        with open(path, "wb") as out:
            subprocess.run([*command, "-c", str(plain)], stdout=out, check=True)
        plain.unlink()

    def read(path: Path) -> Tensors:
        plain = path.with_suffix(".plain")
        with open(path, "rb") as given, open(plain, "wb") as out:
            subprocess.run([command[0], "-dc"], stdin=given, stdout=out, check=True)
        tensors = inner.read(plain)
        plain.unlink()
        return tensors

    return Form(f"{inner.name}, {' '.join(command)}", write, read)


DENSE = Form("dense", write_tensors, read_dense)
BITMASK = Form("bitmask", partial(write_packed, pack), partial(read_packed, unpack))
SEMI = Form("2:4", partial(write_packed, pack_semi), partial(read_packed, unpack_semi))
ZSTD, GZIP = ("zstd", "-q", "-3"), ("gzip", "-6")


def pruned(weights: str, pattern: str) -> Tensors:
    """The prunable matrices of the built-in model, in bf16, magnitude-pruned."""
    generator = torch.Generator().manual_seed(0)
    zeros: Pattern = Unstructured(0.5)
    if ":" in pattern:
        zeros = SemiStructured.parse(pattern)
    tensors = {}
    for matrix in find_matrices(load_model("builtin:smollm2-135m", "bfloat16").model):
        dense = matrix.weight
        if weights == "normal":
            dense = (0.02 * torch.randn(dense.shape, generator=generator)).bfloat16()
        keep = keep_mask(dense.float().abs(), zeros, matrix.name)
        tensors[matrix.name] = torch.where(keep, dense, 0)
    return tensors


def measure(forms: list[Form], tensors: Tensors, times: int) -> list[dict[str, Any]]:
    """Bytes and the fastest seconds of each form; asserts that reading restores every bit."""
    rows: list[dict[str, Any]] = [{"form": form.name, "write": [], "read": []} for form in forms]
    with TemporaryDirectory() as place:
        for _ in range(times):
            for form, row in zip(forms, rows, strict=True):
                path = Path(place) / "file"
                start = time.monotonic()
                form.write(path, tensors)
                written = time.monotonic()
                restored = form.read(path)
                row["read"].append(time.monotonic() - written)
                row["write"].append(written - start)
                row["bytes"] = path.stat().st_size
                assert all(torch.equal(restored[name], given) for name, given in tensors.items())
    for row in rows:
        row |= {name: round(min(row[name]), 3) for name in ("write", "read")}
    return rows


def main() -> None:
    """Measure, write the result file and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "compact.json")
    arguments = parser.parse_args()
    results = []
    for weights in ("own", "normal"):
        for pattern in ("50%", "2:4"):
            forms = [DENSE, BITMASK, *([SEMI] if pattern == "2:4" else [])]
            forms += [through(DENSE, *ZSTD), through(BITMASK, *ZSTD)]
            # gzip is slow, so it compresses one pattern only.
            forms += [through(DENSE, *GZIP)] if pattern == "50%" else []
            rows = measure(forms, pruned(weights, pattern), arguments.times)
            results += [{"weights": weights, "pattern": pattern, **row} for row in rows]
            print(json.dumps(results[-len(rows) :]), flush=True)
    where = machine() | {
        "load": [round(average, 1) for average in os.getloadavg()],
        "python": platform.python_version(),
        "zstd": subprocess.run(["zstd", "-V"], capture_output=True, text=True).stdout.strip(),
    }
    report = {"machine": where, "times": arguments.times, "results": results}
    write_json(arguments.output, report)
    write_page(report)


def write_page(report: dict[str, Any]) -> None:
    """Write compact.md."""
    where = report["machine"]
    lines = [
        "# Compact files",
        "",
        "Made by `python benchmarks/compact.py`: the 210 prunable matrices of the built-in model's"
        " shape in bf16, pruned by magnitude per row or to 2:4; *own* weights (which came from four"
        " bits, as compression sees) and random *normal* ones. Seconds are the fastest of"
        f" {report['times']} turns, threads: {where['threads']}, beside other work (load"
        f" {where['load'][0]}). [Result file](results/compact.json).",
        "",
        "A format of its own does not pay: zstd makes the dense file smaller than a bitmask or"
        " packed 2:4 does, whatever reads the dense file needs nothing new, and at 50 % it"
        " takes less time to read than the bitmask. Both together save a few percent more.",
        "",
        "| weights | pattern | file | MiB | of dense | write, s | read, s |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    dense: dict[tuple[str, str], int] = {}
    for row in report["results"]:
        key = row["weights"], row["pattern"]
        whole = dense.setdefault(key, row["bytes"])
        lines.append(
            f"| {row['weights']} | {row['pattern']} | {row['form']} | {row['bytes'] / 2**20:.1f} |"
            f" {row['bytes'] / whole:.1%} | {row['write']:.2f} | {row['read']:.2f} |"
        )
    (HERE / "compact.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
