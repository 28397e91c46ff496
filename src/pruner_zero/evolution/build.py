"""What a search makes of its settings: space, pattern, workers, windows, and the evaluator."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruner_zero.calibration.calibrate import calibrate, open_store
from pruner_zero.calibration.statistics import Kind
from pruner_zero.calibration.windows import take_windows
from pruner_zero.devices import CPU, find_devices, has_fast_bfloat16
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.algorithm import ALGORITHMS
from pruner_zero.evolution.ask import BatchAlgorithm
from pruner_zero.evolution.evaluator import Evaluator, MaskedModel
from pruner_zero.evolution.row_sample import SampledMatrix, sample_matrix, stack
from pruner_zero.evolution.several_models import Models
from pruner_zero.evolution.space import PUBLISHED_SPACE, SearchSpace
from pruner_zero.metric.expression import collected_for
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import cast_weights
from pruner_zero.models.matrices import check_weights, find_matrices
from pruner_zero.progress import track
from pruner_zero.pruning.masks import DenseStatistics
from pruner_zero.settings.calibration import read_parameters
from pruner_zero.settings.read_settings import read_settings
from pruner_zero.settings.search_settings import SearchSettings
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.least_squares import COLUMNS
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from pruner_zero.sparsity.update import Layer
from pruner_zero.structure.units import EqualWidths, UnitMask
from pruner_zero.text.mixture import Mixture
from pruner_zero.text.token_windows import Windows, no_windows

# Fields of the space that the published algorithm does not take from it.
_PUBLISHED = ("operators", "max_size", "max_depth", "idle")


def check_settings(settings: SearchSettings) -> None:
    """Raise PrunerZeroError for unknown names, a bad pattern or space, and a device not shared."""
    if settings.sharing and find_devices(settings.placed_on).first != CPU:
        raise PrunerZeroError(
            f"{settings.sharing} share the model in main memory, and --device {settings.device} "
            "puts it elsewhere: leave out one of the two"
        )
    space_of(settings)
    _pattern_of(settings)


def space_of(settings: SearchSettings) -> SearchSpace:
    """The space of the settings or the algorithm, with the comparison groups asked for.

    Under N:M weights compete in groups of M, and the scope has no effect. Units compete within
    their block. Raises PrunerZeroError for a space that cannot be.
    """
    # A class that was passed in Python is in no table; its space is in the settings.
    space = ALGORITHMS.get(settings.algorithm, BatchAlgorithm).default_space
    if settings.space is not None:
        fields = {**space.model_dump(), **settings.space}
        space = read_settings(SearchSpace, fields, within="space")
        for name in _PUBLISHED if settings.algorithm == "published" else ():
            if getattr(space, name) != getattr(PUBLISHED_SPACE, name):
                raise PrunerZeroError(
                    f"the published algorithm has its own {name}: leave it out of `space`"
                )
        if "unit" in space.scopes and not settings.structure:
            raise PrunerZeroError("the scope unit of `space` is of units: add --structure")
    scope = "unit" if settings.structure else "row" if settings.pattern else settings.scope
    return space if scope == "any" else space.model_copy(update={"scopes": (scope,)})


def _pattern_of(settings: SearchSettings, language_model: LanguageModel | None = None) -> Pattern:
    """The pattern that candidates are judged under; the scope is the candidate's.

    language_model: whose units are masked, where the settings name units. Raises PrunerZeroError
    for a pattern that cannot be.
    """
    share = settings.sparsity or 0.0
    if settings.structure is not None:
        size = None if settings.parameters is None else read_parameters(settings.parameters)
        units = EqualWidths(share, settings.structure, parameters=size)
        return units.fit(language_model).pattern if language_model else units.pattern
    return SemiStructured.parse(settings.pattern) if settings.pattern else Unstructured(share)


# The closed-form error is computed on at most this many weights, and on this many rows of each
# matrix at least. Its time grows with the number of weights.
_SAMPLED_WEIGHTS, _LEAST_ROWS = 8_000_000, 8
# The windows of the rung before the last.
FEW_WINDOWS = 2


@dataclass(frozen=True)
class JudgedModel:
    """A model that candidates are judged on.

    fingerprint: that of its weights, which takes long to compute. uses: the windows for
    calibration, for judging candidates (search), and for the final race (final).
    """

    model: LanguageModel
    fingerprint: str
    uses: Mapping[str, Windows]
    cache: Path | None

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        settings: SearchSettings,
        calibration: Mixture,
        search: Mixture,
        cache: Path | None = None,
    ) -> "JudgedModel":
        """Take its windows.

        Where a text is in both, statistics are collected on its first half and candidates are
        judged on the second, so that no gradient has seen the text that candidates are judged on.
        Of the model's own text, candidates are judged on later windows. The windows of the final
        race are further ones of the judged text, and overlap with none that judge candidates.
        """
        fingerprint, seed = model.fingerprint(), settings.seed
        calibration, search = calibration.halves(search)
        written = calibration.count_self(settings.windows)

        def take(text: Mixture, count: int, **where: Any) -> Windows:
            common: dict[str, Any] = {"folder": cache, "fingerprint": fingerprint, **where}
            return take_windows(text, model, count, settings.seqlen, seed, **common)

        def later(count: int, after: int, option: str) -> Windows:
            return take(search, count, first_written=written, after=after, option=option)

        judged, final = settings.search_windows, settings.final_windows
        uses = {
            "calibration": take(calibration, settings.windows),
            "search": later(judged, 0, "--search-windows"),
            "final": later(final, judged, "--final-windows") if final else no_windows(),
        }
        return cls(model, fingerprint, uses, cache)

    def identity(self, settings: SearchSettings) -> dict[str, Any]:
        """What a resumed run must share beside the settings."""
        return {
            "judge_dtype": str(_judging_dtype(self.model.model)),
            **{f"{use}_tokens": windows.sha256 for use, windows in self.uses.items()},
            "model_weights": self.fingerprint,
        }

    def describe(self) -> dict[str, Any]:
        """Where its windows come from, by their use."""
        return {use: windows.describe() for use, windows in self.uses.items()}

    def evaluator(self, settings: SearchSettings) -> Evaluator:
        """Collect the statistics that the search space needs and bring everything into memory.

        Raises PrunerZeroError for everything that can be found wrong before the search.
        """
        model, include = self.model.model, settings.include
        pattern = _pattern_of(settings, self.model)
        if isinstance(pattern, UnitMask):
            # A unit without its columns of the consumer changes no output: only that is masked.
            include = tuple(pattern.consumers)
        matrices = find_matrices(model, include, settings.exclude)
        for matrix in matrices:
            pattern.check(matrix.name, (matrix.weight.shape[0], matrix.weight.shape[1]))
        check_weights(matrices)
        terminals = space_of(settings).terminals
        update = COLUMNS if isinstance(pattern, UnitMask) else None
        needed: set[Kind] = {"X", "gram", *collected_for(terminals)}
        if update is not None:
            needed.add("tokens")
        calibration, judged, fresh = self.uses.values()
        common: dict[str, Any] = {"folder": self.cache, "fingerprint": self.fingerprint}
        store = open_store(self.model, calibration, **common)
        calibrate(self.model, calibration, needed, store)
        dtype = _judging_dtype(model)
        # Not in float16, where sums over tokens overflow.
        narrows = dtype == torch.bfloat16 and update is None
        narrow_dtype = torch.bfloat16 if narrows else torch.float32
        statistics: dict[str, dict[str, Tensor]] = {}
        sample: list[SampledMatrix] = []
        hessians: dict[str, Hessian] = {}
        reader = DenseStatistics(store)
        # The same share of every matrix, so that the sample's global threshold is the model's.
        total = sum(matrix.weight.numel() for matrix in matrices)
        share = min(1.0, _SAMPLED_WEIGHTS / total)
        blocks = sorted({matrix.block for matrix in matrices})
        for block in track(blocks, "statistics", len(blocks)):
            narrowed: dict[Hessian, Tensor] = {}
            for matrix in (matrix for matrix in matrices if matrix.block == block):
                collected = reader.read(matrix, needed)
                hessian = collected.hessian
                assert hessian is not None
                gram, dense = hessian.gram, matrix.weight.detach()
                # W and S are taken from the weights when a candidate is scored.
                values = collected.terminals({"X", *terminals} - {"W", "S"}, dense)
                statistics[matrix.name] = values
                rows = max(_LEAST_ROWS, round(share * len(dense)))
                sampled = sample_matrix(matrix.name, matrix.block, dense, values, gram, rows)
                if hessian not in narrowed:
                    narrowed[hessian] = gram.to(narrow_dtype)
                sampled = replace(sampled, gram=narrowed[hessian])
                if update is not None and gram.any():
                    hessians[matrix.name] = hessian
                    # Every candidate needs the inverse, which the workers share.
                    _ = hessian.inverse
                    layer = Layer(sampled.weight, hessian, pattern, name=matrix.name)
                    sampled = replace(sampled, layer=layer)
                sample.append(sampled)
        if not any(matrix.terminals["X"].any() for matrix in sample):
            raise PrunerZeroError(
                "calibration reached no matrix: choose another --calibration text"
            )
        if pattern.with_scope("row").stacks:
            sample = stack(sample)
        weights = {matrix.parameter_name: matrix.parameter.detach() for matrix in matrices}
        # Candidates mask a copy, so that the model stays intact whatever happens.
        copy = deepcopy(model)
        cast_weights(copy, dtype)
        copied = find_matrices(copy, include, settings.exclude)
        masked = MaskedModel(copy, copied, weights, statistics, pattern, hessians)
        return Evaluator(sample, masked, judged.tokens, FEW_WINDOWS, fresh.tokens)


def joined(values: Sequence[Mapping[str, Any]], models: Models | None) -> dict[str, Any]:
    """The values of one model; of several, for each key those of every model by its name."""
    if models is None:
        return dict(values[0])
    return {
        key: dict(zip(models.names, (each[key] for each in values), strict=True))
        for key in values[0]
    }


def _judging_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the candidates' forward passes: bfloat16 where it is native."""
    weight = next(model.parameters())
    fast = weight.dtype == torch.float32 and has_fast_bfloat16(weight.device)
    return torch.bfloat16 if fast else weight.dtype
