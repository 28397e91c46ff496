"""Exact changes of a block before its masks: axes and an order in which N:M keeps the most.

What the block computes stays the same but for rounding; its weights become others.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruner_zero.calibration.walk import Stream
from pruner_zero.choices import Structure
from pruner_zero.devices import where_float64_is
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_calls import run_windows
from pruner_zero.models.couplings import Coupling, find_couplings
from pruner_zero.models.matrices import Matrix
from pruner_zero.progress import note
from pruner_zero.sparsity.selection import SemiStructured
from pruner_zero.structure.units import signed_squares

# So many groups exchange columns with each other; with all of them wide matrices take minutes.
_TOGETHER = 128
_ROUNDS = 2
# Rows whose gains are computed at once.
_ROWS = 64
# The smallest eigenvalue that divides, as a share of the largest.
_SMALLEST = 1e-8
_KINDS: tuple[Structure, ...] = ("heads", "channels")


def find_movable(model: PreTrainedModel, matrices: Sequence[Matrix]) -> dict[int, list[Coupling]]:
    """By block, its heads and channels whose linear maps are all among `matrices`."""
    names, by_block = {matrix.name for matrix in matrices}, defaultdict[int, list[Coupling]](list)
    for kind in _KINDS:
        try:
            couplings = find_couplings(model, kind)
        except PrunerZeroError:
            note(f"{kind} keep their order: they cannot move by themselves in this family")
            continue
        for coupling in couplings:
            if names.issuperset((*coupling.producers, coupling.consumer)):
                by_block[coupling.block].append(coupling)
    return by_block


@torch.no_grad()
def permute_block(
    model: nn.Module,
    couplings: Sequence[Coupling],
    block: nn.Module,
    stream: Stream,
    pattern: SemiStructured,
    matrices: Mapping[str, Matrix],
    score: Callable[[Matrix], Tensor | None],
) -> dict[str, Tensor]:
    """Change a loaded block in place so that `pattern` keeps more; its changed tensors by name.

    couplings: of this block, as from `find_movable`. stream: before the block. score: the scores
    (out, in) of a matrix of the block as it is when called, None for one that is never reached.
    A change that shows in the outputs of the block is taken back. Raises PrunerZeroError, naming
    the matrix, for scores that are not finite.
    Source: the order of channels by exchanges, Pool and Yu 2021 ("Channel Permutations for N:M
    Sparsity", NeurIPS), dealt and assigned as in RIA (Zhang et al. 2024, ICLR); values in the
    singular axes of V and O, CLOVER (2411.17426). Axes that are dealt inside each head are ours.
    """
    changed: dict[str, Tensor] = {}
    for coupling in couplings:
        tensors = {name: parameter.data for name, parameter, _ in coupling.tensors(model)}
        changed |= tensors
        consumer, index = matrices[coupling.consumer], coupling.block
        *producers, last = map(model.get_submodule, (*coupling.producers, coupling.consumer))
        with _exactly(block, index, stream, coupling.structure, list(tensors.values())):
            parts, moved = 1, producers
            if coupling.structure == "heads":
                parts, moved = coupling.count, producers[-1:]
                gram = stream.collect(block, index, [consumer], {"gram"})[consumer.name]["gram"]
                turn_values(moved[0], last, parts, gram)
            scores = score(consumer)
            if scores is not None:
                squares = torch.cat(list(signed_squares(scores, consumer.name)))
                # Of a size that float32 holds.
                squares /= squares.abs().max().clamp_min(torch.finfo(squares.dtype).tiny)
                _reorder(moved, last, parts, squares.float(), pattern)
    return changed


def turn_values(values: nn.Module, output: nn.Module, count: int, gram: Tensor) -> None:
    """Turn the values of `count` key-value heads into axes of which each matters by itself.

    values, output: the linear maps V and O, changed in place. gram: XᵀX of the inputs of O,
    (in, in). In the new axes these inputs are uncorrelated in each key-value head, and the
    columns of O orthogonal, both over all query heads that share it.
    """
    weight = where_float64_is(output.get_parameter("weight").data).double()
    width = values.get_parameter("weight").shape[0] // count
    columns = weight.unflatten(1, (count, -1, width))
    squares = where_float64_is(gram).double().to(weight.device)
    blocks = squares.unflatten(0, (count, -1, width)).unflatten(3, (count, -1, width))
    for head in range(count):
        inputs = sum(blocks[head, q, :, head, q] for q in range(columns.shape[2]))
        outputs = torch.einsum("oqi,oqj->ij", columns[:, head], columns[:, head])
        assert isinstance(inputs, Tensor)
        if not inputs.any() or not outputs.any():
            continue
        axes, inverse = singular_axes(inputs, outputs)
        columns[:, head] = columns[:, head] @ axes
        for parameter in values.parameters():
            rows = parameter.data[head * width : (head + 1) * width]
            rows.copy_(inverse.to(rows.device) @ rows.to(inverse))
    output.get_parameter("weight").data.copy_(columns.flatten(1))


def singular_axes(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """The axes T in which both forms are diagonal and equal, and their inverse, fp64.

    inputs: the second moments C (n, n) of the values z. outputs: OᵀO (n, n). In z' = T⁻¹z and
    O' = OT, T⁻¹CT⁻ᵀ = TᵀOᵀOT, the singular values of OC^½. Directions that hardly occur count as
    rare ones, so that T has an inverse.
    """
    values, vectors = torch.linalg.eigh(inputs)
    values = values.clamp_min(_SMALLEST * values.max())
    root = vectors * values.sqrt() @ vectors.T
    squares, turns = torch.linalg.eigh(root @ outputs @ root)
    quarter = squares.clamp_min(_SMALLEST * squares.max()) ** 0.25
    inverse_root = vectors / values.sqrt() @ vectors.T
    return root @ turns / quarter, quarter[:, None] * (turns.T @ inverse_root)


def column_order(scores: Tensor, zeros: int, size: int) -> Tensor:
    """The order of columns in which groups of `size` neighbours keep the most.

    scores: (rows, columns), finite, of which each row of a group loses the `zeros` lowest.
    Columns are dealt to the groups by their sums; then, place after place, the columns there are
    assigned anew to the groups, among up to 128 of them, by what each adds to each. The order as
    it is where that keeps more.
    """
    count = scores.shape[1] // size
    deal = scores.sum(0).argsort(descending=True, stable=True).view(size, count)
    groups = torch.where(torch.arange(size)[:, None].to(deal) % 2 == 0, deal, deal.flip(1)).T
    parts = -(-count // _TOGETHER)
    for part in range(parts):
        chosen = groups[part::parts].clone()
        for place in [*range(size)] * (_ROUNDS if len(chosen) > 1 else 0):
            others = torch.cat([chosen[:, :place], chosen[:, place + 1 :]], 1)
            gains = _gains(scores, others, chosen[:, place], size - zeros)
            _, best = linear_sum_assignment(gains.cpu().numpy(), maximize=True)
            chosen[:, place] = chosen[torch.as_tensor(best, device=chosen.device), place]
        groups[part::parts] = chosen
    order = groups.flatten()
    before, after = (kept_by(each, zeros, size) for each in (scores, scores[:, order]))
    return order if after > before else torch.arange(len(order), device=order.device)


def kept_by(scores: Tensor, zeros: int, size: int) -> float:
    """The sum of the scores (rows, columns) that stay where groups lose their lowest."""
    kept = scores.unflatten(1, (-1, size)).topk(size - zeros, -1).values
    return float(kept.sum(dtype=torch.float64 if kept.device.type == "cpu" else None))


def _gains(scores: Tensor, others: Tensor, columns: Tensor, kept: int) -> Tensor:
    """What each of the `columns` adds to each group of `others`: (groups, columns)."""
    gains = scores.new_zeros(len(others), len(columns))
    for rows in scores.split(_ROWS):
        # A column adds what it has above the lowest score that a group keeps without it.
        least = rows[:, others].topk(kept, -1).values[..., -1:]
        gains += (rows[:, None, columns] - least).clamp_min(0).sum(0)
    return gains


def _reorder(
    producers: Sequence[nn.Module],
    consumer: nn.Module,
    parts: int,
    scores: Tensor,
    pattern: SemiStructured,
) -> None:
    """Bring the columns of `consumer` into an order inside each of `parts` equal parts.

    producers: their rows move along. Where they have fewer rows, several columns share one, as
    query heads share a value, and keep one order.
    """
    width = producers[0].get_parameter("weight").shape[0] // parts
    if width % pattern.m:
        return
    # (out, parts, heads that share the values, width)
    grouped = scores.unflatten(1, (parts, -1, width))
    orders = [
        column_order(grouped[:, part].flatten(0, 1), pattern.n, pattern.m) for part in range(parts)
    ]
    rows = torch.stack(orders) + width * torch.arange(parts, device=scores.device)[:, None]
    for producer in producers:
        for parameter in producer.parameters():
            parameter.data.copy_(parameter.data[rows.flatten().to(parameter.device)])
    weight = consumer.get_parameter("weight").data
    columns = weight.unflatten(1, (parts, -1, width))
    for part, order in enumerate(orders):
        columns[:, part] = columns[:, part][..., order.to(weight.device)]


@contextmanager
def _exactly(
    block: nn.Module, index: int, stream: Stream, kind: Structure, tensors: Sequence[Tensor]
) -> Iterator[None]:
    """Take back changes of `tensors` that show in the outputs of the block."""

    def output() -> Tensor:
        (result,) = run_windows(block, [stream.hidden[0]], stream.arguments[index][:1])
        return result.float()

    saved, before = [tensor.clone() for tensor in tensors], output()
    yield
    added = (before - stream.hidden[0].to(before)).norm()
    if not (output() - before).norm() <= torch.finfo(tensors[0].dtype).eps ** 0.5 * added:
        note(f"{kind} of block {index} stay as they were: their order shows in its outputs")
        for tensor, values in zip(tensors, saved, strict=True):
            tensor.copy_(values)
