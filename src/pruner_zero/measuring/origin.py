"""What was measured, and where it comes from: the common part of all results of `evaluate`."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pruner_zero.models.language_model import LanguageModel
from pruner_zero.provenance import provenance
from pruner_zero.table import Tabular


@dataclass(frozen=True, repr=False, kw_only=True)
class Measured(Tabular):
    """Figures of a model.

    settings: all settings of `evaluate`. provenance: what `origin_of` gives. Both are empty where
    another function has measured.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """The figures alone, as JSON values."""

    def to_json(self) -> dict[str, Any]:
        """The figures, `model`, `settings` and `provenance`, as JSON values."""
        return to_json([self])


def to_json(results: Sequence[Measured], complete: bool = True) -> dict[str, Any]:
    """What `evaluate` writes of the results of one call, as JSON values.

    The figures of one text stand beside those of tasks and speed, those of several are a list under
    `texts`. complete: False where not all that was asked for is measured.
    """
    settings, provenance = results[0].settings, results[0].provenance
    values: dict[str, Any] = {"model": settings.get("model")}
    texts = []
    for figures in (result.figures() for result in results):
        if "losses" in figures:
            texts.append(figures)
        else:
            values |= figures
    values |= {"texts": texts} if len(texts) > 1 else dict(*texts)
    values |= {"settings": dict(settings), "provenance": dict(provenance)}
    return values if complete else {**values, "complete": False}


def origin_of(model: LanguageModel, sha256: str | None = None) -> dict[str, Any]:
    """Where figures of `model` come from: versions, the machine, the weights and their dtype.

    sha256: the fingerprint of the model, computed where it is None.
    """
    return {
        **provenance(),
        "device": str(model.device),
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "model_sha256": sha256 or model.fingerprint(),
    }
