"""What `prune` can be told."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from pruner_zero.calibration import CalibrationWorkers, GradientNorm
from pruner_zero.devices import CPU, Device, find_devices
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import Dtype, LanguageModel
from pruner_zero.pruning.memory_plan import parse_memory
from pruner_zero.pruning.method import Method, Mode, Order, Update
from pruner_zero.pruning.parse_method import parse_method
from pruner_zero.pruning.pipeline import Selection
from pruner_zero.pruning.ray_pruning import ray_pruner
from pruner_zero.pruning.scoring import Pruner, prune_here
from pruner_zero.settings import Settings
from pruner_zero.sparsity import Scope
from pruner_zero.text import Corpus


class CalibrationSettings(Settings):
    """What statistics are collected on, and how; shared by the verbs that calibrate.

    gradient_seqlen: tokens of the pieces that windows are cut into for G, see `gradient_windows`.
    calibration_workers: actors of a Ray cluster, each with a share of the windows; how many
    there are decides only how the statistics round. ray_address, ray_resources: as
    `CalibrationWorkers` takes them. device: what `find_devices` takes.
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
    gradient_norm: GradientNorm = "l2"
    gradient_seqlen: Annotated[int, Field(ge=2)] | None = None
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    calibration_workers: Annotated[int, Field(ge=1)] | None = None
    ray_address: str | None = None
    ray_resources: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)

    @field_validator("ray_resources", mode="before")
    @classmethod
    def _amounts(cls, given: Any) -> Any:
        """The command line gives `name=amount` texts."""
        if not isinstance(given, list | tuple):
            return given
        if not all(isinstance(one, str) and one.count("=") == 1 for one in given):
            raise ValueError("give each as name=amount, such as num_gpus=1")
        return dict(one.split("=") for one in given)

    @model_validator(mode="after")
    def _check_pieces(self) -> Self:
        if self.gradient_seqlen is not None and self.seqlen % self.gradient_seqlen:
            raise PrunerZeroError(
                f"--gradient-seqlen is {self.gradient_seqlen}: choose one that divides the "
                f"{self.seqlen} tokens of a window (--seqlen)"
            )
        return self

    @model_validator(mode="after")
    def _check_device(self) -> Self:
        if self.sharing and find_devices(self.placed_on).first != CPU:
            raise PrunerZeroError(
                f"{self.sharing} share the model in main memory, and --device {self.device} has "
                "it elsewhere: choose one of them"
            )
        return self

    @property
    def sharing(self) -> str | None:
        """The option by which other processes get the model too; None where it is here alone."""
        return None if self.calibration_workers is None else "--calibration-workers"

    @property
    def placed_on(self) -> str:
        """`device`, where "auto" is the CPU for a model that other processes get too."""
        return "cpu" if self.sharing and self.device == "auto" else self.device

    @property
    def workers_of_calibration(self) -> CalibrationWorkers | None:
        """Who collects the dense model's statistics; None for this process."""
        if self.calibration_workers is None:
            return None
        return CalibrationWorkers(self.calibration_workers, self.ray_address, self.ray_resources)

    @property
    def selection(self) -> Selection:
        """The part that the pipeline takes as it is."""
        return Selection(
            self.include, self.exclude, self.damping, self.gradient_norm, self.gradient_seqlen
        )


class MethodSettings(CalibrationSettings):
    """What methods have in common wherever they are applied.

    pruning_workers: how many matrices are pruned at a time by tasks of a Ray cluster, where
    `ray_address` and `ray_resources` say; how many there are changes nothing in the result.
    """

    scope: Scope | None = None
    mode: Mode = "auto"
    pruning_workers: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _check_ray(self) -> Self:
        spread = self.calibration_workers is not None or self.pruning_workers is not None
        if not spread and (self.ray_address or self.ray_resources):
            raise PrunerZeroError(
                "--ray-address and --ray-resources are for --calibration-workers or "
                "--pruning-workers: add one of them, or leave them out"
            )
        return self

    @property
    def sharing(self) -> str | None:
        """As in `CalibrationSettings`; matrices are pruned in main memory elsewhere too."""
        return super().sharing if self.pruning_workers is None else "--pruning-workers"

    def pruner(self) -> AbstractContextManager[Pruner]:
        """Who prunes matrices: this process, or a Ray cluster while it is joined."""
        if self.pruning_workers is None:
            return nullcontext(prune_here)
        # On this machine both kinds of workers are of one instance.
        room = self.calibration_workers or 0
        return ray_pruner(self.pruning_workers, self.ray_address, self.ray_resources, room=room)

    def parse(self, method: str) -> Method:
        """Read a method at this sparsity. Raises PrunerZeroError."""
        return parse_method(method, sparsity=self.sparsity, pattern=self.pattern, scope=self.scope)


class PruneSettings(MethodSettings):
    """All that decides the result of `prune`."""

    metric: str = "wanda"
    offload: bool = False
    memory: str | None = None
    update: Update | None = None
    refine: bool = False
    asymmetric: bool = False
    allocation: str | None = None
    save_mask: bool = False

    @model_validator(mode="after")
    def _combine(self) -> Self:
        order = self.method.mode(self.mode)
        if self.calibration_workers is not None:
            self._check_workers(order)
        if self.pruning_workers is not None and self.offload:
            raise PrunerZeroError(
                "--pruning-workers take memory that the plan of --offload does not know of: "
                "choose one of them"
            )
        if self.memory is not None:
            parse_memory(self.memory)
            if not self.offload:
                raise PrunerZeroError("--memory bounds an offloaded run: add --offload")
        return self

    def _check_workers(self, order: Order) -> None:
        if self.offload:
            raise PrunerZeroError(
                "--calibration-workers hold the whole model each, and --offload leaves it on "
                "disk: choose one of them"
            )
        if not self.method.dense_kinds(order):
            raise PrunerZeroError(
                "--calibration-workers collect statistics of the dense model, and this run needs "
                "none: choose --mode one-shot, or leave it out"
            )

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
