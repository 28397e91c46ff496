"""`recover`: fine-tune a pruned model on a text, its zeros kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pruner_zero.devices import naming_out_of_memory, torch_threads
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import (
    LanguageModel,
    Matrix,
    as_language_model,
    check_tokens,
    check_weights,
    find_matrices,
    parameters_of,
    save_model,
)
from pruner_zero.progress import SILENT, Progress
from pruner_zero.provenance import Cost, measured, provenance
from pruner_zero.recovery.checkpoint import Checkpoint
from pruner_zero.recovery.lora import MaskedAdapters
from pruner_zero.recovery.loss import check_teacher
from pruner_zero.recovery.result import RecoverResult
from pruner_zero.recovery.train import Training
from pruner_zero.recovery.trainable import (
    KeptWeights,
    Trainable,
    check_pruned,
    check_trainable,
    float32_weights,
    sparsity,
)
from pruner_zero.recovery.windows import split_texts
from pruner_zero.result_folder import build_folder, check_output
from pruner_zero.settings import RecoverSettings, name_of, names_of, read_settings
from pruner_zero.text.mixture import Source, load_mixture
from pruner_zero.text.windows import mix_windows

# Settings that may change when an interrupted run is resumed.
_PLACE = {"device", "threads"}


@naming_out_of_memory("choose a smaller --batch or a shorter --seqlen")
def recover(
    model: str | Path | LanguageModel | Any = None,
    *,
    text: Source | Mapping[Any, float] | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    tokenizer: Any = None,
    teacher: str | Path | LanguageModel | None = None,
    config: str | Path | None = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> RecoverResult:
    """Fine-tune a pruned model so that every zero weight stays zero, and save it to `output`.

    model: what `load_model` takes, or a model object with its `tokenizer`, which is changed in
    place; None where `config` names it. Its zeros are its mask; where whole units were removed, all
    remaining weights are trained, and the teacher is needed. text: what `load_corpus` takes, or
    "self", the default, text that the teacher writes, or a mapping from several texts to their
    shares; the last tenth of each is for validation. teacher: the dense model, for distillation.
    settings: the other fields of `RecoverSettings`, such as minutes=10 or mode="lora". config: a
    YAML file of settings; arguments win over it.

    The run works in `OUTPUT.partial`, which is renamed to `output` at the end. The same call
    after an interruption resumes from the last checkpoint. Raises PrunerZeroError, naming what
    to change; `output` is then unchanged.
    """
    given = {
        **settings,
        "model": name_of(model),
        "text": names_of(text),
        "teacher": name_of(teacher),
    }
    checked = read_settings(RecoverSettings, given, config)
    folder = (
        None
        if output is None
        else check_output(output, overwrite, [checked.model, checked.teacher])
    )
    mixture = load_mixture(checked.text if text is None else text, progress=progress)
    pruned = as_language_model(
        checked.model if model is None else model, tokenizer, **checked.loading
    )
    matrices = find_matrices(pruned.model)
    check_weights(matrices)
    check_trainable(matrices, checked.model)
    teacher = checked.teacher if teacher is None else teacher
    dense = None if teacher is None else as_language_model(teacher, device=checked.device)
    if dense is not None:
        check_teacher(dense, pruned)
    check_pruned(pruned, dense)
    origin = {
        "model_sha256": pruned.fingerprint(),
        "teacher_sha256": dense.fingerprint() if dense else None,
    }
    texts, validation = split_texts(
        mixture, pruned.tokenizer, dense, checked, origin["teacher_sha256"], progress
    )
    windows = mix_windows(texts)
    for part in (windows, validation):
        for language_model in filter(None, (pruned, dense)):
            check_tokens(language_model.model, part.tokens)
    if checked.batch > len(windows):
        raise PrunerZeroError(
            f"--batch is {checked.batch}: the text has {len(windows)} windows to train on, choose "
            "no more, or a longer text"
        )

    def run(checkpoint: Checkpoint | None) -> RecoverResult:
        before = sparsity(matrices)
        with measured() as cost:
            # Made of the weights in their own dtype, which takes half the memory of float32.
            trainables = _trainables(checked, matrices)
            with float32_weights(pruned.model):
                training = Training(
                    pruned.model,
                    trainables,
                    texts,
                    mixture.shares,
                    validation,
                    checked,
                    dense.model if dense else None,
                    checkpoint,
                )
                kept_step = training.run(progress)
        return RecoverResult(
            pruned,
            checked,
            training.state.curve,
            kept_step,
            sum(tensor.numel() for tensor in training.tensors.values()),
            before,
            sparsity(matrices),
            str(training.dtype).removeprefix("torch."),
            windows.describe(),
            validation.describe(),
            {**provenance(), "device": str(pruned.model.device), **origin},
            cost,
            folder,
        )

    def write(result: RecoverResult, _: Checkpoint, staged: Path) -> Cost:
        save_model(pruned, staged)
        result.write(staged)
        return result.cost

    # The values that an unfinished run must share with this run to be resumed.
    identity = {
        **checked.by_option(_PLACE),
        "the model's weights": origin["model_sha256"],
        "the teacher's weights": origin["teacher_sha256"],
        "the tokens of the text": [windows.sha256, validation.sha256],
    }
    with torch_threads(checked.threads):
        return build_folder(folder, overwrite, Checkpoint, identity, run, write, progress)


def _trainables(settings: RecoverSettings, matrices: Sequence[Matrix]) -> list[Trainable]:
    """The trained tensors, in the order of the model."""
    trainables: list[Trainable] = []
    generator = torch.Generator().manual_seed(settings.seed)
    for name, parameter in parameters_of(matrices).items():
        if settings.mode == "full":
            trainables.append(KeptWeights(name, parameter))
            continue
        inside = [matrix for matrix in matrices if matrix.parameter is parameter]
        adapters = MaskedAdapters(
            parameter, inside, rank=settings.rank, alpha=settings.alpha, generator=generator
        )
        trainables.append(adapters)
    return trainables
