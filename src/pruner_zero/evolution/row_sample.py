"""Sampled rows of every matrix, to judge a metric without running the model."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch
from torch import Tensor

from pruner_zero.calibration.pilot import pilot_cut
from pruner_zero.choices import Group
from pruner_zero.metric.expression import Expression
from pruner_zero.pruning.masks import choose_masks, reached_score
from pruner_zero.sparsity.layer_error import TINY, output_sensitivity, pruning_cost, row_errors
from pruner_zero.sparsity.least_squares import keep_columns
from pruner_zero.sparsity.pattern import Lazy, Pattern, groups
from pruner_zero.sparsity.update import Layer

# Rows of a matrix for which the steps after the mask are carried out, to estimate what it costs.
_UPDATED_ROWS = 16


@dataclass(frozen=True)
class SampledMatrix:
    """Some rows of one matrix with its statistics, fp32, and what pruning them costs.

    Or a stack of n matrices of one shape, where every tensor has a first dimension of size n.

    weight: (rows, in) signed. terminals: W, G, S (rows, in), X, D (1, in), O (rows, 1), those
    collected.
    gram: (in, in), shared between matrices with the same input; in bfloat16 the layer errors
    are computed in it. norms: (rows,), `w C wᵀ`.
    sensitivity: (rows,), see `output_sensitivity`; None where neither G nor O was collected.
    share: how many rows of the matrix each sampled row stands for. scale: (), the factor of the
    closed form by which the pilot mask of P costs what was measured; 1 without P. layer: these
    rows as the step `step` after the mask finds them; None where none follows, in a stack, and
    where calibration never reached the matrix.
    """

    name: str
    block: int
    weight: Tensor
    terminals: dict[str, Tensor]
    gram: Tensor
    norms: Tensor
    sensitivity: Tensor | None
    share: float
    scale: Tensor
    layer: Layer | None = None

    def cost(self, mask: Tensor) -> Tensor:
        """What pruning by `mask` (rows, in) costs, after the step where one follows.

        Least squares are solved for 16 of the rows, which stand for the others.
        """
        if self.layer is None:
            errors = row_errors(self.weight.masked_fill(mask, 0), self.gram)
            return self.scale * pruning_cost(errors, self.norms, self.sensitivity, self.share)
        index = spread(len(mask), _UPDATED_ROWS).to(mask.device)
        weight = self.weight[index]
        layer = replace(self.layer, dense=weight, mask=mask[index])
        updated = keep_columns(layer)
        errors = row_errors(weight - updated.weight.masked_fill(~updated.mask, 0), self.gram)
        sensitivity = None if self.sensitivity is None else self.sensitivity[index]
        share = self.share * len(mask) / len(index)
        return self.scale * pruning_cost(errors, self.norms[index], sensitivity, share)


def spread(total: int, count: int) -> Tensor:
    """The indices of at most `count` of `total` things, evenly spread."""
    return torch.linspace(0, total - 1, min(count, total)).round().long()


def sample_matrix(
    name: str, block: int, dense: Tensor, statistics: dict[str, Tensor], gram: Tensor, rows: int
) -> SampledMatrix:
    """`rows` evenly spread rows of a dense (out, in) matrix of a block, with its terminals."""
    outputs = dense.shape[0]
    index = spread(outputs, rows).to(dense.device)
    weight = dense[index].float()
    terminals = {"W": weight.abs(), "S": weight}
    for terminal, value in statistics.items():
        terminals[terminal] = value[index].contiguous() if value.shape[0] > 1 else value
    sensitivity = None
    if "G" in terminals:
        sensitivity = output_sensitivity(terminals["G"], gram)
    elif "O" in terminals:
        # O measures what `output_sensitivity` estimates from G; the half is that of gram = 2XᵀX.
        sensitivity = terminals["O"].square().squeeze(1) / 2
    norms = row_errors(weight, gram)
    share, one = outputs / len(index), weight.new_ones(())
    matrix = SampledMatrix(name, block, weight, terminals, gram, norms, sensitivity, share, one)
    if "P" not in terminals:
        return matrix
    wanda = weight.abs() * terminals["X"]
    estimate = matrix.cost(wanda > pilot_cut(wanda))
    price = terminals["P"].squeeze() * dense.numel()
    return replace(matrix, scale=torch.where(estimate > 0, price / estimate, one))


def stack(sample: list[SampledMatrix]) -> list[SampledMatrix]:
    """Matrices of one shape as one, so that a candidate takes few calls, however deep the model.

    Matrices that share a Gram matrix, such as `gate_proj` and `up_proj`, are in stacks of their
    own, which share the stack of Gram matrices. `sample` is emptied, so that the matrices of one
    stack alone are held twice. A matrix with a step after its mask stays alone, as does one that
    calibration never reached.
    """
    # Matrices of one stack are equal in shape, and beside equal ones at their input.
    stacks: dict[object, list[SampledMatrix]] = {}
    sharing: dict[int, list[SampledMatrix]] = {}
    for matrix in sample:
        sharing.setdefault(id(matrix.gram), []).append(matrix)
    for beside in sharing.values():
        shapes = tuple(matrix.weight.shape for matrix in beside)
        for index, matrix in enumerate(beside):
            read = [values.any() for name, values in matrix.terminals.items() if name not in "WS"]
            alone = matrix.layer is not None or not all(read)
            key = (index, shapes, matrix.weight.device, matrix.share)
            stacks.setdefault(matrix.name if alone else key, []).append(matrix)
    sharing.clear()
    sample.clear()
    grams: dict[tuple[int, ...], Tensor] = {}
    return [_joined(stacks.pop(key), grams) for key in list(stacks)]


def _joined(matrices: list[SampledMatrix], grams: dict[tuple[int, ...], Tensor]) -> SampledMatrix:
    """Matrices of one shape as a stack.

    grams: stacks of Gram matrices made so far, by the ids of the matrices in them.
    """
    first = matrices[0]
    if len(matrices) == 1:
        return first
    shared = tuple(id(matrix.gram) for matrix in matrices)
    if shared not in grams:
        grams[shared] = torch.stack([matrix.gram for matrix in matrices])
    weight = torch.stack([matrix.weight for matrix in matrices])
    terminals = {"W": weight.abs(), "S": weight}
    for name in first.terminals.keys() - terminals.keys():
        terminals[name] = torch.stack([matrix.terminals[name] for matrix in matrices])
    sensitivities = [matrix.sensitivity for matrix in matrices if matrix.sensitivity is not None]
    return replace(
        first,
        weight=weight,
        terminals=terminals,
        gram=grams[shared],
        norms=torch.stack([matrix.norms for matrix in matrices]),
        sensitivity=torch.stack(sensitivities) if sensitivities else None,
        scale=torch.stack([matrix.scale for matrix in matrices]),
    )


def candidate_masks(
    pattern: Pattern,
    blocks: Mapping[str, int],
    score: Callable[[str], Tensor | None],
    magnitudes: Callable[[str], Tensor],
) -> Iterator[Tensor]:
    """The masks (out, in), True = kept, of all matrices, in order.

    blocks: by the name of each matrix the number of its block. score: the scores of a matrix, None
    where calibration never reached it; such a matrix is scored by its `magnitudes`. Raises what
    `score` raises.
    """

    def checked(name: str) -> Tensor | None:
        return score(name) if name in blocks else None

    for names in groups(pattern, blocks):
        masks = choose_masks(pattern, names, Lazy(names.copy, checked), magnitudes)
        yield from (masks[name] for name in names)


def sampled_masks(
    sample: Sequence[SampledMatrix],
    expression: Expression,
    scope: Group,
    pattern: Pattern,
) -> list[Tensor]:
    """The masks of all sampled matrices, in their shapes, as if they were the whole model.

    Raises ScoreError where the expression cannot score one of them.
    """
    pattern = pattern.with_scope(scope)
    blocks: dict[str, int] = {}
    scores: dict[str, Tensor | None] = {}
    magnitudes: dict[str, Tensor] = {}
    counts = []
    for matrix in sample:
        whole = reached_score(expression, matrix.terminals)
        # A pattern that takes stacks masks all their rows as those of one matrix.
        rows = matrix.weight.flatten(0, -2).shape[0] if pattern.stacks else matrix.weight.shape[-2]
        parts = matrix.terminals["W"].flatten(0, -2).split(rows)
        ranked = [None] if whole is None else whole.flatten(0, -2).split(rows)
        for index, (part, score) in enumerate(zip(parts, ranked, strict=True)):
            name = f"{matrix.name} {index}" if index else matrix.name
            blocks[name], scores[name], magnitudes[name] = matrix.block, score, part
        counts.append(len(parts))
    masks = candidate_masks(pattern, blocks, scores.__getitem__, magnitudes.__getitem__)
    return [
        torch.cat(list(islice(masks, count))).view(matrix.weight.shape)
        for matrix, count in zip(sample, counts, strict=True)
    ]


def closed_form_error(sample: Sequence[SampledMatrix], masks: Sequence[Tensor]) -> float:
    """`ln Σ_m cost(m)`: what pruning costs, from the matrices alone; lower is better.

    The sum of `pruning_cost` over the sampled matrices, each in nats per token where its price is
    known. It ranks like the loss of the pruned model, within and across comparison groups
    (benchmarks/decisions.md, of masks alone).
    """
    pairs = zip(sample, masks, strict=True)
    # Read stack by stack, since they may be on several devices, and summed whatever the order.
    costs = (matrix.cost(mask).flatten().tolist() for matrix, mask in pairs)
    return math.log(max(math.fsum(chain.from_iterable(costs)), TINY))
