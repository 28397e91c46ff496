"""The shape of a weight matrix's spectrum: how heavy its tail is."""

from typing import Literal

import torch
from torch import Tensor

from pruner_zero.devices import where_float64_is
from pruner_zero.errors import PrunerZeroError

TailStart = Literal["peak", "median"]

# Eigenvalues of a rank-deficient matrix below this share of the largest are rounding.
_RANK = 1e-12

_BINS = 100


def eigenvalues(weight: Tensor) -> Tensor:
    """The eigenvalues of WᵀW that are not zero, ascending, float64: W's squared singular values.

    `weight` (out, in), any float dtype and device. Taken from the smaller of WᵀW and WWᵀ;
    those under 1e-12 of the largest count as zero. Source: ours.
    """
    W = where_float64_is(weight.detach()).double()
    gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values[values > _RANK * values[-1]]


def tail_exponent(weight: Tensor, start: TailStart = "peak", *, name: str = "matrix") -> float:
    """The exponent α of the power law that the tail of the spectrum follows; heavy is small.

    `weight` (out, in). Hill's estimator over the n eigenvalues λ of WᵀW from λ_min up:
    α = 1 + n / Σ ln(λ / λ_min). Scaling W changes nothing. λ_min by `start`:
    - "median": the eigenvalue of rank ⌊N/2⌋ (from 0) of all N, ascending;
    - "peak", with which the released scripts prune language models: p is the left edge of the
      fullest of 100 equal bins of log₁₀ λ; among the eigenvalues in [0.95·p, 1.5·p], without
      the largest of all, the one whose law fits best, by the Kolmogorov-Smirnov distance
      max |1 − (λ/λ_min)^(1−α) − rank/n|. The release compares with log₁₀(0.95·p) as the lower
      end, which makes α depend on the scale of W; the end here is the one it describes.
    Raises PrunerZeroError naming `name` for weights that are not finite and for spectra without
    a tail, such as those of fewer than two eigenvalues or of equal ones.
    Source: Hill 1975; Lu et al. 2024 (2410.10912), section 3, and its released code.
    """
    if not weight.isfinite().all():
        raise PrunerZeroError(f"weights of {name} are not finite: exclude the matrix")
    spectrum = eigenvalues(weight)
    if start == "median":
        fits = [_fit(spectrum[len(spectrum) // 2 :])]
    else:
        fits = [_fit(spectrum[index:]) for index in _near_peak(spectrum)]
    fits = [fit for fit in fits if fit[1] < float("inf")]
    if not fits:
        raise PrunerZeroError(
            f"the spectrum of {name} has no tail to fit: exclude the matrix, or use another "
            "allocation"
        )
    return min(fits, key=lambda fit: fit[0])[1]


def _near_peak(spectrum: Tensor) -> list[int]:
    """The indices of eigenvalues near the peak of the log spectrum, but never of the last."""
    if len(spectrum) < 2:
        return []
    logs = spectrum.log10()
    low, high = logs[0].item(), logs[-1].item()
    filled = torch.histc(logs.cpu(), _BINS, min=low, max=high)
    peak = 10 ** (low + int(filled.argmax()) * (high - low) / _BINS)
    near = (spectrum[:-1] >= 0.95 * peak) & (spectrum[:-1] <= 1.5 * peak)
    return near.nonzero()[:, 0].tolist()


def _fit(tail: Tensor) -> tuple[float, float]:
    """How far the tail's power law is from it, and its exponent, infinite where there is none."""
    n = len(tail)
    logs = (tail / tail[0]).log() if n else tail
    alpha = 1 + n / total if (total := logs.sum().item()) > 0 else float("inf")
    if alpha == float("inf"):
        return alpha, alpha
    ranks = torch.arange(n, dtype=tail.dtype, device=tail.device) / n
    law = 1 - ((1 - alpha) * logs).exp()
    return (law - ranks).abs().max().item(), alpha
