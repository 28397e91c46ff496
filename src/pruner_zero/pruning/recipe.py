"""A recipe: all that will be done with a model, in order."""

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from pruner_zero.calibration.statistics import Kind
from pruner_zero.metric.expression import collected_for
from pruner_zero.metric.metric import Metric
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_matrices, is_wide
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.update import Update
from pruner_zero.structure.cut import Cut

Order = Literal["sequential", "one-shot"]


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
    """What is done with a model, in order: text, masks, update, training of blocks, distillation.

    name: as the user wrote it. text: None where nothing needs one. masks: how they are chosen, None
    where a rule decides alone what is cut. update: what changes the kept weights of a matrix after
    its mask. reconstruct: how many passes over the calibration windows train each block towards the
    dense block's outputs, once its matrices are pruned. opens_masks: whether masks follow the
    weights meanwhile. cut: the units that are removed, None where zeros stay where they are.
    distill: how many steps of distillation follow once all matrices are pruned. dense_inputs:
    whether an update takes the inputs that matrices have in the dense model.
    """

    name: str
    masks: Scored | Race | None
    text: Text | None = None
    update: Update | None = None
    reconstruct: int = 0
    opens_masks: bool = False
    cut: Cut | None = None
    distill: int = 0
    dense_inputs: bool = False

    def fitted(self, language_model: LanguageModel) -> Self:
        """The recipe with its cut, and `opens_masks`, for a dense model. Raises PrunerZeroError.

        The weights that an update leaves, and units, belong to their mask. In wide models masks
        stay, too.
        """
        cut, masks = self.cut and self.cut.fit(language_model), self.masks
        if cut and cut.when == "masks" and isinstance(masks, Scored):
            masks = replace(masks, pattern=cut.pattern)
        follows = self.reconstruct > 0 and not (self.update or cut)
        follows = follows and not is_wide(find_matrices(language_model.model))
        return replace(self, cut=cut, masks=masks, opens_masks=follows)

    def settled(self, masks: Scored | Race | None, cut: Cut | None) -> Self:
        """The recipe with the masks that won a race, and the units that are decided to go."""
        if cut and cut.compares and isinstance(masks, Scored):
            masks = replace(masks, pattern=cut.pattern)
        return replace(self, masks=masks, cut=cut)

    @property
    def entries(self) -> tuple[Scored, ...]:
        """The masks that race; a single one without a race, none where a rule decides."""
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
        chosen = self.cut is None or self.cut.when == "masks"
        return self.entries[0].pattern if self.entries and chosen else None

    @property
    def order(self) -> Order:
        """Sequential: each block has its statistics on the outputs of the pruned blocks before it.

        That is so where weights change on the way. One-shot: all statistics are of the dense model.
        """
        updated = self.update is not None and not self.dense_inputs
        return "sequential" if updated or self.reconstruct else "one-shot"

    def kinds(self, update: bool = True) -> frozenset[Kind]:
        """The statistics by which masks or units are chosen, and those of the `update`.

        The Hessian of both is the same one, shrunk where the update shrinks it.
        """
        kinds = frozenset[Kind]().union(*(collected_for(e.metric.needs) for e in self.entries))
        if self.cut and self.cut.statistic:
            kinds |= {self.cut.statistic}
        if self.update and (update or "gram" in kinds):
            kinds |= {"gram", "tokens"} if self.update.shrinks else {"gram"}
        return kinds

    def removed(self) -> Cut | Pattern:
        """The units or the zeros that go."""
        removed = self.cut or self.pattern
        assert removed is not None
        return removed

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
        if self.update:
            lines.append(f"then: {self.update.words}")
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
        of_text = self.cut is not None and self.cut.when == "text"
        return lines if of_text else [*lines, f"order: {self.order}, {order}"]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_json(self) -> dict[str, Any]:
        """The parts around the metric, as JSON values."""
        return {
            "recipe": self.lines(),
            "pattern": str(self.removed()),
            "scope": self.pattern and self.pattern.scope,
            "update": self.update and self.update.name,
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
