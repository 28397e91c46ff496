"""The one walk over the decoder blocks: each block's inputs, its statistics, its outputs."""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext

from torch import Tensor, nn

from pruner_zero.calibration.inputs import collect_inputs
from pruner_zero.calibration.statistics import Kind, MatrixStatistics
from pruner_zero.models.blocks import DISCARDED, Activations, run_windows
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.structure import Matrix
from pruner_zero.models.transformers_private import experts_one_by_one

# Where the input of the block of a number is kept, window by window: a new list, or a new file.
Storage = Callable[[int], Activations]


class Walk:
    """The activations before one decoder block after the other, by calibration window.

    tokens: the windows (n, seqlen). storage: where activations are kept, in memory where None.
    hidden: the input of the block whose turn it is, a (1, tokens, width) tensor for each window;
    given for an interrupted walk, else that of the first block. dense: a walk over the dense model
    on the same tokens, for statistics that compare its inputs with these; it goes one block on
    whenever this one collects. The caller loads the block of each turn and may change its weights
    between `collect` and `advance`.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        tokens: Tensor,
        storage: Storage | None = None,
        hidden: Activations | None = None,
        dense: "Walk | None" = None,
    ) -> None:
        self.dense = dense
        self._storage: Storage = storage or (lambda _index: [])
        calls = language_model.block_calls(
            tokens, self._storage(0) if hidden is None else DISCARDED
        )
        self.hidden = calls.hidden if hidden is None else hidden
        # Each walk has arguments of its own: through some, a block passes keys and values on.
        self.arguments = calls.arguments

    def collect(
        self,
        block: nn.Module,
        index: int,
        matrices: Sequence[Matrix],
        kinds: Collection[Kind],
        *,
        advance: bool = False,
    ) -> dict[str, MatrixStatistics]:
        """The statistics `kinds` of `matrices`, all of one loaded block, by matrix name.

        advance: whether the outputs of this pass become the input of the next block, as in a model
        that is not changed on the way.
        """
        dense = self.dense
        if not matrices and not advance:
            if dense:
                dense.advance(block, index, observed=True)
            return {}
        outputs = self._storage(index + 1) if advance else DISCARDED
        dense_outputs = dense._storage(index + 1) if dense else None
        statistics, _ = collect_inputs(
            block,
            matrices,
            self.hidden,
            self.arguments[index],
            kinds,
            outputs=outputs,
            dense=dense.hidden if dense else None,
            dense_arguments=dense.arguments[index] if dense else None,
            dense_outputs=dense_outputs,
        )
        if dense and dense_outputs is not None:
            dense.hidden = dense_outputs
        if advance:
            self.hidden = outputs
        return statistics

    def advance(self, block: nn.Module, index: int, *, observed: bool = False) -> None:
        """Run one loaded block; its outputs are the input of the next one.

        observed: whether the experts of a mixture run one by one, so that the outputs are those
        that `collect` gives.
        """
        with experts_one_by_one(block) if observed else nullcontext():
            outputs = self._storage(index + 1)
            self.hidden = run_windows(block, self.hidden, self.arguments[index], outputs)
