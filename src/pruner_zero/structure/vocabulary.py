"""Removing tokens: rows of the embedding and of the head go, and the tokenizer is cut with them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_tables, size_of
from pruner_zero.models.next_token import fast_products, in_float32, positions_at_once
from pruner_zero.progress import track
from pruner_zero.structure.cut import Cut
from pruner_zero.structure.named_tokens import needed_tokens, renumber
from pruner_zero.structure.removal import units_left
from pruner_zero.structure.selling import Good
from pruner_zero.structure.tokens import TokenTable, check_tokenizer, replace_tokens
from pruner_zero.text.scripts import tokens_outside
from pruner_zero.text.token_windows import Windows
from pruner_zero.text.translation import Translation

# The windows that the model reads, and those of them on which tokens and pieces are compared.
_READ, _PIECES = 192, 32
# The parts of the tokens that stay where that is measured: fewer tokens make smaller pieces.
_PARTS = 2, 4, 8
# The most tokens that a budget removes together.
_LOT = 64
# What the pieces of a removed token cost more, in nats, where the text has no such token
# (benchmarks/vocabulary.md).
_COST = 6.0


@dataclass(frozen=True)
class Vocabulary(Cut):
    """Tokens, those that occur least in the calibration text and are expected least in its windows.

    Most tokens of a large vocabulary never occur there: the probabilities that the model gives them
    say which of them belong to such text.

    words: text whose tokens all stay. scripts: those whose characters stay; tokens of others that
    stay, such as bytes, are not written any more (`tokens_outside`), by suppress_tokens of the
    generation configuration. tokens: how many stay, which has precedence over `sparsity` and
    `parameters`, where a budget decides it. tokenizer, kept_tokens, smaller: that of the model,
    those of its tokens that stay, and what `TokenTable.cut` makes of them, all found by `decide`.
    expected: what `expected_counts` gave.
    Source: Load What You Need (Abdaoui et al. 2020, 2010.05609), which counts tokens too; here
    those on the path of merges to a kept token stay with it, and the model's own expectation counts
    too.
    """

    sparsity: float
    parameters: float | None = None
    words: tuple[str, ...] = field(default=(), repr=False)
    scripts: tuple[str, ...] = ()
    tokens: int | None = None
    tokenizer: Any = field(default=None, repr=False)
    kept_tokens: tuple[int, ...] = field(default=(), repr=False)
    smaller: dict[str, Any] = field(default_factory=dict, repr=False)
    expected: Tensor | None = field(default=None, repr=False, compare=False)

    unit = "vocabulary"
    when = "text"
    reads = _READ
    rule = (
        "token count, how often tokens occur in the calibration text and how often the model "
        "expects them there"
    )

    def fit(self, language_model: LanguageModel) -> Self:
        """As for `Cut`; the share of `parameters` is known once the text has been seen.

        Raises PrunerZeroError for tokens that have rows elsewhere too, and where all should stay.
        """
        check_tokenizer(language_model.tokenizer)
        model = language_model.model
        rows = self.rows(model)
        own = {id(parameter) for parameter in _tables(model)}
        for name, parameter in model.named_parameters():
            if parameter.shape[:1] == (rows,) and id(parameter) not in own:
                raise PrunerZeroError(
                    f"--structure vocabulary does not know {name}, which has a row for each token "
                    "too: leave out --structure"
                )
        return self

    @property
    def translation(self) -> Translation | None:
        small = Tokenizer.from_str(json.dumps(self.smaller))
        return Translation.between(self.tokenizer.backend_tokenizer, small)

    def decide(
        self, language_model: LanguageModel, windows: Windows, scores: Mapping[str, Tensor]
    ) -> Self:
        """Choose the tokens by their counts in the text and what the model expects in `windows`.

        Raises PrunerZeroError where more tokens must stay than may.
        """
        model = language_model.model
        table, rows = TokenTable(language_model.tokenizer), self.rows(model)
        if table.count > rows:
            raise PrunerZeroError(
                f"the tokenizer has {table.count} tokens and the model embeds {rows}: use the "
                "tokenizer that belongs to the model"
            )
        always = table.always(self.words, self.scripts, needed_tokens(model))
        occurs = occurrences(windows, rows).mean(0)
        # A reserved token that the text holds is in use.
        always |= table.added.intersection(occurs.nonzero().flatten().tolist())
        size = self._size(model, rows, len(always))
        if size < len(always):
            why = " and --keep or --scripts hold" if self.words or self.scripts else ""
            raise PrunerZeroError(
                f"{size} of {rows} tokens would be left, and {len(always)} must stay so that every "
                f"text can be encoded{why}: choose --sparsity "
                f"{1 - len(always) / rows:.4g} or less"
            )
        expected = self.expected
        if expected is None:
            expected = expected_counts(language_model, windows.tokens[:_READ])
        stay = table.choose(table.in_order(_shares(occurs, expected)), size, always)
        return replace(
            self,
            sparsity=1 - len(stay) / rows,
            tokenizer=language_model.tokenizer,
            kept_tokens=tuple(stay),
            smaller=table.cut(stay),
        )

    def rows(self, model: PreTrainedModel) -> int:
        """The number of tokens of the dense model."""
        return int(model.get_input_embeddings().weight.shape[0])

    def each(self, model: PreTrainedModel) -> int:
        """The parameters of a token."""
        return sum(table[0].numel() for table in _tables(model))

    def offer(self, language_model: LanguageModel, windows: Windows) -> tuple[Self, Good]:
        """The tokens that may go, with their prices in nats per token, for a budget.

        The cut is given back with what the model expects, so that `decide` need not ask it again.
        One half of the text behind `windows` says in which order tokens go, the other half how
        often text then lacks one: text that was counted lacks none of its own words, and what the
        model expects is too little by a factor of ten (benchmarks/vocabulary.md). The price of the
        n-th token to go is that frequency, as an ascending curve, times what `cost_of_pieces`
        measures on the other half, where a half, a quarter and an eighth of the tokens stay.
        Source: held-out estimates of rare words, Jelinek & Mercer 1985; the curve, Grenander 1956.
        """
        model, table = language_model.model, TokenTable(language_model.tokenizer)
        always = table.always(self.words, self.scripts, needed_tokens(model))
        tokens = windows.tokens
        # Of the same halves as the text that a model wrote, which is no more than the windows.
        parts = tokens.chunk(2) if len(tokens) > 1 else (tokens, tokens)
        read = [part[: _READ // 2] for part in parts]
        expected = [expected_counts(language_model, half) for half in read]
        total = torch.stack(expected).sum(0)
        halves = occurrences(windows, len(total))

        def in_order(shares: Tensor) -> Tensor:
            free = [number for number in table.in_order(shares) if number not in always]
            return torch.tensor(free, dtype=torch.int64)

        occurs = torch.zeros(len(table.names.keys() - always), dtype=torch.float64)
        for half, counts, other in zip(halves, expected, halves.flip(0), strict=True):
            occurs += other[in_order(_shares(half, counts))] / 2
        # Not of no tokens, where all must stay.
        fitted = isotonic_regression(occurs.flip(0).numpy()).x if len(occurs) else []
        curve = torch.as_tensor(fitted, dtype=torch.float64)
        shares = _shares(halves.mean(0), total)
        shares = shares[in_order(shares)].flip(0)
        first = in_order(_shares(halves[0], expected[0])).tolist()
        rows, compared, costs = self.rows(model), read[1][:_PIECES], []
        for part in _PARTS:
            stay = table.choose(first, max(rows // part, len(always)), always)
            costs.append(cost_of_pieces(language_model, compared, stay, table.cut(stay)))
        removed = [rows - rows // part for part in _PARTS]
        cost = torch.from_numpy(np.interp(range(len(curve)), removed, costs))
        prices = cost.cummax(0).values * torch.maximum(curve, shares)
        return replace(self, expected=total), Good(
            prices, self.each(model), 1, min(_LOT, max(1, len(prices) // 64))
        )

    def _size(self, model: PreTrainedModel, rows: int, fewest: int) -> int:
        """The number of tokens that may stay."""
        if self.tokens:
            return self.tokens
        if not self.parameters:
            return round(rows * (1 - self.sparsity))
        each, whole = self.each(model), size_of(model)[0]
        sizes = {stay: whole - each * (rows - stay) for stay in range(fewest, rows)}
        return units_left(model, self, rows, sizes, "tokens")

    def lost(self, model: PreTrainedModel) -> Iterator[tuple[nn.Parameter, int]]:
        for table in _tables(model):
            yield table, (table.shape[0] - len(self.kept_tokens)) * table[0].numel()

    def cut(self, model: PreTrainedModel) -> None:
        rows, stay = self.rows(model), self.kept_tokens
        with torch.no_grad():
            for table in _tables(model):
                table.data = table.data[torch.tensor(stay, device=table.device)]
        embedding = model.get_input_embeddings()
        sized = {id(part) for part in (embedding, model.get_output_embeddings())}
        for module in model.modules():
            # Some models know the size of the vocabulary too.
            names = ("num_embeddings", "out_features") if id(module) in sized else ()
            for name in ("vocab_size", *names):
                if vars(module).get(name) == rows:
                    setattr(module, name, len(stay))
        padding = getattr(embedding, "padding_idx", None)
        if padding is not None:
            embedding.padding_idx = stay.index(padding) if padding in stay else None
        outside = tokens_outside(self.scripts, self.tokenizer).tolist() if self.scripts else ()
        renumber(model, stay, outside)
        replace_tokens(self.tokenizer, self.smaller)

    def describe(self) -> dict[str, Any]:
        return {"tokens": len(self.kept_tokens)}

    def __str__(self) -> str:
        return f"{100 * self.sparsity:.4g}% of the tokens"


def occurrences(windows: Windows, rows: int) -> Tensor:
    """Each token's share of the two halves of the text behind `windows`: (2, rows) float64.

    A source counts by its share of the windows, however long it is.
    """
    shares = torch.zeros(2, rows, dtype=torch.float64)
    for share, stream in windows.streams():
        for half, tokens in zip(shares, stream.tensor_split(2), strict=True):
            half += share * torch.bincount(tokens, minlength=rows) / max(1, len(tokens))
    return shares


def _shares(occurs: Tensor, expected: Tensor) -> Tensor:
    """The mean of each token's share of text and of what the model expects: (rows,) float64."""
    return (occurs / occurs.sum() + expected / expected.sum()) / 2


