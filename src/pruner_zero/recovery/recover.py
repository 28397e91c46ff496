"""`recover`: fine-tune a pruned model on a text, its zeros kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruner_zero.devices import naming_out_of_memory
from pruner_zero.errors import PrunerZeroError
from pruner_zero.journal import Journal
from pruner_zero.models.gguf_file import save_gguf
from pruner_zero.models.gguf_source import GgufSource, read_source, source_of
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import as_language_model
from pruner_zero.models.matrices import (
    Matrix,
    check_weights,
    find_matrices,
    find_tables,
    parameters_of,
    size_of,
)
from pruner_zero.models.saving import save_model
from pruner_zero.provenance import Cost, measured, provenance
from pruner_zero.recovery.recover_result import LEAST_SPARSITY, RecoverResult
from pruner_zero.recovery.splitting import Split, split_texts
from pruner_zero.result_folder import GGUF_RECOVERY, build_folder, check_output
from pruner_zero.settings.base import name_of, names_of
from pruner_zero.settings.read_settings import read_settings
from pruner_zero.settings.recover_settings import RecoverSettings
from pruner_zero.text.mixture import Source, load_mixture
from pruner_zero.text.translation import Translation
from pruner_zero.training.losses import taught_loss, text_loss
from pruner_zero.training.train import Batch, Budget, Training

# Settings that may change when an interrupted run is resumed.
_PLACE = {"device", "gguf_type"}


@naming_out_of_memory("choose a smaller --batch or a shorter --seqlen")
def recover(
    model: str | Path | LanguageModel | Any = None,
    *,
    text: Source | Mapping[Any, float] | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    tokenizer: Any = None,
    teacher: str | Path | LanguageModel | None = None,
    cache: str | Path | None = None,
    config: str | Path | None = None,
    **settings: Any,
) -> RecoverResult:
    """Fine-tune a pruned model so that every zero weight stays zero, and save it to `output`.

    model: what `load_model` takes, or a model object with its `tokenizer`, which is changed in
    place; None where `config` names it. Its zeros are its mask; where whole units were removed, all
    remaining weights are trained, and the teacher is needed; where tokens were removed, the text is
    split into the teacher's tokens, and these into those that are left. text: what `load_corpus`
    takes, "self" for text that the teacher writes (the default), or a mapping from several texts to
    their shares; the last tenth of each is for validation. output: a folder; for a model in a .gguf
    file also such a file, which has recovery.json under the key pruner_zero.recovery. teacher: the
    dense model, for distillation. settings: the other fields of `RecoverSettings`. cache: where the
    teacher's text is kept, the user's cache where None. config: a YAML file of settings; arguments
    win over it.

    The run works in `OUTPUT.partial`, which is renamed to `output` at the end. The same call after
    an interruption goes on from the last checkpoint: there is one every minute, and one after
    Ctrl-C. Raises PrunerZeroError, naming what to change; `output` is then unchanged.
    """
    given = {"model": name_of(model), "text": names_of(text), "teacher": name_of(teacher)}
    checked = read_settings(RecoverSettings, {**settings, **given}, config)
    inputs = [checked.model, checked.teacher]
    folder = None if output is None else check_output(output, overwrite, inputs, gguf=True)
    is_object = model is not None and not isinstance(model, str | Path)
    gguf = source_of(folder, checked.gguf_type, None if is_object else checked.model)
    mixture = load_mixture(checked.text if text is None else text)
    pruned = as_language_model(
        checked.model if model is None else model, tokenizer, **checked.loading
    )
    source = read_source(gguf, checked.model, pruned.model) if gguf else None
    check_weights(find_matrices(pruned.model))
    teacher = checked.teacher if teacher is None else teacher
    dense = None if teacher is None else as_language_model(teacher, device=checked.device)
    translation = None if dense is None else check_teacher(dense, pruned)
    check_pruned(pruned, dense)
    taught_by = dense.fingerprint() if dense else None
    origin = {"model_sha256": pruned.fingerprint(), "teacher_sha256": taught_by}
    # The models that read the text as it is split.
    readers = [each for each in (pruned if translation is None else None, dense) if each]
    split = split_texts(mixture, readers, dense, checked, taught_by, cache)
    run = _Recovery(pruned, dense, translation, checked, split, origin, source, folder)
    return build_folder(folder, overwrite, "step", run.identity(), run.train, run.write)


@dataclass(frozen=True)
class _Recovery:
    """The parts of one run.

    translation: from the teacher's tokens, in which the text is, to those of the pruned model; None
    where they are the same. origin: the SHA-256 of both models.
    """

    pruned: LanguageModel
    dense: LanguageModel | None
    translation: Translation | None
    settings: RecoverSettings
    text: Split
    origin: Mapping[str, str | None]
    source: GgufSource | None
    folder: Path | None

    def identity(self) -> dict[str, Any]:
        """The values that an unfinished run must share with this run to be resumed."""
        return {
            **self.settings.by_option(_PLACE),
            "the model's weights": self.origin["model_sha256"],
            "the teacher's weights": self.origin["teacher_sha256"],
            "the tokens of the text": [self.text.training.sha256, self.text.validation.sha256],
        }

    def train(self, journal: Journal | None) -> RecoverResult:
        """Train the model, on from the last checkpoint in the `journal`."""
        model, settings = self.pruned.model, self.settings
        matrices = find_matrices(model)
        before = sparsity(matrices)
        with measured() as cost:
            training = Training(
                model,
                matrices if self.translation is None else [*matrices, *find_tables(model)],
                self._batches,
                lambda: (self._batch(w, None) for w in self.text.validation.tokens.split(1)),
                Budget(settings.steps, settings.minutes),
                settings.learning_rate,
                "recovery",
                "choose a lower --learning-rate",
                keep_best=True,
                journal=journal,
            )
            kept_step = training.run()
        return RecoverResult(
            self.pruned,
            settings,
            training.state.curve,
            kept_step,
            training.trained,
            before,
            sparsity(matrices),
            self.text.training.describe(),
            self.text.validation.describe(),
            {**provenance(), "device": str(model.device), **self.origin},
            cost,
            self.folder,
        )

    def write(self, result: RecoverResult, _: Journal, staged: Path) -> Cost:
        """Write the model and the record of the run to the folder or file `staged`."""
        if source := self.source:
            records = {**source.records, GGUF_RECOVERY: result.to_json()}
            save_gguf(source, self.pruned.model, staged, self.settings.gguf_type, (), records)
        else:
            save_model(self.pruned, staged)
            result.write(staged)
        return result.cost

    def _batches(self, step: int) -> Iterator[Batch]:
        size, share = self.settings.batch, self.settings.teacher_share
        drawn = self.text.in_training_order(self.settings.seed, step * size)
        while True:
            yield self._batch(torch.cat([next(drawn) for _ in range(size)]), share)

    def _batch(self, windows: Tensor, share: float | None) -> Batch:
        """`windows` with their loss, of which the teacher's part is the `share`."""
        read = windows if self.translation is None else self.translation.windows(windows)[0]
        if self.dense is None or share is None:
            return Batch(read, text_loss(read))
        return Batch(read, taught_loss(windows, self.dense.model, share, self.translation))


