"""Distillation: the kept weights trained towards the dense model's predictions."""

import math
from collections.abc import Callable, Sequence
from itertools import chain, islice
from pathlib import Path

from torch import Tensor, nn

from pruner_zero.devices import available_bytes
from pruner_zero.errors import PrunerZeroError
from pruner_zero.journal import Journal
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import (
    Matrix,
    check_weights,
    find_matrices,
    find_tables,
    parameters_of,
    size_of,
)
from pruner_zero.progress import note
from pruner_zero.tensor_file import TensorFile, write_tensors
from pruner_zero.text.token_windows import Windows, tokens_sha256
from pruner_zero.text.translation import Translation
from pruner_zero.training.dense_targets import write_targets
from pruner_zero.training.targets import LOGITS, divergence
from pruner_zero.training.train import (
    RATE,
    Batch,
    Budget,
    Point,
    Training,
    epochs,
    everything_in_float32,
)

# Tokens in an optimizer step, in as many windows as they fill.
TOKENS = 1024
# The most inputs of a matrix in the models that `RATE` was chosen on.
_INPUTS = 2048
# The share of the windows that only the validation loss is measured on, and the most of them.
_HELD_OUT, _MOST = 1 / 16, 16


def check_memory(
    model: LanguageModel,
    matrices: Sequence[Matrix],
    sparsity: float,
    *,
    cut: bool = False,
    copied: bool = False,
) -> None:
    """Raise PrunerZeroError where distillation of the dense `model` cannot fit in the memory.

    It holds the whole model, its trained weights in float32, a gradient of the largest of them, and
    some logits; what a model in memory takes already is not needed again. sparsity: the pruned
    share of the `matrices`. cut: whether pruned weights are cut out before, and all matrices
    trained. copied: whether the weights before are held too, as without a folder.
    """
    trained = parameters_of(find_matrices(model.model) if cut else matrices).values()
    ids = {id(parameter) for parameter in trained}
    wide = everything_in_float32(model.model, model.device)

    def bytes_each(parameter: Tensor) -> int:
        is_trained, size = id(parameter) in ids, parameter.element_size()
        return (4 if wide or is_trained else size) + (size if copied and is_trained else 0)

    held = sum(p.numel() * bytes_each(p) for p in model.model.parameters())
    if cut:
        held -= round(sum(m.weight.numel() * bytes_each(m.parameter) for m in matrices) * sparsity)
    more = held + 2 * 4 * max(parameter.numel() for parameter in trained) + 2 * 4 * LOGITS
    devices = {model.device}
    if not model.on_disk:
        more -= size_of(model.model)[1]
        devices = {parameter.device for parameter in model.model.parameters()}
    available = [available_bytes(device) for device in devices]
    known = [count for count in available if count is not None]
    if len(known) == len(available) and more > sum(known):
        raise PrunerZeroError(
            f"distillation needs at least {more / 2**30:.1f} GiB beside {model.name}, and "
            f"{sum(known) / 2**30:.1f} are available: free memory, or leave it out, by --distill 0 "
            "or without +distill=N"
        )


