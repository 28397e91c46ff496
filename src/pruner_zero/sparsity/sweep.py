"""SparseGPT: prune column by column and update the kept weights to compensate."""

import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.selection import BLOCK_COLUMNS
from pruner_zero.sparsity.update import Layer, Update, Updated

# Columns updated one by one before the rest of the block is updated by a matrix product.
_PANEL_COLUMNS = 16


def sparsegpt(layer: Layer) -> Updated:
    """Prune one matrix and spread each removed weight's error over the columns to its right.

    Without a mask, the weights with the lowest scores |W| / U_jj (whose square is the paper's
    score) are pruned, with U the Hessian's inverse factor. Scope
    `block`: floor(rows · columns · sparsity) of each 128 columns at its start; scope `row`: per row
    inside the block, counts rounded so that each row ends with floor(in · sparsity) zeros; N:M: per
    group at its first column, blocks being shortened to whole groups. With a mask, that mask is
    kept and the pattern decides nothing. Channels that were never active (zero diagonal) get zero
    weights. Raises PrunerZeroError for scopes that look beyond a block when no mask is given.
    Source: Frantar & Alistarh 2023 (2301.00774), algorithm 1.
    """
    rows, columns = layer.dense.shape
    mask, pattern = layer.mask, layer.pattern
    width, panel, due_columns = BLOCK_COLUMNS, _PANEL_COLUMNS, BLOCK_COLUMNS
    if mask is None:
        pattern.check(layer.name, (rows, columns))
        if pattern.sweep_columns is None:
            raise PrunerZeroError(
                f"pattern {pattern} compares beyond the columns that SparseGPT's sweep sees at a "
                "time: set scope to block or row, or give a mask"
            )
        due_columns = pattern.sweep_columns
        if due_columns != BLOCK_COLUMNS:
            panel, width = due_columns, max(due_columns, width // due_columns * due_columns)

    hessian = layer.hessian
    U = hessian.inverse_factor
    scale = U.diagonal()[:, None]
    # Transposed, a column is contiguous and an update is one pass over memory.
    W = layer.weight.t().clone(memory_format=torch.contiguous_format)
    W.masked_fill_((hessian.gram.diagonal() == 0)[:, None], 0.0)
    kept = torch.empty(W.shape, dtype=torch.bool, device=W.device)
    if mask is not None:
        kept.copy_(mask.t())
    errors = torch.empty(min(width, columns), rows, dtype=W.dtype, device=W.device)

    for start in range(0, columns, width):
        stop = min(start + width, columns)
        for left in range(start, stop, panel):
            right = min(left + panel, stop)
            group = slice(left, right)
            W[group].addmm_(U[start:left, group].t(), errors[: left - start], alpha=-1)
            if mask is None and (left - start) % due_columns == 0:
                due = slice(left, min(left + due_columns, stop))
                kept[due] = pattern.choose_columns((W[due].abs() / scale[due]).t(), left).t()
            for j in range(left, right):
                error = errors[j - start]
                torch.div(W[j], U[j, j], out=error)
                error.masked_fill_(kept[j], 0.0)
                W[j + 1 : right].addr_(U[j, j + 1 : right], error, alpha=-1)
        W[stop:].addmm_(U[start:stop, stop:].t(), errors[: stop - start], alpha=-1)

    W.masked_fill_(~kept, 0.0)
    return Updated(W.t().contiguous(), kept.t().contiguous())


OBS = Update("obs", sparsegpt, "the remaining weights corrected by SparseGPT's sweep")
