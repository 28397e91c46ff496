"""A recipe: all that will be done with a model, in order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from pruner_zero.calibration.statistics import GradientStatistic, Kind, select
from pruner_zero.choices import Mode, Scope
from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric.expression import collected_for
from pruner_zero.metric.metric import Metric
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_matrices, is_wide
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.selection import SemiStructured
from pruner_zero.sparsity.steps.step import STEPS, plan
from pruner_zero.structure.cut import Cut

Order = Literal["sequential", "one-shot"]
SPARSEGPT = "sparsegpt"
SPARSEGPT_SCORE = "sparsegpt-score"


@dataclass(frozen=True)
class Text:
    """How much calibration text: `tokens` in all, in windows of `seqlen` tokens; and its name."""

    tokens: int
    seqlen: int
    name: str = "the calibration text"

    @property
    def windows(self) -> int:
        """The number of windows."""
        return max(1, self.tokens // self.seqlen)

    def __str__(self) -> str:
        return f"{self.windows} windows of {self.seqlen} tokens of {self.name}"


@dataclass(frozen=True)
class Scored:
    """Masks by the scores of a metric, of which the pattern prunes the lowest."""

    metric: Metric
    pattern: Pattern

    def __str__(self) -> str:
        return f"{self.metric.expression} ({self.pattern})"


@dataclass(frozen=True)
class Race:
    """The mask of those `entries` that leaves the model at hand nearest to the dense one."""

    entries: tuple[Scored, ...]


@dataclass(frozen=True)
class Recipe:
    """What is done with a model, in order: text, masks, steps, training of blocks, cut, training.

    name: as the user wrote it. text: None where nothing needs one. masks: how they are chosen, None
    where a rule decides alone what is cut. steps: the names of the steps after the mask, of
    `STEPS`, in the order they run. damping: the share of the mean diagonal added to Hessians. mode:
    the order of work that was asked for. permute: whether each block is brought into the order in
    which its N:M masks keep the most, which changes nothing that it computes. reconstruct: how many
    passes over the calibration windows train each block towards the dense block's outputs, once its
    matrices are pruned, and their masks with them as `opens_masks` says. masks_stay: whether they
    do not, as in wide models. cut: the units that are removed, None where zeros stay where they
    are. distill: how many steps of distillation follow once all matrices are pruned.
    """

    name: str
    masks: Scored | Race | None
    text: Text | None = None
    steps: tuple[str, ...] = ()
    damping: float = 0.01
    mode: Mode = "auto"
    permute: bool = False
    reconstruct: int = 0
    masks_stay: bool = False
    cut: Cut | None = None
    distill: int = 0

    def fitted(self, language_model: LanguageModel) -> Self:
        """The recipe with its cut, and `masks_stay`, of a dense model. Raises PrunerZeroError."""
        if self.cut is None:
            return replace(self, masks_stay=is_wide(find_matrices(language_model.model)))
        cut = self.cut.fit(language_model)
        masks = self.masks
        if cut.when == "masks" and isinstance(masks, Scored):
            masks = replace(masks, pattern=cut.pattern)
        return replace(self, cut=cut, masks=masks)

    def settled(self, masks: "Scored | Race | None", cut: Cut | None) -> Self:
        """The recipe with the masks that won a race, and the units that are decided to go.

        The order of work stays the same.
        """
        mode = "one-shot" if self.order == "one-shot" else self.mode
        if cut and cut.compares and isinstance(masks, Scored):
            masks = replace(masks, pattern=cut.pattern)
        return replace(self, masks=masks, cut=cut, mode=mode)

    @property
    def entries(self) -> tuple[Scored, ...]:
        """The masks that race; a single one without a race."""
        if isinstance(self.masks, Race):
            return self.masks.entries
        return (self.masks,) if self.masks else ()

    @property
    def metric(self) -> Metric | None:
        """The metric, of a race the first one's; None where a rule decides."""
        return self.entries[0].metric if self.entries else None

    @property
    def pattern(self) -> Pattern | None:
        """The pattern of zeros, of a race the first one's; None where no metric chooses masks."""
        return self.entries[0].pattern if self.entries and self._chooses_masks else None

    @property
    def _chooses_masks(self) -> bool:
        return self.cut is None or self.cut.when == "masks"

    @property
    def what(self) -> str:
        """The zeros or the units that go, in words."""
        return str(self.cut or self.pattern)

    @property
    def share(self) -> float:
        """The share of the weights, or of the units, that goes."""
        chosen = self.cut or self.pattern
        assert chosen is not None
        return chosen.sparsity

    @property
    def scope(self) -> Scope | None:
        """The comparison group of an unstructured pattern, None for any other pattern."""
        return self.pattern.scope if self.pattern else None

    @property
    def has_masks(self) -> bool:
        """Whether matrices get masks; False where nothing of a block goes."""
        return self.cut is None or self.cut.when != "text"

    @property
    def sweep(self) -> str | None:
        """The step that chooses the mask as it goes, None where scores alone choose it.

        SparseGPT's sweep does so with SparseGPT's score, which it computes, wherever an update
        follows.
        """
        if self.pattern is None or self.pattern.sweep_columns is None or self.metric is None:
            return None
        updates = any(STEPS[name].changes == "weights" for name in self.steps)
        its_score = self.metric.expression == Metric.of(SPARSEGPT_SCORE).expression
        return "obs" if updates and its_score else None

    # The statistics that are needed.

    @property
    def kinds(self) -> frozenset[Kind]:
        """The statistics that masks and steps need."""
        needs_gram = any(STEPS[name].needs_gram for name in self.steps)
        return self._of_hessian | self.scoring_kinds if needs_gram else self.scoring_kinds

    @property
    def scoring_kinds(self) -> frozenset[Kind]:
        """The statistics by which masks or units are chosen."""
        needed = frozenset[Kind]().union(*(collected_for(e.metric.needs) for e in self.entries))
        if self.cut and self.cut.statistic:
            needed |= {self.cut.statistic}
        return needed | self._of_hessian if "gram" in needed else needed

    @property
    def opens_masks(self) -> bool:
        """Whether masks follow the weights while blocks are trained.

        The weights that a step leaves, and units, belong to their mask.
        """
        return self.reconstruct > 0 and not (self.masks_stay or self.steps or self.cut)

    @property
    def _of_hessian(self) -> frozenset[Kind]:
        """The statistics of the Hessian, which scores and steps share.

        So D, and the mask that the sweep chooses, are of the shrunk Hessian where a step shrinks.
        """
        shrinks = any(STEPS[name].shrinks for name in self.steps)
        return frozenset({"gram", "tokens"} if shrinks else {"gram"})

    @property
    def dense_kinds(self) -> frozenset[Kind]:
        """The statistics of the dense model that have to be collected before the first block."""
        if self.order == "one-shot":
            return self.kinds
        compares = self.cut is not None and self.cut.compares > 0
        if self._from_dense or compares or isinstance(self.masks, Race):
            return self.scoring_kinds | select(GradientStatistic, self.kinds).keys()
        return frozenset(select(GradientStatistic, self.kinds))

    @property
    def needs_text(self) -> bool:
        """Whether a calibration text is needed."""
        trains = self.reconstruct or self.distill or self.permute
        return bool(self.kinds or trains or not self.has_masks)

    @property
    def of_part(self) -> bool:
        """Whether its statistics are of a part of the windows alone, as `run_recipe` says."""
        compares = self.cut is not None and self.cut.compares > 0
        return compares or isinstance(self.masks, Race) or bool(self.reconstruct and self.distill)

    # The order of work.

    @property
    def _from_dense(self) -> bool:
        """Whether the whole dense model decides what goes."""
        return self.pattern is None or self.pattern.reach == "model"

    @property
    def at_once(self) -> bool:
        """Whether the scores of the whole model decide, and nothing follows the masks."""
        return self._from_dense and not self.steps and not self.reconstruct

    @property
    def order(self) -> Order:
        """The order of work: sequential unless the whole model decides and no step follows.

        Sequential: each block is calibrated on the pruned blocks before it. Steps after a mask that
        the dense model has decided can be sequential. Raises PrunerZeroError for an order that is
        impossible.
        """
        if self.reconstruct and self.mode == "one-shot":
            raise PrunerZeroError(
                f"{self.name} trains each block on the outputs of the pruned blocks before it, "
                "which needs --mode sequential: choose it, or leave out +reconstruct"
            )
        if self.permute and (self.mode == "one-shot" or not self.can_permute):
            raise PrunerZeroError(
                f"{self.name} permutes each block before its masks, which needs --pattern N:M, "
                "--mode sequential and a metric without gradients: choose them, or leave out "
                "+permute"
            )
        if not self.at_once:
            return "one-shot" if self.mode == "one-shot" else "sequential"
        if self.mode == "sequential":
            other = " or another --scope" if self.scope else ""
            raise PrunerZeroError(
                f"{self.name} decides over the whole model at once, and --mode sequential works "
                f"block by block: choose --mode one-shot{other}"
            )
        return "one-shot"

    @property
    def can_permute(self) -> bool:
        """Whether its masks are N:M, and chosen by statistics of single blocks alone."""
        return isinstance(self.pattern, SemiStructured) and not select(
            GradientStatistic, self.kinds
        )

    # What it says.

    def lines(self) -> list[str]:
        """The recipe in words, a line for each part, in the order of work."""
        lines = [f"text: {self.text}"] if self.text else []
        if self.cut:
            by = self.cut.rule or (self.metric and self.metric.expression)
            lines.append(f"removed: {_removed(self.cut)}, by {by}")
        elif isinstance(self.masks, Race):
            lines.append("mask: the one that leaves the least divergence on held-out windows, of")
            lines += [f"  {entry}" for entry in self.entries]
        else:
            lines.append(f"mask: {self.masks}")
        if self.permute:
            lines.append("before it: values and channels in the order that keeps the most, exactly")
        if after := describe_steps(self.steps).removeprefix(", "):
            lines.append(f"then: {after}")
        if self.reconstruct:
            passes = f"in {self.reconstruct} pass{'es' * (self.reconstruct > 1)}"
            line = f"each block: trained {passes} towards the dense block's outputs"
            lines.append(line + ", its masks chosen anew meanwhile" * self.opens_masks)
        if self.distill:
            lines.append(
                f"the whole: trained in {self.distill} steps towards the dense model's predictions"
            )
        order = "block by block, each on the outputs of the pruned blocks before it"
        if self.order == "one-shot":
            order = "all statistics of the dense model"
        return [*lines, f"order: {self.order}, {order}"] if self.has_masks else lines

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_json(self) -> dict[str, Any]:
        """The parts around the metric, as JSON values."""
        return {
            "recipe": self.lines(),
            "pattern": self.what,
            "scope": self.scope,
            "steps": list(self.steps),
            "permute": self.permute,
            "reconstruct": self.reconstruct,
            "distill": self.distill,
        }


def _removed(cut: Cut) -> str:
    """What a cut removes, also where only its calibration says how many units that are."""
    if cut.sparsity or not cut.parameters:
        return str(cut)
    share = f"{cut.parameters:.4g} of the"
    left = share if cut.parameters <= 1 else f"{cut.parameters:,.0f}"
    return f"{cut.unit} until {left} parameters are left"


def describe_steps(steps: Sequence[str]) -> str:
    """The steps of these names, as the end of a sentence.

    Empty for no steps. If one is from a package that is not installed, they are only named.
    """
    if not all(name in STEPS for name in steps):
        return "".join(f", the step {name}" for name in steps)
    return "".join(f", {step.words}" for step in plan(steps))
