"""Distillation after pruning: the kept weights trained towards the dense model's predictions."""

from collections.abc import Sequence
from dataclasses import replace

from pruner_zero.devices import available_bytes
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import (
    LanguageModel,
    Matrix,
    check_weights,
    experts_of,
    parameters_of,
    size_of,
)
from pruner_zero.progress import SILENT, Progress
from pruner_zero.recovery.checkpoint import Checkpoint
from pruner_zero.recovery.train import Point, Training
from pruner_zero.recovery.trainable import KeptWeights, Trainable, float32_weights
from pruner_zero.settings import RecoverSettings
from pruner_zero.text.windows import Windows

# Tokens in an optimizer step, in as many windows as they fill.
TOKENS = 1024
# Bytes of a trained weight: its position, its value, its gradient and two moments.
_TRAINED = 5 * 4
# The share of the windows that only the validation loss is measured on.
_HELD_OUT = 1 / 16


def check_distillation(windows: Windows) -> None:
    """Raise PrunerZeroError where there are too few windows for `distill`."""
    if len(windows) < 2:
        raise PrunerZeroError(
            "distillation needs 2 calibration windows, one of them for validation: give more "
            "--windows, or --distill 0"
        )


def least_bytes(
    model: LanguageModel, matrices: Sequence[Matrix], sparsity: float, *, cut: bool = False
) -> int:
    """The bytes that `distill` holds at least: the teacher, the weights in float32, the optimizer.

    model: the dense one. sparsity: the pruned share of the `matrices`. cut: whether pruned weights
    are cut out of the model before.
    """
    parameters, held = size_of(model.model)
    weights = sum(matrix.weight.numel() for matrix in matrices)
    left = parameters - round(weights * sparsity) if cut else parameters
    return held + 4 * left + _TRAINED * round(weights * (1 - sparsity))


def check_memory(needed: int, model: LanguageModel) -> None:
    """Raise PrunerZeroError where `distill`, with `needed` bytes, cannot fit in the memory.

    The memory is what is still available on the devices that hold the dense `model`, whose bytes
    are part of those needed.
    """
    devices = {parameter.device for parameter in model.model.parameters()}
    available = [available_bytes(device) for device in devices]
    known = [count for count in available if count is not None]
    more = needed - size_of(model.model)[1]
    if len(known) == len(available) and more > sum(known):
        raise PrunerZeroError(
            f"distillation needs at least {more / 2**30:.1f} GiB beside {model.name}, and "
            f"{sum(known) / 2**30:.1f} are available: free memory, or leave it out, by --distill 0 "
            "or without +distill=N"
        )


def distill(
    pruned: LanguageModel,
    teacher: LanguageModel,
    windows: Windows,
    steps: int,
    *,
    matrices: Sequence[Matrix],
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    progress: Progress = SILENT,
) -> Sequence[Point]:
    """Train the kept weights of `pruned`, in place, for `steps` steps; return the learning curve.

    matrices: those of `pruned` whose weights are trained; all other weights stay as they are.
    The loss is KL(teacher ‖ pruned) over the next tokens of `windows`, without the next-token loss
    of the text, so that text that the dense model wrote can be used. Pruned weights stay zero.
    Every step takes about 1024 tokens, or all windows. The steps alone decide the result, which is
    the same for an interrupted run with a `checkpoint`. Raises PrunerZeroError for fewer than two
    windows, and where the loss is no longer finite.

    Source: distillation, Hinton et al. 2015 (1503.02531); of pruned language models, Sanh et al.
    2020 (2005.07683). On text that the teacher wrote: Kim & Rush 2016 (1606.07947).
    """
    check_distillation(windows)
    held_out = max(1, round(len(windows) * _HELD_OUT))
    settings = RecoverSettings(
        model=pruned.name,
        text=windows.corpus,
        teacher=teacher.name,
        steps=steps,
        teacher_share=1.0,
        batch=max(1, min(TOKENS // windows.seqlen, len(windows) - held_out)),
        seqlen=windows.seqlen,
        seed=seed,
        validation_windows=held_out,
        keep="last",
    )
    check_weights(matrices)
    with float32_weights(pruned.model):
        trainables: list[Trainable] = [
            KeptWeights(name, parameter, experts_of(matrices, name))
            for name, parameter in parameters_of(matrices).items()
        ]
        training = Training(
            pruned.model,
            trainables,
            [replace(windows, tokens=windows.tokens[:-held_out])],
            [1.0],
            replace(windows, tokens=windows.tokens[-held_out:]),
            settings,
            teacher.model,
            checkpoint,
            validations=1,
            remedy="leave out the distillation, by --distill 0 or without +distill=N",
        )
        training.run(progress)
    return training.state.curve
