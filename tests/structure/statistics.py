"""The statistics of a dense model as calibration collects them, by matrix name."""

from torch import Tensor

from pruner_zero.calibration.statistics import Kind
from pruner_zero.calibration.walk import Walk
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_blocks, find_matrices


def statistic(model: LanguageModel, tokens: Tensor, kind: Kind) -> dict[str, Tensor]:
    """The statistic `kind` of every matrix that has it, of windows (n, seqlen)."""
    matrices, walk = find_matrices(model.model), Walk(model, tokens).carry()
    collected = {}
    for index, block in enumerate(find_blocks(model.model)):
        of_block = [matrix for matrix in matrices if matrix.block == index]
        for name, values in walk.collect(block, index, of_block, [kind], advance=True).items():
            if kind in values:
                collected[name] = values[kind]
    return collected
