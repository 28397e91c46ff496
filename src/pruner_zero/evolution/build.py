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
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.evolution.algorithm import ALGORITHMS
from pruner_zero.evolution.evaluator import Evaluator, MaskedModel
from pruner_zero.evolution.row_sample import SampledMatrix, sample_matrix, stack
from pruner_zero.evolution.several_models import Models
from pruner_zero.evolution.space import PUBLISHED_SPACE, SearchSpace
from pruner_zero.execution.executor import EXECUTORS, Workers
from pruner_zero.metric.expression import collected_for
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import cast_weights
from pruner_zero.models.structure import check_weights, find_matrices
from pruner_zero.progress import track
from pruner_zero.pruning.statistics import DenseStatistics
from pruner_zero.settings.calibration import read_parameters
from pruner_zero.settings.read import read_settings
from pruner_zero.settings.search import SearchSettings
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from pruner_zero.sparsity.steps.step import STEPS, Layer
from pruner_zero.structure.units import CoupledUnits, UnitMask
from pruner_zero.text.mixture import Mixture
from pruner_zero.text.windows import Windows, no_windows

# Fields of the space that the published algorithm does not take from it.
_PUBLISHED = ("operators", "max_size", "max_depth", "idle")


def check_settings(settings: SearchSettings) -> None:
    """Raise PrunerZeroError for unknown names, a bad pattern or space, and a device not shared."""
    known = {"executor": [*EXECUTORS], "algorithm": [*ALGORITHMS], "update": ["none", *STEPS]}
    for option, names in known.items():
        name = getattr(settings, option)
        if name is not None and name not in names:
            raise PrunerZeroError(
                f"--{option} is '{name}': no {option}: {did_you_mean(name, names)}"
            )
    if settings.sharing and find_devices(settings.placed_on).first != CPU:
        raise PrunerZeroError(
            f"{settings.sharing} share the model in main memory, and --device {settings.device} "
            "puts it elsewhere: leave out one of the two"
        )
    space_of(settings)
    pattern_of(settings)


def space_of(settings: SearchSettings) -> SearchSpace:
    """The space of the settings or the algorithm, with the comparison groups asked for.

    Under N:M weights compete in groups of M, and the scope has no effect. Units compete within
    their block. Raises PrunerZeroError for a space that cannot be.
    """
    space = ALGORITHMS[settings.algorithm].space
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


def pattern_of(settings: SearchSettings, language_model: LanguageModel | None = None) -> Pattern:
    """The pattern that candidates are judged under; the scope is the candidate's.

    language_model: whose units are masked, where the settings name units. Raises PrunerZeroError
    for a pattern that cannot be.
    """
    share = settings.sparsity or 0.0
    if settings.structure is not None:
        size = None if settings.parameters is None else read_parameters(settings.parameters)
        units = CoupledUnits(share, settings.structure, settings.multiple_of, parameters=size)
        return units.fit(language_model).pattern if language_model else units.pattern
    return SemiStructured.parse(settings.pattern) if settings.pattern else Unstructured(share)


def workers_of(settings: SearchSettings) -> Workers:
    """How the judging of candidates is spread."""
    return Workers(
        settings.workers,
        settings.threads,
        settings.time_limit,
        settings.ray_address,
        settings.ray_resources,
    )


# The fewest sampled rows of each matrix, however large the model.
LEAST_ROWS = 8


def search_windows(
    settings: SearchSettings,
    calibration: Mixture,
    search: Mixture,
    language_model: LanguageModel,
    *,
    cache: Path | None = None,
    fingerprint: str | None = None,
) -> tuple[Windows, Windows, Windows]:
    """The windows for calibration, for judging candidates, and for the final race.

    Where a text is in both, statistics are collected on its first half and candidates are judged
    on the second, so that no gradient has seen the text that candidates are judged on. Of the
    model's own text, candidates are judged on later windows. The windows of the final race are
    further ones of the judged text, and overlap with none of the windows that judge candidates.
    fingerprint: that of the model where it is known, since computing it takes long.
    """
    calibration, search = calibration.halves(search)
    written = calibration.count_self(settings.windows)
    length, seed, judged = settings.seqlen, settings.seed, settings.search_windows
    common: dict[str, Any] = {"folder": cache, "fingerprint": fingerprint}

    def later(count: int, after: int, option: str) -> Windows:
        where: dict[str, Any] = {"first_written": written, "after": after, "option": option}
        return take_windows(search, language_model, count, length, seed, **where, **common)

    return (
        take_windows(calibration, language_model, settings.windows, length, seed, **common),
        later(judged, 0, "--search-windows"),
        later(settings.final_windows, judged, "--final-windows")
        if settings.final_windows
        else no_windows(),
    )


