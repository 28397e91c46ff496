"""`recover`: fine-tune a pruned model on a text, its zeros kept."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pruner_zero.devices import torch_threads
from pruner_zero.models import (
    LanguageModel,
    Matrix,
    as_language_model,
    check_tokens,
    check_weights,
    find_matrices,
    save_model,
)
from pruner_zero.progress import SILENT, Progress
from pruner_zero.provenance import measured, provenance
from pruner_zero.recovery.checkpoint import Checkpoint
from pruner_zero.recovery.lora import MaskedAdapters
from pruner_zero.recovery.loss import check_teacher
from pruner_zero.recovery.precision import compute_dtype, float32_weights
from pruner_zero.recovery.result import RecoverResult
from pruner_zero.recovery.train import Training
from pruner_zero.recovery.trainable import (
    KeptWeights,
    Trainable,
    parameters_of,
    read_masks,
    sparsity,
)
from pruner_zero.recovery.windows import split_windows
from pruner_zero.result_folder import build_folder, check_output
from pruner_zero.settings import RecoverSettings, name_of, read_settings
from pruner_zero.text import Corpus, Windows, load_corpus

# Settings that may change when an interrupted run is resumed.
_PLACE = {"checkpoint_minutes", "device", "threads"}


def recover(
    model: str | Path | LanguageModel | Any = None,
    *,
    text: str | Path | Corpus | Iterable[str] | None = None,
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
    place; None where `config` names it. Its zeros are its mask. text: what `load_corpus` takes;
    the last tenth is for validation. teacher: the dense model, for distillation. settings: the
    other fields of `RecoverSettings`, such as minutes=10 or mode="lora". config: a YAML file of
    settings; arguments win over it.

    The run works in `OUTPUT.partial`, which is renamed to `output` at the end. The same call
    after an interruption resumes from the last checkpoint. Raises PrunerZeroError, naming what
    to change; `output` is then unchanged.
    """
    given = {
        **settings,
        "model": name_of(model),
        "text": name_of(text),
        "teacher": name_of(teacher),
    }
    checked = read_settings(RecoverSettings, given, config)
    folder = Path(os.path.abspath(output)) if output is not None else None
    if folder:
        check_output(folder, overwrite)
    corpus = load_corpus(checked.text if text is None else text, progress=progress)
    pruned = as_language_model(
        checked.model if model is None else model, tokenizer, **checked.loading
    )
    windows, validation = split_windows(
        corpus, pruned.tokenizer, checked.seqlen, checked.validation_windows
    )
    for part in (windows, validation):
        check_tokens(pruned.model, part.tokens)
    matrices = find_matrices(pruned.model)
    check_weights(matrices)
    masks = read_masks(matrices, checked.model)
    dense = _load_teacher(checked.teacher if teacher is None else teacher, pruned, checked.device)
    origin = {
        "model_sha256": pruned.fingerprint(),
        "teacher_sha256": dense.fingerprint() if dense else None,
    }
    work = _Work(
        checked, pruned, matrices, masks, windows, validation, dense, origin, folder, progress
    )
    identity = work.identity() if folder else {}
    with torch_threads(checked.threads):
        return build_folder(folder, overwrite, Checkpoint, identity, work.run, work.write, progress)


def _load_teacher(
    teacher: str | Path | LanguageModel | None, student: LanguageModel, device: str
) -> LanguageModel | None:
    if teacher is None:
        return None
    loaded = as_language_model(teacher, device=device)
    check_teacher(loaded, student)
    return loaded


@dataclass(frozen=True)
class _Work:
    settings: RecoverSettings
    language_model: LanguageModel
    matrices: Sequence[Matrix]
    masks: dict[str, torch.Tensor]
    windows: Windows
    validation: Windows
    teacher: LanguageModel | None
    origin: dict[str, str | None]
    output: Path | None
    progress: Progress

    def run(self, checkpoint: Checkpoint | None) -> RecoverResult:
        """Train in memory, from the checkpoint on."""
        model = self.language_model.model
        before = sparsity(self.matrices)
        dtype = compute_dtype(self.settings, model.device)
        with measured() as cost, float32_weights(model):
            trainables = self.trainables()
            training = Training(
                model,
                trainables,
                self.windows,
                self.validation,
                self.settings,
                dtype,
                self.teacher.model if self.teacher else None,
                checkpoint,
            )
            kept_step = training.run(self.progress)
        self.check_zeros()
        return RecoverResult(
            self.language_model,
            self.settings,
            training.state.curve,
            kept_step,
            sum(tensor.numel() for tensor in training.tensors.values()),
            before,
            sparsity(self.matrices),
            str(dtype).removeprefix("torch."),
            self.windows.describe(),
            self.validation.describe(),
            {**provenance(), "device": str(model.device), **self.origin},
            cost,
            self.output,
        )

    def trainables(self) -> list[Trainable]:
        """The trained tensors, in the order of the model."""
        settings, trainables = self.settings, list[Trainable]()
        generator = torch.Generator().manual_seed(settings.seed)
        parameters = parameters_of(self.matrices)
        for name, parameter in parameters.items():
            mask = self.masks[name]
            if settings.mode == "full":
                trainables.append(KeptWeights(name, parameter, mask))
                continue
            inside = [matrix for matrix in self.matrices if matrix.parameter is parameter]
            adapters = MaskedAdapters(
                parameter,
                mask,
                inside,
                rank=settings.rank,
                alpha=settings.alpha,
                generator=generator,
            )
            trainables.append(adapters)
        if settings.norms:
            trainables += [
                KeptWeights(name, parameter, torch.ones_like(parameter, dtype=torch.bool))
                for name, parameter in self.language_model.model.named_parameters()
                if parameter.ndim == 1 and name not in parameters
            ]
        return trainables

    def check_zeros(self) -> None:
        """Raise RuntimeError where a pruned weight is no longer zero."""
        for name, parameter in parameters_of(self.matrices).items():
            if parameter.data[~self.masks[name]].any():
                raise RuntimeError(f"pruned weights of {name} are no longer zero")

    def write(self, result: RecoverResult, _: Checkpoint, folder: Path) -> None:
        """Write the trained model and the result to `folder`."""
        save_model(self.language_model, folder)
        result.write(folder)

    def identity(self) -> dict[str, Any]:
        """What an unfinished run must have in common with this one to be resumed."""
        return {
            **self.settings.by_option(_PLACE),
            "the model's weights": self.origin["model_sha256"],
            "the teacher's weights": self.origin["teacher_sha256"],
            "the tokens of the text": [self.windows.sha256, self.validation.sha256],
        }
