"""Perplexity as the pruning literature counts it."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.measuring.origin import Measured
from pruner_zero.models.language_model import LanguageModel, check_tokens
from pruner_zero.models.next_token import next_token_losses, to_perplexity
from pruner_zero.models.predictions import Divergence
from pruner_zero.progress import track
from pruner_zero.text.token_windows import Windows


@dataclass(frozen=True, repr=False)
class Perplexity(Measured):
    """A model's perplexity on a text: per token, over non-overlapping windows, fp32 logits.

    Perplexities of models with different vocabularies cannot be compared, bits per byte can.

    losses: the mean next-token loss of each window in nats. text: the description of the windows,
    from `Windows.describe`. beside: where it is compared with another model, the name of that
    model, and compared: the divergence from it on the same windows, or, where that model has other
    tokens, its perplexity on windows of its own.
    """

    shown = (
        *("text", "windows", "seqlen", "perplexity", "loss", "bits_per_byte"),
        *("divergence", "agreement", "bits_per_byte_beside"),
    )

    losses: tuple[float, ...]
    text: dict[str, Any]
    beside: str | None = None
    compared: "Divergence | Perplexity | None" = None

    @property
    def loss(self) -> float:
        """The mean loss in nats per token; all windows have the same length."""
        return sum(self.losses) / len(self.losses)

    @property
    def perplexity(self) -> float:
        """`exp(loss)`, infinite where that overflows."""
        return to_perplexity(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        """The bits that the model needs for a byte of the text (UTF-8); None where it is unknown.

        Of the tokens that it predicts: the first one of each window counts for neither.
        """
        if not (count := self.text.get("text_bytes")):
            return None
        predicted = len(self.losses) * int(self.text["seqlen"] - 1)
        return self.loss * predicted / math.log(2) / int(count)

    def caption(self) -> str:
        """The perplexity with its windows and text."""
        measured = f"{len(self.losses)} windows of {self.text.get('text', 'a text')}"
        return f"perplexity {self.perplexity:.2f} per token on {measured}"

    def to_rows(self) -> list[dict[str, Any]]:
        """One row: the text with its windows, perplexity, loss, bits, and the other measures."""
        row = {**self.text, "perplexity": self.perplexity, "loss": self.loss}
        if self.bits_per_byte is not None:
            row["bits_per_byte"] = self.bits_per_byte
        match self.compared:
            case Divergence() as compared:
                row |= {"divergence": compared.divergence, "agreement": compared.agreement}
            case Perplexity() as compared:
                row["bits_per_byte_beside"] = compared.bits_per_byte
        return [row]

    def figures(self) -> dict[str, Any]:
        """Perplexity (None where it overflows), loss, bits per byte, losses, text as JSON values.

        Where it is compared with another model, `beside` has its name, and the divergence and the
        agreement with their values of each window, or these figures of its own.
        """
        values = {
            "perplexity": self.perplexity if math.isfinite(self.perplexity) else None,
            "loss": self.loss,
            "bits_per_byte": self.bits_per_byte,
            "losses": list(self.losses),
            "text": self.text,
        }
        if (other := self.compared) is not None:
            figures = other.to_json() if isinstance(other, Divergence) else other.figures()
            values["beside"] = {"model": self.beside, **figures}
        return values


@torch.no_grad()
def perplexity(language_model: LanguageModel, windows: Windows, batch_size: int = 1) -> Perplexity:
    """The perplexity of `language_model` on `windows`.

    batch_size: windows in a forward pass; another one changes the result by rounding alone.
    Raises PrunerZeroError where a loss is not finite.
    """
    check_tokens(language_model.model, windows.tokens)
    batches = windows.tokens.split(batch_size)
    losses: list[float] = []
    for batch in track(batches, "perplexity", len(batches)):
        losses += next_token_losses(language_model.model, batch).tolist()
    if not all(map(math.isfinite, losses)):
        raise PrunerZeroError(
            "the model's loss is not finite: its weights are damaged or its dtype is too narrow, "
            "try --dtype float32"
        )
    return Perplexity(tuple(losses), windows.describe())