def check_teacher(teacher: LanguageModel, student: LanguageModel) -> Translation | None:
    """The way from the teacher's tokens to the student's, None where they are the same.

    Raises PrunerZeroError where the student has tokens that the teacher lacks.
    """
    asked, left = (m.model.get_output_embeddings().weight.shape[0] for m in (teacher, student))
    if asked == left and teacher.tokenizer.get_vocab() == student.tokenizer.get_vocab():
        return None
    translation = None
    if teacher.tokenizer.is_fast and student.tokenizer.is_fast:
        tokenizers = teacher.tokenizer.backend_tokenizer, student.tokenizer.backend_tokenizer
        translation = Translation.between(*tokenizers)
    if translation is None or asked <= left:
        raise PrunerZeroError(
            f"--teacher {teacher.name} has other tokens than {student.name}: "
            "give the dense model that was pruned"
        )
    return translation


def check_pruned(pruned: LanguageModel, dense: LanguageModel | None) -> None:
    """Raise PrunerZeroError for hardly any zeros and no fewer parameters than `dense` has."""
    zeros = sparsity(find_matrices(pruned.model))
    if zeros >= LEAST_SPARSITY:
        return
    # Bytes depend on the dtype too.
    if dense is None or size_of(pruned.model)[0] >= size_of(dense.model)[0]:
        raise PrunerZeroError(
            f"{pruned.name} is not pruned, {zeros:.2%} of its prunable weights are zero: give the "
            "folder that prune wrote; if prune removed whole units, give the dense model as "
            "--teacher"
        )


def sparsity(matrices: Sequence[Matrix]) -> float:
    """The share of zeros among the weights of all `matrices`."""
    parameters = parameters_of(matrices).values()
    zeros = sum(int((parameter == 0).sum()) for parameter in parameters)
    return zeros / sum(parameter.numel() for parameter in parameters)
