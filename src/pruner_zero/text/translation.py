"""The tokens of a tokenizer in those of one that has only some of them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from tokenizers import Tokenizer
from torch import Tensor


@dataclass(frozen=True)
class Translation:
    """The pieces of each token of a tokenizer in one with fewer tokens.

    pieces: by the number of a token, the numbers of its pieces, one for a token that both have;
    number 0 stands in for the pieces of a number without a token.
    """

    pieces: tuple[tuple[int, ...], ...]

    @classmethod
    def between(cls, dense: Tokenizer, small: Tokenizer) -> Self | None:
        """From `dense` to `small`; None where `small` has tokens that `dense` lacks."""
        tokens, kept = dense.get_vocab(), small.get_vocab()
        if not kept.keys() <= tokens.keys():
            return None
        pieces = [(0,)] * (max(tokens.values()) + 1)
        for token, number in tokens.items():
            if token in kept:
                pieces[number] = (kept[token],)
            else:
                pieces[number] = tuple(piece.id for piece in small.model.tokenize(token))
        return cls(tuple(pieces))

    @cached_property
    def first(self) -> Tensor:
        """The first piece of each token: (tokens,) int64."""
        return torch.tensor([pieces[0] for pieces in self.pieces])

    def windows(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Windows (n, seqlen) in pieces, each cut off after `seqlen`, and where tokens end.

        The second tensor (n, seqlen) has, for the last piece of a token, the place of the token in
        its window, and −1 for the other pieces.
        """
        rows, places = [], []
        for window in tokens.tolist():
            row: list[int] = []
            ends: list[int] = []
            for place, token in enumerate(window):
                pieces = self.pieces[token]
                row += pieces
                ends += [*[-1] * (len(pieces) - 1), place]
                if len(row) >= len(window):
                    break
            rows.append(row[: len(window)])
            places.append(ends[: len(window)])
        return torch.tensor(rows), torch.tensor(places)