def build_evaluator(
    language_model: LanguageModel,
    settings: SearchSettings,
    calibration: Windows,
    judged: Windows,
    *,
    fresh: Windows | None = None,
    cache: Path | None = None,
    fingerprint: str | None = None,
) -> Evaluator:
    """Collect the statistics that the search space needs and bring everything into memory.

    fingerprint: that of the model where it is known. Raises PrunerZeroError for everything that can
    be found wrong before the search.
    """
    pattern, include = pattern_of(settings, language_model), settings.include
    if isinstance(pattern, UnitMask):
        # A unit without its columns of the consumer changes no output: no other matrix is masked.
        include = tuple(pattern.consumers)
    matrices = find_matrices(language_model.model, include, settings.exclude)
    for matrix in matrices:
        pattern.check(matrix.name, (matrix.weight.shape[0], matrix.weight.shape[1]))
    check_weights(matrices)
    terminals = space_of(settings).terminals
    step = None if settings.update == "none" else STEPS[settings.update]
    needed: set[Kind] = {"X", "gram", *collected_for(terminals)}
    if step is not None and step.shrinks:
        needed.add("tokens")
    store = open_store(language_model, calibration, folder=cache, fingerprint=fingerprint)
    calibrate(language_model, calibration, needed, store)
    dtype = judging_dtype(language_model.model, settings)
    # Not in float16, where sums over tokens overflow.
    narrows = dtype == torch.bfloat16 and step is None
    narrow_dtype = torch.bfloat16 if narrows else torch.float32
    statistics: dict[str, dict[str, Tensor]] = {}
    sample: list[SampledMatrix] = []
    hessians: dict[str, Hessian] = {}
    reader = DenseStatistics(store, settings.damping)
    blocks = sorted({matrix.block for matrix in matrices})
    # The same share of every matrix, so that the sample's global threshold is the model's.
    share = min(1.0, settings.sampled_weights / sum(matrix.weight.numel() for matrix in matrices))
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
            rows = max(LEAST_ROWS, round(share * len(dense)))
            sampled = sample_matrix(matrix.name, matrix.block, dense, values, gram, rows)
            if hessian not in narrowed:
                narrowed[hessian] = gram.to(narrow_dtype)
            sampled = replace(sampled, gram=narrowed[hessian])
            if step is not None and gram.any():
                hessians[matrix.name] = hessian.prepare() if step.damps else hessian
                if isinstance(pattern, UnitMask):
                    # Every candidate needs the inverse: computed here, it is shared by the workers.
                    _ = hessian.inverse
                layer = Layer(sampled.weight, hessian, pattern, name=matrix.name)
                sampled = replace(sampled, layer=layer, step=step.name)
            sample.append(sampled)
    if not any(matrix.terminals["X"].any() for matrix in sample):
        raise PrunerZeroError("calibration reached no matrix: choose another --calibration text")
    if pattern.with_scope("row").stacks:
        sample = stack(sample)
    weights = {matrix.parameter_name: matrix.parameter.detach() for matrix in matrices}
    # Candidates mask a copy, so that the model stays intact whatever happens.
    copy = deepcopy(language_model.model)
    cast_weights(copy, dtype)
    copied = find_matrices(copy, include, settings.exclude)
    steps = () if step is None else (step.name,)
    masked = MaskedModel(copy, copied, weights, statistics, pattern, steps, hessians)
    unseen = (fresh or no_windows()).tokens
    return Evaluator(sample, masked, judged.tokens, settings.few_windows, unseen)


@dataclass(frozen=True)
class JudgedModel:
    """A model that candidates are judged on, with its windows; fingerprint: of its weights."""

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
        cache: Path | None,
    ) -> "JudgedModel":
        """Take its windows, as `search_windows` says."""
        common: dict[str, Any] = {"cache": cache, "fingerprint": model.fingerprint()}
        windows = search_windows(settings, calibration, search, model, **common)
        uses = dict(zip(("calibration", "search", "final"), windows, strict=True))
        return cls(model, common["fingerprint"], uses, cache)

    def identity(self, settings: SearchSettings) -> dict[str, Any]:
        """What a resumed run must share beside the settings."""
        return {
            "judge_dtype": str(judging_dtype(self.model.model, settings)),
            **{f"{use}_tokens": windows.sha256 for use, windows in self.uses.items()},
            "model_weights": self.fingerprint,
        }

    def describe(self) -> dict[str, Any]:
        """Where its windows come from, by their use."""
        return {use: windows.describe() for use, windows in self.uses.items()}

    def evaluator(self, settings: SearchSettings) -> Evaluator:
        """The judge of candidates on this model."""
        calibration, judged, fresh = self.uses.values()
        common: dict[str, Any] = {"cache": self.cache, "fingerprint": self.fingerprint}
        return build_evaluator(self.model, settings, calibration, judged, fresh=fresh, **common)


def joined(values: Sequence[Mapping[str, Any]], models: Models | None) -> dict[str, Any]:
    """The values of one model; of several, for each key those of every model by its name."""
    if models is None:
        return dict(values[0])
    return {
        key: dict(zip(models.names, (each[key] for each in values), strict=True))
        for key in values[0]
    }


def judging_dtype(model: nn.Module, settings: SearchSettings) -> torch.dtype:
    """The dtype of the candidates' forward passes."""
    weight = next(model.parameters())
    if settings.judge_dtype == "auto":
        fast = weight.dtype == torch.float32 and has_fast_bfloat16(weight.device)
        return torch.bfloat16 if fast else weight.dtype
    return torch.bfloat16 if settings.judge_dtype == "bfloat16" else torch.float32
