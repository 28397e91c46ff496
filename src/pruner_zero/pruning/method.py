"""A pruning method: a metric, a pattern of zeros, steps after the mask."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pruner_zero.calibration.statistics import GradientStatistic, Kind, select
from pruner_zero.choices import Mode, Scope
from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric.expression import collected_for
from pruner_zero.metric.metric import Metric
from pruner_zero.models.structure import Matrix
from pruner_zero.pruning.shares import shares_by_role
from pruner_zero.settings.prune import MANY_INPUTS, WIDE, WIDE_METRIC
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.selection import Unstructured
from pruner_zero.sparsity.steps.step import STEPS, plan

Order = Literal["sequential", "one-shot"]


SPARSEGPT = "sparsegpt"
SPARSEGPT_SCORE = "sparsegpt-score"


@dataclass(frozen=True)
class Method:
    """One way to prune, named as the user wrote it.

    steps: the names of the steps after the mask, of `STEPS`, in the order they run.
    asymmetric: the target of the last step that supports it is a weighted mean of the dense model's
    outputs and of the outputs of the dense weights on the pruned model's inputs.
    reconstruct: how many passes over the calibration windows train each block towards the dense
    block's outputs, once its matrices are pruned. distill: how many steps of distillation follow
    once all matrices are pruned. damping: the share of the mean diagonal added to Hessians.
    rivals: methods whose masks are judged beside its own on the model at hand; the metric and the
    pattern of the best are taken.
    Raises PrunerZeroError where these cannot be combined.
    """

    name: str
    metric: Metric
    pattern: Pattern
    steps: tuple[str, ...] = ()
    asymmetric: bool = False
    reconstruct: int = 0
    distill: int = 0
    damping: float = 0.01
    rivals: tuple["Method", ...] = ()

    def __post_init__(self) -> None:
        if self.asymmetric and not any(STEPS[name].aims for name in self.steps):
            raise PrunerZeroError(
                f"{self.name} has +asymmetric without a step that uses it: "
                "add +obs, +exact or +refine"
            )

    @property
    def scope(self) -> Scope | None:
        """The comparison group of an unstructured pattern, None for any other pattern."""
        return self.pattern.scope

    @property
    def chooser(self) -> str | None:
        """The step that chooses the mask as it goes, None where scores alone choose it.

        SparseGPT's sweep does so with SparseGPT's score, which it computes, wherever an update
        follows.
        """
        updates = any(STEPS[name].changes == "weights" for name in self.steps)
        local = self.pattern.sweep_columns is not None
        its_score = self.metric.expression == Metric.of(SPARSEGPT_SCORE).expression
        return "obs" if updates and local and its_score else None

    def to_json(self) -> dict[str, Any]:
        """The groups and the steps around the metric, as JSON values."""
        return {
            "pattern": str(self.pattern),
            "scope": self.scope,
            "steps": list(self.steps),
            "asymmetric": self.asymmetric,
            "reconstruct": self.reconstruct,
            "distill": self.distill,
        }

    @property
    def kinds(self) -> frozenset[Kind]:
        """The statistics that the method needs."""
        needs_gram = any(STEPS[name].needs_gram for name in self.steps)
        return self._of_hessian | self.scoring_kinds if needs_gram else self.scoring_kinds

    @property
    def needs_text(self) -> bool:
        """Whether a calibration text is needed."""
        return bool(self.kinds or self.reconstruct or self.distill or not self.pattern.masks)

    @property
    def of_part(self) -> bool:
        """Whether its statistics are of a part of the windows alone, as `prune_model` says."""
        return bool(self.rivals or (self.reconstruct and self.distill))

    @property
    def scoring_kinds(self) -> frozenset[Kind]:
        """The statistics that the metric needs."""
        needed = collected_for(self.metric.needs)
        if self.pattern.statistic and self.pattern.decides:
            needed |= {self.pattern.statistic}
        return needed | self._of_hessian if "gram" in needed else needed

    @property
    def _of_hessian(self) -> frozenset[Kind]:
        """The statistics of the Hessian, which scores and steps share.

        So D, and the mask that the sweep chooses, are of the shrunk Hessian where a step shrinks.
        """
        shrinks = any(STEPS[name].shrinks for name in self.steps)
        return frozenset({"gram", "tokens"} if shrinks else {"gram"})

    def dense_kinds(self, order: Order) -> frozenset[Kind]:
        """The statistics of the dense model that have to be collected before the first block."""
        if self.rivals:
            alone = replace(self, rivals=())
            scored = (method.scoring_kinds for method in (alone, *self.rivals))
            return alone.dense_kinds(order).union(*scored)
        if order == "one-shot":
            return self.kinds
        if self.pattern.reach == "model":
            return self.scoring_kinds
        return frozenset(select(GradientStatistic, self.kinds))

    @property
    def at_once(self) -> bool:
        """Whether the scores of the whole model decide, and no step follows the mask."""
        return self.pattern.reach == "model" and not self.steps and not self.reconstruct

    def mode(self, asked: Mode) -> Order:
        """The order of work: sequential unless the whole model decides and no step follows.

        Steps after a mask that the dense model has decided can be sequential: each block is then
        calibrated on the pruned blocks before it. Raises PrunerZeroError for an order that is
        impossible.
        """
        if self.asymmetric and asked == "one-shot":
            raise PrunerZeroError(
                f"{self.name} compensates for earlier blocks, which needs --mode sequential: "
                "choose it, or leave out +asymmetric"
            )
        if self.reconstruct and asked == "one-shot":
            raise PrunerZeroError(
                f"{self.name} trains each block on the outputs of the pruned blocks before it, "
                "which needs --mode sequential: choose it, or leave out +reconstruct"
            )
        if not self.at_once:
            return "one-shot" if asked == "one-shot" else "sequential"
        if asked == "sequential":
            other = " or another --scope" if self.scope else ""
            raise PrunerZeroError(
                f"{self.name} needs the scores of all matrices at once, and --mode sequential "
                f"computes them block by block: choose --mode one-shot{other}"
            )
        return "one-shot"


def is_wide(matrices: Sequence[Matrix]) -> bool:
    """Whether the default method for `matrices` is that of wide models."""
    return max((matrix.weight.shape[1] for matrix in matrices), default=0) >= MANY_INPUTS


def for_wide(
    method: Method, mode: Mode, matrices: Sequence[Matrix], asked: Collection[str]
) -> Method:
    """The default method for a wide model: a mask without gradients, and other amounts.

    Where nothing else says which weights compete, the share of zeros differs between matrices, and
    the masks of equal shares and of the first rival race with it. asked: the settings that were
    asked for, whose amounts stay.
    """
    if method.reconstruct:
        amounts: dict[str, Any] = {n: amount for n, amount in WIDE.items() if n not in asked}
        method = replace(method, **amounts)
    if mode == "one-shot" or method.pattern.unit:
        return method
    pattern = method.rivals[0].pattern if method.rivals else method.pattern
    if pattern.reach == "model":
        return method
    even = replace(method, metric=Metric.of(WIDE_METRIC), pattern=pattern, rivals=())
    if not method.rivals or not isinstance(pattern, Unstructured):
        return even
    zeros = shares_by_role(matrices, pattern.sparsity)
    return replace(even, pattern=replace(pattern, zeros=zeros), rivals=(even, method.rivals[0]))


def describe_steps(steps: Sequence[str], asymmetric: bool = False, reconstruct: int = 0) -> str:
    """The steps of these names, if asymmetric with their target, as the end of a sentence.

    Empty for no steps. If one is from a package that is not installed, they are only named.
    reconstruct: passes of the reconstruction that follows them.
    """
    after = f", each block trained towards the dense block in {reconstruct} passes" * bool(
        reconstruct
    )
    if not all(name in STEPS for name in steps):
        return "".join(f", the step {name}" for name in steps) + after
    run = plan(steps)
    last = max((index for index, step in enumerate(run) if step.aims), default=-1)
    aim = " towards the dense model's outputs"
    words = (
        f", {step.words}{aim if asymmetric and i == last else ''}" for i, step in enumerate(run)
    )
    return "".join(words) + after
