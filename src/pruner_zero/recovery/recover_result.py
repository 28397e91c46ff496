"""The result of a recovery and the files that describe it."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pruner_zero.files import write_atomic, write_json, writing
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.provenance import Cost
from pruner_zero.result_folder import NOT_RETRAINED, title_of
from pruner_zero.settings.calibration import are_written
from pruner_zero.settings.recover_settings import RecoverSettings
from pruner_zero.table import Tabular
from pruner_zero.training.train import Point

# Files of prune that also describe the recovered model.
INHERITED = ("pruning.json", "metric.json")
CARD = "README.md"
# A dense model has a few zeros by rounding; below this share a model counts as not pruned.
LEAST_SPARSITY = 0.01


@dataclass(frozen=True, repr=False)
class RecoverResult(Tabular):
    """A recovered model, its learning curve and its provenance.

    kept_step: the step whose weights the model has. trained: the number of trained values.
    sparsity_before, sparsity_after: the share of zeros among the prunable weights. training,
    validation: describe the text. cost: that of this process. output: the folder, None where
    nothing was saved.
    """

    shown = ("step", "seconds", "tokens", "train_loss", "validation_loss")

    language_model: LanguageModel
    settings: RecoverSettings
    curve: Sequence[Point]
    kept_step: int
    trained: int
    sparsity_before: float
    sparsity_after: float
    training: dict[str, Any]
    validation: dict[str, Any]
    provenance: dict[str, Any]
    cost: Cost
    output: Path | None = None

    @property
    def loss_before(self) -> float:
        """The validation loss of the pruned model."""
        return self.curve[0].validation_loss

    @property
    def loss_after(self) -> float:
        """The validation loss of the saved weights."""
        return next(p.validation_loss for p in self.curve if p.step == self.kept_step)

    @property
    def has_zeros(self) -> bool:
        """Whether single weights were pruned, and not only whole units."""
        return self.sparsity_after >= LEAST_SPARSITY

    def caption(self) -> str:
        """The validation loss before and after, and the folder."""
        where = f"{self.output}: " if self.output else ""
        zeros = f"{self.sparsity_after:.2%} zeros; " if self.has_zeros else ""
        return (
            f"{where}{zeros}loss on held-out text "
            f"{self.loss_before:.4f} before, {self.loss_after:.4f} at step {self.kept_step}"
        )

    def to_rows(self) -> list[dict[str, Any]]:
        """The learning curve, one row per point."""
        return [asdict(point) for point in self.curve]

    def to_json(self) -> dict[str, Any]:
        """All but what time was spent, as JSON values: the same for the same `--steps`.

        With a budget of minutes the curve has the seconds, too.
        """
        left_out = () if self.settings.minutes else ("seconds",)
        return {
            "settings": self.settings.model_dump(mode="json"),
            "trained": self.trained,
            "sparsity_before": round(self.sparsity_before, 6),
            "sparsity_after": round(self.sparsity_after, 6),
            "kept_step": self.kept_step,
            "loss_before": self.loss_before,
            "loss_after": self.loss_after,
            "curve": [{n: row[n] for n in row if n not in left_out} for row in self.to_rows()],
            "training": self.training,
            "validation": self.validation,
            "provenance": self.provenance,
        }

    def write(self, folder: Path) -> None:
        """Write recovery.json and the model card to `folder`, and copy the files of prune."""
        write_json(folder / "recovery.json", self.to_json())
        source = Path(self.settings.model)
        for name in INHERITED:
            if (source / name).is_file():
                with writing(folder / name):
                    shutil.copyfile(source / name, folder / name)
        write_atomic(folder / CARD, model_card(self, source / CARD))


def model_card(result: RecoverResult, pruned: Path) -> str:
    """The model card in Markdown: that of `pruned`, if it has one, and a section on recovery."""
    settings, last = result.settings, result.curve[-1]
    zeros = f" Every pruned weight is still zero ({result.sparsity_after:.2%} of all)."
    kept = zeros if result.has_zeros else ""
    taught = f", taught by `{settings.teacher}`" if settings.teacher else ""
    written = are_written(settings.text)
    text = "text that the teacher wrote" if written else f"`{result.training['text']}`"
    points = ", ".join(f"{p.seconds / 60:.1f}: {p.validation_loss:.4f}" for p in result.curve)
    by_minutes = f"\n\nThe loss by minutes of training: {points}." if settings.minutes else ""
    if pruned.is_file():
        card = pruned.read_text().replace(NOT_RETRAINED, "It was fine-tuned since, see below.")
    else:
        head = "---\nlibrary_name: transformers\ntags: [pruned, pruner-zero]\n---\n"
        card = f"{head}\n# {title_of(settings.model)}, recovered after pruning\n"
    return f"""{card.rstrip()}

## Recovery

Fine-tuned (all kept weights) for {last.step} steps on {last.tokens} tokens of \
{text}{taught}.{kept}

| | step | loss on held-out text, nats per token |
|---|---|---|
| pruned | 0 | {result.loss_before:.4f} |
| recovered | {result.kept_step} | {result.loss_after:.4f} |{by_minutes}

The held-out text is the last tenth of the same text. It was not trained on; the saved step is the \
one with the lowest loss on it. Settings, versions and the learning curve are in `recovery.json`.
"""
