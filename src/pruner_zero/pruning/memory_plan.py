"""How much memory and disk an offloaded run needs, reckoned before any work."""

import os
import re
from collections import defaultdict
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from transformers.core_model_loading import WeightConverter

from pruner_zero.calibration import Kind
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import OffloadedModel, find_blocks, find_matrices
from pruner_zero.provenance import peak_rss_bytes
from pruner_zero.pruning.method import Order

FP32 = 4
MIB = 1 << 20

_UNITS = {"B": 1} | {
    f"{letter}{infix}B": base**power
    for power, letter in enumerate("KMGT", 1)
    for infix, base in (("", 1000), ("i", 1024))
}

# What a run takes beyond its tensors: the buffers of matrix products, tables of names, and
# what the allocator keeps. Found by measurement.
_OVERHEAD = 192 * MIB
_SLACK = 1.05


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model that decide how much memory it needs.

    block, outside: bytes of the weights of the largest block, doubled where they are stored
    in another layout, which is converted, and of all that is in none.
    matrix: elements of the largest matrix; matrices: of all in one block; width: its widest
    input; gram: elements of all XᵀX of one block; outputs: what all matrices of a block give
    for one token; hidden: what a block does; attention: values a token needs for each other
    one, 0 where attention never holds them. itemsize: bytes of one weight.
    """

    block: int
    outside: int
    matrix: int
    matrices: int
    width: int
    gram: int
    outputs: int
    hidden: int
    vocabulary: int
    attention: int
    depth: int
    itemsize: int
    weights: int


@dataclass(frozen=True)
class MemoryPlan:
    """What the run will take. peak: bytes of memory, reached in `step`; disk: bytes on disk.

    activations_on_disk: where what one block hands to the next is kept while pruning.
    """

    peak: int
    step: str
    disk: int
    activations_on_disk: bool

    def __str__(self) -> str:
        place = "on disk" if self.activations_on_disk else "in memory"
        return (
            f"--offload: up to {readable(self.peak)} of memory ({self.step}), "
            f"activations {place}, up to {readable(self.disk)} of disk"
        )


def parse_memory(text: str) -> int:
    """The bytes that `text` such as "6GiB" or "800MB" stands for. Raises PrunerZeroError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if not found or found[2].lower() not in units or not float(found[1]):
        raise PrunerZeroError(f"--memory is '{text}': write a size such as 6GiB or 800MB")
    return int(float(found[1]) * units[found[2].lower()])


