"""SparseGPT: prune column by column and let the kept weights make up for each loss."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.pattern import (
    Pattern,
    SemiStructured,
    Unstructured,
    check_width,
    pruned_count,
)
from pruner_zero.sparsity.selection import BLOCK_COLUMNS, keep_highest, keep_n_of_m

# (weight (out, in) as swept so far, the columns whose mask is due) → their scores.
Scorer = Callable[[Tensor, slice], Tensor]

# Columns updated one after the other before the rest of the block takes a matrix product.
_PANEL_COLUMNS = 16


@dataclass(frozen=True)
class SparseGPTResult:
    """The pruned `weight` (out, in) float32, its `mask` (True is kept), the `damping` used."""

    weight: Tensor
    mask: Tensor
    damping: float


def sparsegpt(
    weight: Tensor,
    gram: Tensor,
    pattern: Pattern,
    *,
    mask: Tensor | None = None,
    scorer: Scorer | None = None,
    block_size: int = BLOCK_COLUMNS,
    damping: float = 0.01,
    name: str = "matrix",
) -> SparseGPTResult:
    """Prune one matrix and spread each removed weight's error over the columns to its right.

    `weight` (out, in), `gram` (in, in) = XᵀX or any positive multiple; float32 inside.
    Without `mask`, weights with the lowest |W| / U_jj (whose square is the paper's score) go:
    scope `block`, floor(rows · columns · sparsity) of each `block_size` columns at its start;
    scope `row`, per row inside the block, counts rounded so that each row ends with
    floor(in · sparsity) zeros; N:M, per group at its first column, blocks being shortened to
    whole groups. With `mask` (out, in) bool, that mask is kept and `pattern` decides nothing.
    Channels that were never active (zero diagonal) get zero weights. Pruned weights are 0.0.
    Raises PrunerZeroError for non-finite weights, scores or gram, for scopes that look beyond a
    block when no mask is given, and when no damping up to 1 makes the gram positive definite.
    Source: Frantar & Alistarh 2023 (2301.00774), algorithm 1.
    """
    rows, columns = weight.shape
    if mask is not None and mask.shape != weight.shape:
        raise ValueError(f"mask of {name} is {tuple(mask.shape)}, its weight {rows, columns}")
    if not weight.isfinite().all():
        raise PrunerZeroError(f"weights of {name} are not finite: exclude the matrix")
    chosen = pattern if mask is None else None
    width, panel = max(1, block_size), _PANEL_COLUMNS
    if isinstance(chosen, SemiStructured):
        check_width(columns, chosen, name)
        panel = chosen.m
        width = max(panel, width // panel * panel)
    elif chosen is not None and chosen.scope not in ("row", "block"):
        raise PrunerZeroError(
            f"scope '{chosen.scope}' looks beyond SparseGPT's blocks: "
            "set scope to block or row, or give a mask"
        )

    U, damping = inverse_cholesky(gram, damping, name=name)
    scale = U.diagonal()[:, None]
    # Transposed, a column is contiguous and an update is one pass over memory.
    W = weight.detach().float().t().clone(memory_format=torch.contiguous_format)
    W[gram.diagonal() == 0] = 0.0
    kept = torch.empty(W.shape, dtype=torch.bool, device=W.device)
    if mask is not None:
        kept.copy_(mask.t())
    errors = torch.empty(min(width, columns), rows, dtype=W.dtype, device=W.device)

    def saliency(due: slice) -> Tensor:
        """Of the columns that are due, (columns, rows)."""
        if scorer is None:
            return W[due].abs() / scale[due]
        scores = scorer(W.t(), due).float()
        if not scores.isfinite().all():
            raise PrunerZeroError(
                f"scores of {name} are not finite: choose another metric or exclude the matrix"
            )
        return scores.t()

    for start in range(0, columns, width):
        stop = min(start + width, columns)
        block = slice(start, stop)
        if isinstance(chosen, Unstructured):
            kept[block] = _keep_of_block(saliency(block), chosen, start)
        for left in range(start, stop, panel):
            right = min(left + panel, stop)
            group = slice(left, right)
            W[group].addmm_(U[start:left, group].t(), errors[: left - start], alpha=-1)
            if isinstance(chosen, SemiStructured):
                kept[group] = keep_n_of_m(saliency(group).t(), chosen.n, chosen.m).t()
            for j in range(left, right):
                error = errors[j - start]
                torch.div(W[j], U[j, j], out=error)
                error.masked_fill_(kept[j], 0.0)
                W[j + 1 : right].addr_(U[j, j + 1 : right], error, alpha=-1)
        W[stop:].addmm_(U[block, stop:].t(), errors[: stop - start], alpha=-1)

    W.masked_fill_(~kept, 0.0)
    return SparseGPTResult(W.t().contiguous(), kept.t().contiguous(), damping)


def _keep_of_block(saliency: Tensor, pattern: Unstructured, start: int) -> Tensor:
    """The mask (columns, rows) of a block that starts at column `start`, shaped as `saliency`."""
    columns, rows = saliency.shape
    if pattern.scope == "block":
        pruned = pruned_count(rows * columns, pattern.sparsity)
        return keep_highest(saliency.t().reshape(1, -1), pruned).view(rows, columns).t()
    before = pruned_count(start, pattern.sparsity)
    pruned = pruned_count(start + columns, pattern.sparsity) - before
    return keep_highest(saliency.t().contiguous(), pruned).t()


def retarget(
    weight: Tensor,
    gram: Tensor,
    cross: Tensor,
    damping: float = 0.01,
    *,
    name: str = "matrix",
) -> tuple[Tensor, float]:
    """The dense weights that, on the pruned model's inputs, come closest to the dense outputs.

    `weight` (out, in), `gram` (in, in) = XᵀX of the inputs that the pruned model sees, `cross`
    (in, in) = X_denseᵀ·X, the same multiple; float32 (out, in) and the damping used. It
    minimises |W·X_denseᵀ − W'·Xᵀ|² + λ·|W' − W|², λ = damping · mean(diagonal); to sweep it
    against `gram` is to sweep `weight` towards the dense outputs. Channels that were never
    active get zero weights. Raises what `inverse_cholesky` raises, and where `weight` or `cross`
    is not finite.
    Source: the normal equations; the target of sequential calibration is ours.
    """
    check_operands(weight, gram, name, cross=cross)
    U, damping = inverse_cholesky(gram, damping, name=name)
    W = weight.detach().float()
    drift = W @ (cross.float() - gram.float())
    return (W + drift @ U.t() @ U).masked_fill(gram.diagonal() == 0, 0.0), damping


def held_damping(gram: Tensor, damping: float = 0.01, *, name: str = "matrix") -> float:
    """The damping that `inverse_cholesky` ends up with. Raises what it raises."""
    return _backward_factor(gram, damping, name)[1]


def add_damping(gram: Tensor, damping: float) -> Tensor:
    """H (in, in) float32: `gram` damped as `inverse_cholesky` does.

    Source: Frantar & Alistarh 2023 (2301.00774), section 3.
    """
    H = gram.detach().float().clone()
    diagonal = gram.diagonal().float()
    H.diagonal().add_(damping * diagonal.mean()).add_(diagonal == 0)
    return H


def check_operands(
    weight: Tensor,
    gram: Tensor,
    name: str,
    *,
    mask: Tensor | None = None,
    cross: Tensor | None = None,
) -> None:
    """Raise PrunerZeroError naming `name` where a number is not finite; ValueError for shapes."""
    if mask is not None and mask.shape != weight.shape:
        raise ValueError(f"mask of {name} is {tuple(mask.shape)}, its weight {tuple(weight.shape)}")
    if not weight.isfinite().all():
        raise PrunerZeroError(f"weights of {name} are not finite: exclude the matrix")
    for product, shown in ((gram, "XᵀX"), (cross, "X_denseᵀX")):
        if product is not None and not product.isfinite().all():
            raise PrunerZeroError(
                f"{shown} of {name} is not finite: check its calibration inputs, or exclude "
                "the matrix"
            )


def inverse_cholesky(
    gram: Tensor, damping: float = 0.01, *, name: str = "matrix"
) -> tuple[Tensor, float]:
    """The upper factor U of the damped inverse, UᵀU = H⁻¹, and the damping finally used.

    H = gram + damping · mean(diagonal) · I, with 1 added where the diagonal of `gram` (in, in)
    is zero; U is (in, in) float32. A factorisation that fails is repeated with ten times the
    damping, up to 1, and the caller is told which one held.
    Raises PrunerZeroError naming `name` for a non-finite gram or when damping 1 fails too.
    Source: Frantar & Alistarh 2023 (2301.00774), section 3; the factorisation is ours: with H
    read backwards, one factor and one triangular inverse give U.
    """
    L, damping = _backward_factor(gram, damping, name)
    identity = torch.eye(len(L), dtype=L.dtype, device=L.device)
    return torch.linalg.solve_triangular(L, identity, upper=False).flip(0, 1), damping


def hessian_diagonal(gram: Tensor, damping: float = 0.01, *, name: str = "matrix") -> Tensor:
    """The terminal `D`: the diagonal of the upper Cholesky factor of the damped inverse.

    `gram` (in, in) = XᵀX or a positive multiple c of it, which divides the result by √c;
    (1, in) float32, positive. Damping is 1 % of the mean diagonal unless `damping` says
    otherwise, raised as in `inverse_cholesky`. SparseGPT's score is W² / D². A channel that
    was never active gets what the damping alone leaves, the largest value, so that its weights
    go first as SparseGPT's zeroed ones do. Raises what `inverse_cholesky` raises.
    Source: Frantar & Alistarh 2023 (2301.00774), section 3.
    """
    L, damping = _backward_factor(gram, damping, name)
    # U is the inverse of a triangular factor, so its diagonal needs no inversion.
    diagonal = L.diagonal().flip(0).reciprocal()
    active = gram.diagonal().float()
    floor = damping * active.mean()
    dead = torch.where(floor > 0, floor.rsqrt(), 1.0)
    return torch.where(active == 0, dead, diagonal)[None]


def _backward_factor(gram: Tensor, damping: float, name: str) -> tuple[Tensor, float]:
    """The lower Cholesky factor of the damped gram with rows and columns reversed."""
    if not 0 < damping <= 1:
        raise PrunerZeroError(f"damping {damping} is outside (0, 1]: set it to 0.01 or near")
    gram = gram.detach().float()
    if not gram.isfinite().all():
        raise PrunerZeroError(
            f"XᵀX of {name} is not finite: check its calibration inputs, or exclude the matrix"
        )
    backward = gram.flip(0, 1)
    diagonal = backward.diagonal().clone()
    while True:
        damped = diagonal + damping * diagonal.mean()
        backward.diagonal().copy_(damped + (diagonal == 0))
        L, failed = torch.linalg.cholesky_ex(backward)
        if not failed and L.diagonal().isfinite().all():
            return L, damping
        if damping >= 1:
            raise PrunerZeroError(
                f"XᵀX of {name} is not positive definite even at damping 1: "
                "give more calibration windows, or exclude the matrix"
            )
        damping = min(10 * damping, 1.0)
