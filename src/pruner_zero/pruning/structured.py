"""The pattern that removes whole units of every block, as a mask until the model is saved."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel

from pruner_zero.choices import Structure
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import Coupling, find_couplings, shrink
from pruner_zero.sparsity import Pattern, Reach, Unstructured
from pruner_zero.sparsity.selection import comparable, keep_highest


@dataclass(frozen=True)
class Structured(Pattern):
    """The units with the lowest totals go, the same number of every block.

    A unit's total is the sum of the squared scores of its columns of the consumer, with the sign of
    the score: for Wanda the sum of W²·X² over all outputs, what it contributes to them. sparsity:
    the share of units that go, in (0, 1); the number that stays is the nearest multiple of
    `multiple`. couplings: of the model, which `of_model` finds. Raises PrunerZeroError for a share
    that leaves no unit, or all.
    Source: the total is that of Wanda-sp in FLAP (An et al. 2024, 2312.11983), squared before it is
    summed; the coupled rows and columns are LLM-Pruner's (Ma et al. 2023, 2305.11627).
    """

    sparsity: float
    structure: Structure = "channels"
    multiple: int = 32
    couplings: tuple[Coupling, ...] = ()

    def __post_init__(self) -> None:
        Unstructured(self.sparsity)

    @property
    def reach(self) -> Reach:
        return "block"

    @property
    def update(self) -> str:
        return "exact"

    def of_model(self, model: PreTrainedModel) -> "Structured":
        """The pattern for one model, with the share of units that goes there.

        Raises PrunerZeroError where the model has no units that can be removed.
        """
        fitted = replace(self, couplings=tuple(find_couplings(model, self.structure)))
        share = 1 - fitted.kept / fitted.couplings[0].count
        return replace(fitted, sparsity=share)

    @property
    def names(self) -> list[str]:
        """The matrices that lose rows or columns."""
        return [name for c in self.couplings for name in (*c.producers, c.consumer)]

    @property
    def kept(self) -> int:
        """How many units of each coupling stay."""
        count = self.couplings[0].count
        kept = round(count * (1 - self.sparsity) / self.multiple) * self.multiple
        if 0 < kept < count:
            return kept
        possible = range(self.multiple, count, self.multiple)
        if not possible:
            raise PrunerZeroError(
                f"a block has {count} {self.structure}, no more than --multiple-of "
                f"{self.multiple}: choose a smaller one"
            )
        nearest = 1 - (possible[-1] if kept else possible[0]) / count
        raise PrunerZeroError(
            f"--sparsity {self.sparsity:g} of {count} {self.structure} leaves {kept} where a "
            f"multiple of {self.multiple} stays: choose --sparsity {nearest:.4f}, the nearest "
            "possible, or a smaller --multiple-of"
        )

    def choose(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        masks: dict[str, Tensor] = {}
        for coupling in self.couplings:
            inside = [name for name in (*coupling.producers, coupling.consumer) if name in scores]
            if not inside:
                continue
            if coupling.consumer not in inside:
                raise PrunerZeroError(
                    f"calibration left the inputs of {coupling.consumer} zero, so that no unit of "
                    "its block can be chosen: give more text, or another metric"
                )
            values = comparable(scores[coupling.consumer], coupling.consumer).double()
            totals = (values * values.abs()).sum(0).view(coupling.count, -1).sum(1)
            units = keep_highest(totals[None], coupling.count - self.kept)[0]
            for name in inside:
                axis = int(name == coupling.consumer)
                shape = scores[name].shape
                along = units.repeat_interleave(shape[axis] // coupling.count)
                masks[name] = (along if axis else along[:, None]).expand(shape)
        return masks

    def shrink(self, model: PreTrainedModel) -> None:
        """Cut the masked units out of the model, in place."""
        shrink(model, self.couplings, self.structure, self.kept)

    def __str__(self) -> str:
        return f"{100 * self.sparsity:.4g}% of the {self.structure} of every block"
