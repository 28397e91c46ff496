"""Plain statements of the contract, in Python and NumPy, that share no code with the subpackage."""

import math
from collections.abc import Callable, Sequence
from decimal import Decimal

import torch
from torch import Tensor


def zeros_in(weights: int, sparsity: float) -> int:
    """floor(weights · sparsity), with the sparsity read as the decimal a user would type."""
    return math.floor(Decimal(repr(float(sparsity))) * weights)


def keep_flat(scores: list[float], pruned: int) -> list[bool]:
    """The mask of one comparison group: Python's stable sort, lowest dropped."""
    keep = [True] * len(scores)
    for index in sorted(range(len(scores)), key=scores.__getitem__)[:pruned]:
        keep[index] = False
    return keep


def keep_groups(scores: Tensor, width: int, pruned: int) -> Tensor:
    """Groups of `width` consecutive weights inside each row."""
    rows = scores.tolist()
    kept = [
        [
            keep
            for start in range(0, len(row), width)
            for keep in keep_flat(row[start : start + width], pruned)
        ]
        for row in rows
    ]
    return torch.tensor(kept, dtype=torch.bool).reshape(scores.shape)


def keep_matrices(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """All weights of all matrices in one group."""
    values = [value for matrix in scores for value in matrix.flatten().tolist()]
    kept = torch.tensor(keep_flat(values, zeros_in(len(values), sparsity)), dtype=torch.bool)
    parts = kept.split([matrix.numel() for matrix in scores])
    return [part.reshape(matrix.shape) for part, matrix in zip(parts, scores, strict=True)]


def keep_blocks(scores: Tensor, sparsity: float, width: int = 128) -> Tensor:
    """Blocks of `width` columns, all rows in one group."""
    blocks = scores.split(width, dim=1)
    return torch.cat([keep_matrices([block], sparsity)[0] for block in blocks], dim=1)


def damped(gram: Tensor, damping: float = 0.01) -> Tensor:
    """The Hessian of the textbook in float64; an all-zero channel gets 1."""
    H = gram.double().clone()
    diagonal = H.diagonal().clone()
    H += damping * diagonal.mean() * torch.eye(len(H), dtype=torch.float64)
    H += torch.diag((diagonal == 0).double())
    return H


def error_under(H: Tensor, change: Tensor) -> float:
    """tr(ΔW · H · ΔWᵀ)."""
    change = change.double()
    return float((change @ H * change).sum())


def obs_columns(weight: Tensor, gram: Tensor, mask: Tensor, damping: float = 0.01) -> Tensor:
    """Optimal Brain Surgeon column by column, the inverse Hessian of the rest inverted anew."""
    W = weight.double().clone()
    H = damped(gram, damping)
    W[:, gram.diagonal() == 0] = 0
    for j in range(W.shape[1]):
        inverse = torch.linalg.inv(H[j:, j:])
        error = torch.where(mask[:, j], 0.0, W[:, j]) / inverse[0, 0]
        W[:, j:] -= error[:, None] * inverse[0][None]
    return W.masked_fill(~mask, 0.0)


def sparsegpt_choosing(
    weight: Tensor,
    gram: Tensor,
    width: int,
    keep: Callable[[Tensor, int], Tensor],
    damping: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """The textbook with masks chosen at the first column of every `width` columns."""
    W = weight.double().clone()
    H = damped(gram, damping)
    W[:, gram.diagonal() == 0] = 0
    columns = W.shape[1]
    denominators = torch.stack([torch.linalg.inv(H[j:, j:])[0, 0] for j in range(columns)])
    mask = torch.ones(W.shape, dtype=torch.bool)
    for j in range(columns):
        if j % width == 0:
            stop = min(j + width, columns)
            due = slice(j, stop)
            mask[:, due] = keep(W[:, due] ** 2 / denominators[due], j)
        inverse = torch.linalg.inv(H[j:, j:])
        error = torch.where(mask[:, j], 0.0, W[:, j]) / inverse[0, 0]
        W[:, j:] -= error[:, None] * inverse[0][None]
    return W.masked_fill(~mask, 0.0), mask