def distillation(
    dense: LanguageModel,
    windows: Windows,
    steps: int,
    *,
    seed: int = 0,
    folder: Path | None = None,
    translation: Translation | None = None,
) -> Callable[[nn.Module, Sequence[Matrix]], Sequence[Point]]:
    """Prepare to train what pruning will leave of `dense`: call it first, and the result last.

    The dense model's predictions are written at once, to a file in `folder` if one is given, so
    that pruning may change `dense` in place. The returned function takes the pruned model, in
    memory, and its matrices whose kept weights are trained in place, and returns the learning
    curve. Where the loss on the last windows, which are not trained on, is higher at the end, the
    weights before are put back; until then a file in `folder` holds them, without one the memory.

    The loss is KL(dense ‖ pruned) over the next tokens of `windows`, as by `divergence`, without
    the next-token loss of the text, so that text that the dense model wrote can be used. Every step
    takes about 1024 tokens, or all windows. The steps alone decide the result, also of a run that
    goes on from its journal in `folder`; a damaged journal is deleted, since training takes
    minutes. translation: to the pruned model's tokenizer where that has fewer tokens, as
    `write_targets` takes it. Raises PrunerZeroError for fewer than two windows; the function raises
    it where the loss is no longer finite.

    Source: distillation, Hinton et al. 2015 (1503.02531); of pruned language models, Sanh et al.
    2020 (2005.07683). On text that the teacher wrote: Kim & Rush 2016 (1606.07947).
    """
    if len(windows) < 2:
        raise PrunerZeroError(
            "distillation needs 2 calibration windows, one of them for validation: give more "
            "--windows, or --distill 0"
        )
    held_out = max(1, min(round(len(windows) * _HELD_OUT), _MOST))
    count = len(windows) - held_out
    batch = max(1, min(TOKENS // windows.seqlen, count))
    learned = list(islice(chain.from_iterable(epochs(count, seed)), steps * batch))
    validation = list(range(count, len(windows)))
    numbers = sorted({*learned, *validation})
    tokens = windows.tokens
    if translation is not None:
        tokens = translation.windows(tokens)[0]
    identity = {"tokens": tokens_sha256(tokens), "numbers": numbers}
    kept = Journal(folder / "targets", identity, overwrite=True) if folder else None
    targets = write_targets(dense, windows.tokens, numbers, kept, translation)

    def of(chosen: Sequence[int]) -> Batch:
        target = targets.of(chosen)
        return Batch(tokens[list(chosen)], lambda p, logits: divergence(logits, target.part(p)))

    def train(model: nn.Module, matrices: Sequence[Matrix]) -> Sequence[Point]:
        check_weights(matrices)
        if translation is not None:
            matrices = [*matrices, *find_tables(model)]
        names = {"matrices": [matrix.name for matrix in matrices]}
        journal = Journal(folder / "steps", names, overwrite=True) if folder else None
        before = _stored(matrices, folder)
        training = Training(
            model,
            matrices,
            lambda done: (of(learned[batch * step :][:batch]) for step in range(done, steps)),
            # As many at a time as in a step, since every batch casts all weights.
            lambda: (of(validation[i:][:batch]) for i in range(0, held_out, batch)),
            Budget(steps),
            learning_rate(matrices),
            "distillation",
            "leave out the distillation, by --distill 0 or without +distill=N",
            validations=1,
            journal=journal,
        )
        training.run()
        curve = training.state.curve
        if curve[-1].validation_loss > curve[0].validation_loss:
            for name, parameter in parameters_of(matrices).items():
                parameter.data.copy_(before(name))
            note(
                "distillation raised the loss on held-out windows from "
                f"{curve[0].validation_loss:.4f} to {curve[-1].validation_loss:.4f}, so that the "
                "weights before it are kept: give it more text by --windows, fewer steps, or leave "
                "it out by --distill 0"
            )
        return curve

    return train


def _stored(matrices: Sequence[Matrix], folder: Path | None) -> Callable[[str], Tensor]:
    """The weights of now by parameter name, from a file in `folder`, from memory where None."""
    weights = {name: parameter.data for name, parameter in parameters_of(matrices).items()}
    if folder is None:
        return {name: values.clone() for name, values in weights.items()}.__getitem__
    path = folder / "before.safetensors"
    write_tensors(path, weights)
    return TensorFile(path).read


def learning_rate(matrices: Sequence[Matrix]) -> float:
    """The highest rate for `matrices`: `RATE`, and less where one has more than 2048 inputs.

    A step of a given size for each weight changes the outputs of a larger matrix by more: it adds
    up over the inputs, the weights themselves by the root of their number. So the rate, a share of
    the weights, falls with that root.
    Source: a spectral condition for feature learning (Yang et al. 2023, 2310.17813).
    """
    inputs = max(matrix.weight.shape[-1] for matrix in matrices)
    return RATE * min(1.0, math.sqrt(_INPUTS / inputs))
