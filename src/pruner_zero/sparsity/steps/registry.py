"""The steps that can follow a mask by name, and the order in which a method's steps run."""

from collections.abc import Sequence
from dataclasses import replace

from pruner_zero.plugins import Registry
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.steps.step import Layer, Step, Updated

_FOLDER = "pruner_zero.sparsity.steps"
STEPS: Registry[Step] = Registry(
    "steps",
    Step,
    deferred={
        "refine": f"{_FOLDER}.swaps:REFINE",
        "obs": f"{_FOLDER}.sweep:OBS",
        "exact": f"{_FOLDER}.least_squares:EXACT",
        "refine+exact": f"{_FOLDER}.exact_swaps:REFINE_EXACT",
    },
)


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """The names of steps in the order they run: those that change the mask alone come first."""
    return tuple(sorted(dict.fromkeys(names), key=lambda name: STEPS[name].changes != "mask"))


def plan(names: Sequence[str], chooser: str | None = None) -> tuple[Step, ...]:
    """The steps of these names, in order.

    Two neighbours whose joined name is a step of its own, as "refine+exact", become that step.
    chooser: the step that chooses the mask; it runs first, and again where the mask changed.
    """
    steps: list[Step] = []
    for name in in_order(names):
        joined = f"{steps[-1].name}+{name}" if steps else name
        if steps and joined in STEPS:
            steps[-1] = STEPS[joined]
        else:
            steps.append(STEPS[name])
    if chooser is not None and (not steps or steps[0].name != chooser):
        steps.insert(0, STEPS[chooser])
    return tuple(steps)


def run_steps(layer: Layer, steps: Sequence[Step]) -> Updated:
    """Run `steps` on `layer`, one after the other; the last result, with all notes joined.

    Where the Hessian has a target, it is used by the last step that supports it, and by a step that
    chooses the mask. Raises what the steps raise.
    """
    last = max((place for place, step in enumerate(steps) if step.aims), default=-1)
    notes: list[str] = []
    weight, mask = layer.updated, layer.mask
    for place, step in enumerate(steps):
        hessian = layer.hessian
        if hessian is not None and place != last and mask is not None:
            hessian = hessian.without_target()
        result = step.run(replace(layer, hessian=hessian, mask=mask, updated=weight))
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
