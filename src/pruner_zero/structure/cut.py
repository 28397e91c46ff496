"""Cuts: whole units that are removed from a model, so that it becomes smaller."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from pruner_zero.calibration.statistics import Kind
from pruner_zero.choices import check_sparsity
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import size_of
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.update import Update
from pruner_zero.text.token_windows import Windows

# What says which units go: the calibration text, scores or statistics of the whole dense model, or
# masks, block by block.
When = Literal["text", "dense", "masks"]


class Cut(ABC):
    """Which units of a model go, and how they are cut out. Subclasses are frozen dataclasses.

    unit: the kind of unit, such as "channels". sparsity: the share of units to remove, in [0, 1).
    parameters: in its place, the largest number of parameters of the smaller model, or up to 1
    their share. when: as `When` says. compares: on about how many tokens `decide` compares
    units where masks say which of them go; 0 where it does not. update: what corrects kept weights
    after the mask; None where nothing does. kept_tokens: the numbers of the
    tokens that stay, empty where all do.
    """

    unit: str
    sparsity: float
    parameters: float | None
    when: When = "dense"
    compares: ClassVar[int] = 0
    update: Update | None = None
    kept_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)

    @abstractmethod
    def fit(self, language_model: LanguageModel) -> Self:
        """The cut for one dense model.

        Raises PrunerZeroError where it has no such units, or not so many can be removed.
        """

    @property
    def rule(self) -> str | None:
        """How the units are chosen, in words; None where a metric chooses them."""
        return None

    @property
    def reads(self) -> int:
        """How many windows the model reads for `decide`, at the most, beside the statistics."""
        return 0

    @property
    def statistic(self) -> Kind | None:
        """The kind of statistic by which `decide` compares units; None for a metric's scores."""
        return None

    @property
    def include(self) -> Sequence[str]:
        """Patterns of the names of the matrices that lose rows or columns; empty for all."""
        return ()

    @property
    def translation(self) -> Any:
        """The `Translation` to the tokens of the smaller model; None where it has the same."""
        return None

    @property
    def pattern(self) -> Pattern:
        """The pattern of the masks that choose units block by block, once the cut is fitted."""
        raise NotImplementedError(f"{self.unit} are not chosen by masks")

    def decide(
        self, language_model: LanguageModel, windows: Windows, scores: Mapping[str, Tensor]
    ) -> Self:
        """The cut with the units that go, by the dense model.

        windows: of the calibration. scores: by matrix name, of the metric or the `statistic`,
        without matrices that calibration never reached; may be lazy.
        """
        del language_model, windows, scores
        return self

    def prepared(self, language_model: LanguageModel, tokens: Tensor) -> Self:
        """The decided cut, for which the dense model is prepared in place."""
        del language_model, tokens
        return self

    def goes(self, name: str) -> bool:
        """Whether the matrix `name` is cut out whole, where `decide` has chosen."""
        raise NotImplementedError(f"{self.unit} are no whole matrices: {name}")

    @abstractmethod
    def lost(self, model: Any) -> Iterator[tuple[nn.Parameter, int]]:
        """The parameters that `cut` makes smaller, and how many of their values go."""

    def size(self, model: nn.Module) -> tuple[int, int]:
        """The parameters of the model after `cut`, and their bytes, before anything is cut."""
        numbers, nbytes = size_of(model)
        for parameter, count in self.lost(model):
            numbers, nbytes = numbers - count, nbytes - count * parameter.itemsize
        return numbers, nbytes

    @abstractmethod
    def cut(self, model: Any) -> None:
        """Cut the units out of `model`, in place."""

    def cut_files(self, model: Any, files: list[Path]) -> tuple[Any, list[Path]]:
        """`cut` for a model on disk: its new configuration, and new files of its blocks.

        files: the weights of each block, as they are saved. The configuration is None where it
        stays the same.
        """
        del model
        return None, files

    @contextmanager
    def undone(self, model: Any) -> Iterator[None]:
        """Within the context, `model` is the smaller model, as after `cut`.

        Its modules, parameters and configuration from before come back; they are held meanwhile.
        """
        parts = [vars(model.config)]
        for module in model.modules():
            parts += [vars(module), module._parameters, module._buffers, module._modules]
        before = [(part, dict(part)) for part in parts]
        weights = [(parameter, parameter.data) for parameter in model.parameters()]
        try:
            self.cut(model)
            yield
        finally:
            for part, values in before:
                part.clear()
                part.update(values)
            for parameter, values in weights:
                parameter.data = values

    def describe(self) -> dict[str, Any]:
        """What decided which units are removed, as JSON values."""
        return {}
