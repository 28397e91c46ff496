"""Steps that follow a mask: their interface, their names, and the order in which they run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.plugins import Registry
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.pattern import Pattern


@dataclass(frozen=True)
class Layer:
    """The state of one matrix before a step.

    dense: (out, in), the dense weights. hessian: the Hessian of its input, None where it was not
    collected. pattern: the pattern of zeros. mask: (out, in) bool, True is kept; None where the
    step chooses it. updated: (out, in) float32, the weights after the steps before; None where no
    step has changed weights. Raises PrunerZeroError naming `name` where a weight is not finite;
    ValueError for shapes.
    """

    dense: Tensor
    hessian: Hessian | None
    pattern: Pattern
    mask: Tensor | None = None
    updated: Tensor | None = None
    name: str = "matrix"

    def __post_init__(self) -> None:
        shape = tuple(self.dense.shape)
        if self.mask is not None and self.mask.shape != shape:
            raise ValueError(f"mask of {self.name} is {tuple(self.mask.shape)}, its weight {shape}")
        if not self.dense.isfinite().all():
            raise PrunerZeroError(f"weights of {self.name} are not finite: exclude the matrix")

    @property
    def weight(self) -> Tensor:
        """The weights so far (out, in) float32; the values of pruned weights are undefined."""
        return self.dense.detach().float() if self.updated is None else self.updated

    @property
    def required_mask(self) -> Tensor:
        """The mask of a step that does not choose it. Raises ValueError where there is none."""
        if self.mask is None:
            raise ValueError(f"the mask of {self.name} must be chosen before this step")
        return self.mask

    @property
    def required_hessian(self) -> Hessian:
        """The Hessian of a step that needs it. Raises ValueError where it was not collected."""
        if self.hessian is None:
            raise ValueError(f"the step needs the Gram matrix of the inputs of {self.name}")
        return self.hessian


@dataclass(frozen=True)
class Updated:
    """The result of a step: weight (out, in) float32, 0.0 where `mask` (True is kept) prunes.

    note: a remark for the user, such as a fallback.
    """

    weight: Tensor
    mask: Tensor
    note: str | None = None


@dataclass(frozen=True)
class Step:
    """A step after a mask, with its descriptions and its facts.

    name: as written after a `+`. run: the step. words: what it does, for the model card, after "the
    metric …,". help: what it does in a few words, for `--help` and the reference. changes: a step
    that changes the mask alone runs before those that change weights. option: the command-line
    option that names it too. needs_gram: it needs a `Layer.hessian`. damps: it uses the damped
    Hessian, and the record has the damping. shrinks: the Hessian is shrunk for the number of tokens
    behind it. estimate: a cheaper `run` for the search's closed-form error, close to it for a few
    rows.
    """

    name: str
    run: Callable[[Layer], Updated]
    words: str
    help: str
    changes: Literal["mask", "weights"] = "weights"
    option: Literal["refine", "update"] | None = None
    needs_gram: bool = True
    damps: bool = False
    shrinks: bool = False
    estimate: Callable[[Layer], Updated] | None = None


def _built_in(name: str) -> Step:
    # These modules import this one.
    from pruner_zero.sparsity.steps.least_squares import EXACT
    from pruner_zero.sparsity.steps.swaps import REFINE
    from pruner_zero.sparsity.steps.sweep import OBS

    return {step.name: step for step in (REFINE, OBS, EXACT)}[name]


STEPS: Registry[Step] = Registry(
    "steps",
    Step,
    deferred={name: partial(_built_in, name) for name in ("refine", "obs", "exact")},
)


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """The names of steps in the order they run: those that change the mask alone come first."""
    return tuple(sorted(dict.fromkeys(names), key=lambda name: STEPS[name].changes != "mask"))


def plan(names: Sequence[str], chooser: str | None = None) -> tuple[Step, ...]:
    """The steps of these names, in order.

    chooser: the step that chooses the mask; it runs first, and again where the mask changed.
    """
    steps = [STEPS[name] for name in in_order(names)]
    if chooser is not None and (not steps or steps[0].name != chooser):
        steps.insert(0, STEPS[chooser])
    return tuple(steps)


def run_steps(layer: Layer, steps: Sequence[Step]) -> Updated:
    """Run `steps` on `layer`, one after the other; the last result, with all notes joined.

    Raises what the steps raise.
    """
    notes: list[str] = []
    weight, mask = layer.updated, layer.mask
    for step in steps:
        result = step.run(replace(layer, mask=mask, updated=weight))
        weight, mask = result.weight, result.mask
        notes += [result.note] if result.note else []
    if mask is None or weight is None:
        raise ValueError(f"no step has chosen a mask of {layer.name}")
    damping = used_damping(layer.hessian, steps)
    if layer.hessian is not None and damping not in (None, layer.hessian.damping):
        notes.insert(0, f"damping raised to {damping:g} for the Cholesky factor")
    return Updated(weight, mask, "; ".join(notes) or None)


def used_damping(hessian: Hessian | None, steps: Sequence[Step]) -> float | None:
    """The damping with which `steps` solved; None where none of them is damped."""
    if hessian is None or not any(step.damps for step in steps):
        return None
    return hessian.used_damping