@torch.no_grad()
def expected_counts(language_model: LanguageModel, windows: Tensor) -> Tensor:
    """How often the model expects each token as the next one in `windows` (n, seqlen).

    The sum of its probabilities over all positions: (rows of the embedding,) float64.
    """
    model, device = language_model.model, language_model.device
    total = torch.zeros(model.get_input_embeddings().weight.shape[0], dtype=torch.float64)
    with fast_products(model, device), in_float32(model):
        for window in track(windows, "expected counts", len(windows)):
            logits = model(window[None].to(device), use_cache=False).logits[0]
            for part in logits.split(positions_at_once(logits)):
                total += part.float().softmax(-1).sum(0).cpu()
    return total


@torch.no_grad()
def cost_of_pieces(
    language_model: LanguageModel, windows: Tensor, stay: list[int], smaller: dict[str, Any]
) -> float:
    """By how many nats a removed token is less probable in pieces, the mean over `windows`.

    stay: the tokens that stay. smaller: the tokenizer that has them alone. Of the same text, as
    long as its pieces have room in the window, the model predicts the tokens, and then the pieces
    among the tokens that stay.
    """
    model, device = language_model.model, language_model.device
    small = Tokenizer.from_str(json.dumps(smaller))
    translation = Translation.between(language_model.tokenizer.backend_tokenizer, small)
    assert translation is not None
    numbers = torch.tensor(stay)
    gone = torch.ones(model.get_input_embeddings().weight.shape[0], dtype=torch.bool)
    gone[numbers] = False
    more, missing = 0.0, 0
    for window, pieces, ends in zip(windows, *translation.windows(windows), strict=True):
        covered = int(ends.max()) + 1
        lost = int(gone[window[1:covered]].sum())
        if not lost:
            continue
        rows = torch.zeros(2, len(window), dtype=torch.int64)
        rows[0], rows[1, : len(pieces)] = window, numbers[pieces]
        logits = model(rows.to(device), use_cache=False).logits[:, :-1].float().cpu()
        logits[1, :, gone[: logits.shape[-1]]] = -torch.inf
        lengths = covered - 1, int((ends == covered - 1).nonzero()[-1])
        losses = [
            float(cross_entropy(logits[row, :length], rows[row, 1 : length + 1], reduction="sum"))
            for row, length in enumerate(lengths)
        ]
        more, missing = more + losses[1] - losses[0], missing + lost
    return max(more / missing, 0.0) if missing else _COST


def _tables(model: PreTrainedModel) -> list[nn.Parameter]:
    """The parameters with a row for each token: embedding and head, once where they are tied."""
    bias = getattr(model.get_output_embeddings(), "bias", None)
    tables = [table.parameter for table in find_tables(model)]
    return tables if bias is None else [*tables, bias]
