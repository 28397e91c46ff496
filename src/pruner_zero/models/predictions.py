"""How far the predictions of a model are from those of another."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.next_token import in_float32, positions_at_once
from pruner_zero.progress import track


@dataclass(frozen=True)
class Divergence:
    """How far a model's predictions are from those of a dense one, over windows of a text.

    nats: of each window the mean of KL(dense ‖ model) over its next tokens. agreed: of each window
    the share of next tokens for which both models have the same most likely token.
    """

    nats: tuple[float, ...]
    agreed: tuple[float, ...]

    @property
    def divergence(self) -> float:
        """KL(dense ‖ model) in nats per token; all windows have the same length."""
        return sum(self.nats) / len(self.nats)

    @property
    def agreement(self) -> float:
        """The share of next tokens for which both models have the same most likely token."""
        return sum(self.agreed) / len(self.agreed)

    def to_json(self) -> dict[str, Any]:
        """Divergence and agreement, and those of each window, as JSON values."""
        totals = {"divergence": self.divergence, "agreement": self.agreement}
        return {**totals, "nats": list(self.nats), "agreed": list(self.agreed)}


def compare_logits(logits: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """KL(dense ‖ model) in nats, and whether the most likely tokens are equal, of each position.

    logits, dense: those of the model and of the dense one, (positions, vocabulary), of any dtype.
    Returns (positions,) in fp32 and (positions,) in bool. It computes in fp32, so many positions at
    a time that a temporary tensor has at most 2**22 numbers, or one position.
    """
    rows = positions_at_once(logits)
    nats, agreed = [], []
    for mine, other in zip(logits.split(rows), dense.split(rows), strict=True):
        agreed.append(mine.argmax(-1) == other.argmax(-1))
        log_p, log_t = mine.float().log_softmax(-1), other.float().log_softmax(-1)
        nats.append((log_t.exp() * log_t.sub_(log_p)).sum(-1))
    return torch.cat(nats), torch.cat(agreed)


def differing_tokens(model: LanguageModel, other: LanguageModel) -> str | None:
    """How the tokens of `other` differ from those of `model`, None where both have the same ones.

    A number that only one tokenizer names, such as one that fills up the vocabulary, may differ.
    """
    sizes = [each.model.config.get_text_config().vocab_size for each in (model, other)]
    tokens, others = (
        {number: token for token, number in each.tokenizer.get_vocab().items()}
        for each in (model, other)
    )
    for number in sorted(tokens.keys() & others.keys()):
        if tokens[number] != others[number]:
            return f"number {number} is {others[number]!r} instead of {tokens[number]!r}"
    return None if sizes[0] == sizes[1] else f"{sizes[1]:,} instead of {sizes[0]:,}"


@torch.no_grad()
def compare_predictions(
    model: PreTrainedModel,
    dense: PreTrainedModel,
    windows: Tensor,
    batch_size: int = 1,
    first: int = 0,
) -> Divergence:
    """The divergence of `model` from `dense` on `windows` (n, tokens) of int64.

    The models have the same tokens, as `differing_tokens` tells. batch_size: windows in a forward
    pass. first: the first position whose next token is predicted. Raises PrunerZeroError where a
    divergence is not finite.
    """
    nats, agreed = [], []
    batches = windows.split(batch_size)
    for batch in track(batches, "divergence", len(batches)):
        with in_float32(model):
            logits = model(batch.to(model.device), use_cache=False).logits
        with in_float32(dense):
            wanted = dense(batch.to(dense.device), use_cache=False).logits.to(logits.device)
        for mine, other in zip(logits, wanted, strict=True):
            divergences, same = compare_logits(mine[first:-1], other[first:-1])
            nats.append(float(divergences.mean()))
            agreed.append(float(same.float().mean()))
    if not torch.tensor(nats).isfinite().all():
        raise PrunerZeroError(
            "the divergence is not finite: the weights of a model are damaged or their dtype is "
            "too narrow, try --dtype float32"
        )
    return Divergence(tuple(nats), tuple(agreed))
