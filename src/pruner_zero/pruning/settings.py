"""What `prune` can be told."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import Dtype, LanguageModel
from pruner_zero.pruning.method import Method, Mode, Update
from pruner_zero.pruning.parse_method import parse_method
from pruner_zero.pruning.pipeline import Selection
from pruner_zero.settings import Settings
from pruner_zero.settings.model import Device
from pruner_zero.sparsity import Scope
from pruner_zero.text import Corpus


class CalibrationSettings(Settings):
    """What statistics are collected on, and how; shared by the verbs that calibrate.

    gradient_seqlen: tokens of the pieces that windows are cut into for G, see `gradient_windows`.
    device: what `find_devices` takes.
    """

    model: str
    calibration: str
    windows: Annotated[int, Field(ge=1)] = 24
    seqlen: Annotated[int, Field(ge=2)] = 1024
    seed: Annotated[int, Field(ge=0)] = 0
    sparsity: float | None = None
    pattern: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dtype: Dtype = "auto"
    device: Device = "auto"
    gradient_seqlen: Annotated[int, Field(ge=2)] | None = None
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01

    @model_validator(mode="after")
    def _check_pieces(self) -> Self:
        if self.gradient_seqlen is not None and self.seqlen % self.gradient_seqlen:
            raise PrunerZeroError(
                f"--gradient-seqlen is {self.gradient_seqlen}: choose one that divides the "
                f"{self.seqlen} tokens of a window (--seqlen)"
            )
        return self

    @property
    def selection(self) -> Selection:
        """The part that the pipeline takes as it is."""
        return Selection(self.include, self.exclude, self.damping)


class MethodSettings(CalibrationSettings):
    """What methods have in common wherever they are applied."""

    scope: Scope | None = None
    mode: Mode = "auto"

    def parse(self, method: str) -> Method:
        """Read a method at this sparsity. Raises PrunerZeroError."""
        return parse_method(method, sparsity=self.sparsity, pattern=self.pattern, scope=self.scope)


class PruneSettings(MethodSettings):
    """All that decides the result of `prune`."""

    metric: str = "wanda"
    offload: bool = False
    update: Update | None = None
    refine: bool = False
    asymmetric: bool = False
    allocation: str | None = None
    save_mask: bool = False

    @cached_property
    def method(self) -> Method:
        """The method that metric, sparsity or pattern, scope and the steps describe.

        Read once: a tree file that changes during the run changes nothing.
        """
        return parse_method(
            self.metric,
            sparsity=self.sparsity,
            pattern=self.pattern,
            scope=self.scope,
            update=self.update,
            refine=self.refine,
            asymmetric=self.asymmetric,
            allocation=self.allocation,
        )


def model_name(model: str | Path | LanguageModel | Any) -> str | None:
    """How settings name a model that may be an object; None where none is given."""
    if model is None or isinstance(model, (str, Path)):
        return None if model is None else str(model)
    name = model.name if isinstance(model, LanguageModel) else model.name_or_path
    return name or type(model).__name__


def corpus_name(corpus: str | Path | Corpus | Iterable[str] | None) -> str | None:
    """How settings name a text that may be an object; None where none is given."""
    if corpus is None or isinstance(corpus, (str, Path)):
        return None if corpus is None else str(corpus)
    return corpus.name if isinstance(corpus, Corpus) else "(strings)"
