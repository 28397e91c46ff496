"""lm-eval's multiple-choice questions in fewer forward passes: choices share their question.

Two cores compute few tokens a second, and lm-eval's own model reads a question once for every
choice and pads each batch. Here a sequence holds several questions; a choice attends only to its
question and to itself, and logits are computed only where a choice's next token is predicted.
The log-likelihoods are those of lm-eval's model, up to rounding (tests/test_packed.py).
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from pruner_zero.models import LanguageModel

# Tokens in a sequence: longer sequences spend more on attention than they save in calls.
_TOKENS = 512

# A request of lm-eval: the two texts, the question's tokens, the choice's tokens.
Request = tuple[tuple[str, str], list[int], list[int]]


@dataclass
class _Sequence:
    """Questions with their choices, one after the other.

    segment: for each token, the choice it belongs to, −1 for a question. question: for each token,
    the question it belongs to. scored: for each request, the places where its choice's tokens are
    predicted.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    question: list[int] = field(default_factory=list)
    segment: list[int] = field(default_factory=list)
    scored: list[tuple[int, list[int], list[int]]] = field(default_factory=list)

    def add(self, tokens: Sequence[int], position: int, question: int, segment: int) -> int:
        """Append tokens whose first token has this position; return its place in the sequence."""
        place = len(self.tokens)
        self.tokens += tokens
        self.positions += range(position, position + len(tokens))
        self.question += [question] * len(tokens)
        self.segment += [segment] * len(tokens)
        return place

    def mask(self) -> Tensor:
        """Bool (1, 1, tokens, tokens): which token (row) attends to which (column)."""
        question, segment = torch.tensor(self.question), torch.tensor(self.segment)
        shared = (segment[None] == -1) | (segment[None] == segment[:, None])
        inside = question[None] == question[:, None]
        return (shared & inside).tril()[None, None]


class PackedModel(HFLM):  # type: ignore[misc]
    """lm-eval's model of a decoder that accepts a mask; `packed` makes one.

    Raises ValueError where a question with its choice is longer than the model's sliding window:
    the mask has no sliding window.
    """

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        window = getattr(self.model.config, "sliding_window", None) or math.inf
        if any(len(question) + len(choice) > window for _, question, choice in requests):
            raise ValueError(f"a question is longer than the {window} tokens of the model's window")
        answers: dict[int, tuple[float, bool]] = {}
        for sequence in _sequences(requests):
            answers.update(self._answers(sequence))
        return [answers[index] for index in range(len(requests))]

    def _answers(self, sequence: _Sequence) -> Iterator[tuple[int, tuple[float, bool]]]:
        places = sorted({place for _, of_choice, _ in sequence.scored for place in of_choice})
        row_of = {place: row for row, place in enumerate(places)}
        allowed = sequence.mask()
        weights = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        logits = self.model(
            torch.tensor([sequence.tokens]),
            attention_mask=weights.to(self.model.dtype),
            position_ids=torch.tensor([sequence.positions]),
            use_cache=False,
            logits_to_keep=torch.tensor(places),
        ).logits[0]
        scores = logits.float().log_softmax(-1)
        for index, of_choice, choice in sequence.scored:
            rows, targets = scores[[row_of[place] for place in of_choice]], torch.tensor(choice)
            likelihood = float(rows.gather(1, targets[:, None]).sum())
            yield index, (likelihood, bool((rows.argmax(-1) == targets).all()))


def packed(language_model: LanguageModel, _batch_size: int = 1) -> PackedModel:
    """`language_model` for lm-eval, in place of `pruner_zero.evaluation.tasks.harness_model`."""
    return PackedModel(
        pretrained=language_model.model,
        tokenizer=copy.deepcopy(language_model.tokenizer),
        softmax_dtype="float32",
        batch_size=1,
    )


def _sequences(requests: Sequence[Request]) -> Iterator[_Sequence]:
    """The requests in sequences of about `_TOKENS` tokens, choices with their question."""
    by_question: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for index, (_, question, choice) in enumerate(requests):
        by_question.setdefault(tuple(question), []).append((index, choice))
    sequence = _Sequence()
    for number, (context, choices) in enumerate(by_question.items()):
        length = len(context) + sum(len(choice) - 1 for _, choice in choices)
        if sequence.tokens and len(sequence.tokens) + length > _TOKENS:
            yield sequence
            sequence = _Sequence()
        last = sequence.add(context, 0, number, -1) + len(context) - 1
        for segment, (index, choice) in enumerate(choices):
            first = sequence.add(choice[:-1], len(context), number, segment)
            places = [last, *range(first, first + len(choice) - 1)]
            sequence.scored.append((index, places, choice))
    if sequence.tokens:
        yield sequence
