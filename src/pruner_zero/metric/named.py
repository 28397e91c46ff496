"""The known pruning metrics, as expressions of this language."""

from dataclasses import dataclass

from pruner_zero.plugins import Registry


@dataclass(frozen=True, slots=True)
class NamedMetric:
    """A metric from the literature.

    text: in the language of metrics. description: what it ranks weights by. citation: its source.
    """

    name: str
    text: str
    description: str
    citation: str


_ALPHA = "0.7 * (1 - 0.3 * small(S))"

_ALL = (
    NamedMetric(
        "magnitude",
        "W",
        "the weight's magnitude",
        "Han et al. 2015, Learning both Weights and Connections, arXiv 1506.02626",
    ),
    NamedMetric(
        "wanda",
        "W * X",
        "magnitude times the norm of the input it multiplies",
        "Sun et al. 2023, Wanda, arXiv 2306.11695, eq. 1",
    ),
    NamedMetric(
        "gblm",
        "W * X + W * G",
        "magnitude times input norm plus gradient",
        "Das et al. 2023, GBLM-Pruner, arXiv 2311.04902",
    ),
    NamedMetric(
        "ria",
        "(row_share(W) + column_share(W)) * X^0.5",
        "the weight's share of its row and of its column, times the root of the input norm",
        "Zhang et al. 2024, Plug-and-Play (RIA), ICLR 2024",
    ),
    NamedMetric(
        "sparsegpt-score",
        "sqr(W) / sqr(D)",
        "the layer error that removing the weight causes after the best update of the rest",
        "Frantar & Alistarh 2023, SparseGPT, arXiv 2301.00774",
    ),
    NamedMetric(
        "pruner-zero",
        "abs(W * W) * mms(G)",
        "squared weight times the scaled gradient: the tree the authors' search found",
        "Dong et al. 2024, Pruner-Zero, arXiv 2406.02924",
    ),
    NamedMetric(
        "z-pruner",
        f"({_ALPHA} * abs(zsn(row_normalize(S)))^3"
        f" + (1 - {_ALPHA}) * abs(zsn(column_normalize(S)))^3) * X^1.5",
        "cubed z-scores of row- and column-normalised weights, times the input norm to 1.5",
        "Bhuiyan et al. 2025, Z-Pruner, arXiv 2508.15828, as released",
    ),
)

NAMED = Registry("metrics", NamedMetric, {metric.name: metric for metric in _ALL})