def readable(size: int) -> str:
    """`size` bytes for people, rounded up, so that it can be given as --memory."""
    unit, name = (1 << 30, "GiB") if size >= 1 << 30 else (MIB, "MiB")
    tenths = -(-size * 10 // unit)
    return f"{tenths // 10}.{tenths % 10}{name}"


def resident_bytes() -> int:
    """The memory that this process takes now."""
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return peak_rss_bytes()


def sizes_of(offloaded: OffloadedModel) -> Sizes:
    """The sizes of a model whose weights are on disk."""
    model = offloaded.model
    blocks = find_blocks(model)
    of_block: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for matrix in find_matrices(model):
        of_block[matrix.block].append((matrix.weight.shape[0], matrix.weight.shape[1]))
    shapes = [shape for own in of_block.values() for shape in own]
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    inside = [sum(p.numel() * p.element_size() for p in block.parameters()) for block in blocks]
    vocabulary, hidden = model.get_input_embeddings().weight.shape
    converted = any(isinstance(one, WeightConverter) for one in model._weight_conversions)
    fused = model.config._attn_implementation in ("sdpa", "flash_attention_2", "flex_attention")
    return Sizes(
        block=max(inside) * (2 if converted else 1),
        outside=total - sum(inside),
        matrix=max(out * width for out, width in shapes),
        matrices=max(sum(out * width for out, width in own) for own in of_block.values()),
        width=max(width for _, width in shapes),
        gram=max(sum(width * width for _, width in own) for own in of_block.values()),
        outputs=max(sum(out for out, _ in own) for own in of_block.values()),
        hidden=hidden,
        vocabulary=vocabulary,
        attention=0 if fused else 3 * int(model.config.num_attention_heads),
        depth=len(blocks),
        itemsize=model.dtype.itemsize,
        weights=total,
    )


def plan_memory(
    sizes: Sizes,
    kinds: Collection[Kind],
    order: Order,
    windows: int,
    seqlen: int,
    *,
    base: int = 0,
    budget: int | None = None,
    solves: bool = False,
    swaps: bool = False,
    asymmetric: bool = False,
    allocation: Collection[Kind] = (),
) -> MemoryPlan:
    """The peak of an offloaded run, an upper bound in bytes, and where its activations go.

    kinds: the statistics of the method; base: what the process takes already. solves: weights
    are refined or solved for; swaps: both in turn; asymmetric: the dense model's activations are
    kept too. allocation: the dense model's statistics that decide how much of each matrix is
    pruned. With a budget that allows it, activations stay in memory. Raises PrunerZeroError
    naming the smallest budget that would do. Source: ours.
    """
    window = seqlen * sizes.hidden * sizes.itemsize
    all_windows = windows * window
    propagated = order == "sequential" and bool({"X", "gram"} & set(kinds))
    dense = set(allocation) | (set(kinds) if order == "one-shot" else set(kinds) & {"G"})
    steps = _steps(sizes, kinds, dense, order, seqlen)
    if allocation:
        known = sizes.gram + sizes.matrices * ("G" in dense) + 8 * sizes.matrix
        steps["allocation"] = sizes.block + FP32 * known
    if solves:
        # Residual, direction, product and the best so far, beside the factors of the rows.
        steps["pruning"] += 6 * FP32 * sizes.matrix
    if swaps:
        # The target and the best so far; scores, and both sides of every swap, sorted.
        steps["pruning"] += 10 * FP32 * sizes.matrix
    if asymmetric:
        steps["pruning"] += FP32 * (sizes.gram + sizes.matrix)

    def peak(on_disk: bool) -> tuple[int, str]:
        held = (3 if asymmetric else 2) * (window if on_disk else all_windows)
        needs = {
            step: size + (held if step == "pruning" and propagated else 2 * window)
            for step, size in steps.items()
        }
        step = max(needs, key=lambda name: needs[name])
        return base + _OVERHEAD + int(needs[step] * _SLACK), step

    smallest, step = peak(on_disk=True)
    if budget is not None and smallest > budget:
        raise PrunerZeroError(
            f"--memory {readable(budget)} is too small for {step}: "
            f"give at least --memory {readable(smallest)}, or fewer tokens by --seqlen"
        )
    in_memory, step_in_memory = peak(on_disk=False)
    on_disk = not propagated or budget is None or in_memory > budget
    disk = 2 * sizes.weights + 2 * all_windows * propagated
    if "G" in dense:
        disk += FP32 * sizes.matrices * sizes.depth + (sizes.depth + 3) * all_windows
    if {"X", "gram"} & dense:
        disk += FP32 * sizes.gram * sizes.depth * ("gram" in dense) + 2 * all_windows
    if on_disk:
        return MemoryPlan(smallest, step, disk, True)
    return MemoryPlan(in_memory, step_in_memory, disk, False)


def _steps(
    sizes: Sizes, kinds: Collection[Kind], dense: Collection[Kind], order: Order, seqlen: int
) -> dict[str, int]:
    """The bytes that each step takes beside activations between blocks.

    dense: the statistics that are collected on the dense model, before the first block.
    """
    attention = FP32 * sizes.attention * seqlen * seqlen
    # A window inside a block, and once more in fp32 where its statistics are taken.
    forward = seqlen * sizes.itemsize * (sizes.outputs + 8 * sizes.hidden) + attention
    observed = forward + 2 * FP32 * seqlen * sizes.width
    copies = 8 * FP32 * sizes.matrix
    steps = {
        "embeddings": sizes.block + sizes.outside + forward,
        "saving": sizes.outside,
    }
    grams, factors = 0, 0
    if "gram" in kinds:
        every = FP32 * sizes.gram
        grams = every if order == "sequential" else FP32 * sizes.width * sizes.width
        factors = 5 * FP32 * sizes.width * sizes.width
    gradient = FP32 * sizes.matrix if "G" in kinds else 0
    steps["pruning"] = sizes.block + grams + max(observed, copies + factors + gradient)
    if {"X", "gram"} & set(dense):
        steps["activations"] = sizes.block + observed + FP32 * sizes.gram * ("gram" in dense)
    if "G" in dense:
        # Logits in the model's dtype and fp32, their softmax, and the gradients of all.
        steps["the loss"] = sizes.outside + seqlen * sizes.vocabulary * (
            3 * FP32 + 2 * sizes.itemsize
        )
        graph = seqlen * sizes.itemsize * (3 * sizes.outputs + 16 * sizes.hidden) + attention
        folding = (sizes.itemsize + FP32) * sizes.matrix
        steps["gradients"] = sizes.block + FP32 * sizes.matrices + graph + folding
    return steps
