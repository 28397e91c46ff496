"""The best weights once whole input columns are gone: least squares on the columns that stay."""

import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.update import Layer, Update, Updated


def keep_columns(layer: Layer) -> Updated:
    """Least squares for the columns that all rows of the mask keep.

    For dense rows W (out, in) and the damped Hessian H (in, in), finds the W' with zeros in the
    other columns that minimises tr((W' − W)·H·(W' − W)ᵀ). Rows of which the mask keeps nothing
    become zero, and so do weights of inputs that are always zero. Where the inverse of the Hessian
    was computed before, it is used. Raises PrunerZeroError naming the layer if the result is not
    finite, what `Hessian` raises, and ValueError where rows keep different columns.
    Source: optimal brain surgeon for several weights (Hassibi & Stork 1993).
    """
    hessian, mask, W = layer.hessian, layer.required_mask, layer.weight
    active = hessian.gram.diagonal() != 0
    support = mask & active
    columns = support.any(0)
    if not torch.equal(support, support.any(1)[:, None] & columns):
        raise ValueError(f"rows of {layer.name} keep different columns")
    # Many masks are tried under one Hessian only where its inverse is at hand.
    solved = remove_columns(W, hessian, ~columns) if "inverse" in vars(hessian) else None
    if solved is None:
        solved = _solved(W, hessian.damped(), columns, support, active)
    solved = solved.masked_fill_(~support, 0.0)
    if not solved.isfinite().all():
        raise PrunerZeroError(
            f"the updated weights of {layer.name} are not finite: give more calibration windows, "
            "or exclude the matrix"
        )
    return Updated(solved, mask)


def _solved(W: Tensor, H: Tensor, columns: Tensor, support: Tensor, active: Tensor) -> Tensor:
    """The rows W (out, in) solved for the kept `columns` (in,) under the damped Hessian H."""
    begin = W * support
    gradient = (W * active - begin) @ H
    gradient *= support
    L, failed = torch.linalg.cholesky_ex(H[columns][:, columns])
    if failed:
        # Rounding of float32 makes it fail at the edge of what the factor of all of H allows.
        L = torch.linalg.cholesky(H[columns][:, columns].double())
    change = torch.zeros_like(W)
    change[:, columns] = torch.cholesky_solve(gradient[:, columns].t().to(L.dtype), L).t().to(W)
    return begin + change


def remove_columns(weight: Tensor, hessian: Hessian, removed: Tensor) -> Tensor | None:
    """`weight` (rows, in), least squares on the columns that stay once `removed` (in,) bool go.

    w − w_P·(H⁻¹_PP)⁻¹·H⁻¹_P for the removed columns P: given H⁻¹, this factors |P| columns instead
    of the columns that stay. None where rounding makes it fail.
    Source: optimal brain surgeon for several weights (Hassibi & Stork 1993), as in ZipLM (Kurtić et
    al. 2023, 2302.04089).
    """
    inverse = hessian.inverse[removed]
    L, failed = torch.linalg.cholesky_ex(inverse[:, removed])
    if failed:
        return None
    solved = torch.cholesky_solve(weight[:, removed].t(), L).t()
    active = hessian.gram.diagonal() != 0
    result: Tensor = ((weight - solved @ inverse) * active).masked_fill_(removed, 0.0)
    return result


COLUMNS = Update(
    "columns",
    keep_columns,
    "the remaining weights corrected by least squares",
    shrinks=True,
)
