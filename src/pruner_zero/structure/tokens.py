"""Tokenizers of byte-pair encoding with fewer tokens, from the JSON of the `tokenizers` package."""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.text.scripts import characters_of

Pair = tuple[str, str]

# Added tokens that a model reserves for later use, which it never saw: <unused12> of Gemma,
# <|reserved_special_token_12|> of Llama 3, <|dummy_12|> of Phi 4.
_PLACEHOLDER = re.compile(r"(unused|reserved|place.?holder|dummy)\D*\d", re.IGNORECASE)
# What any text can be made of: characters that stand for bytes or, with byte fallback, ASCII
# characters, the sign for a space, and bytes for all other characters.
_CHARACTER, _ASCII_OR_BYTE = re.compile(r".", re.DOTALL), re.compile(r"[\x00-\x7f▁]|<0x..>")


def check_tokenizer(tokenizer: Any) -> None:
    """Raise PrunerZeroError for a `tokenizer` of transformers that `TokenTable` cannot cut."""
    if not getattr(tokenizer, "is_fast", False):
        raise PrunerZeroError(
            "--structure vocabulary cuts tokenizers of the package tokenizers, and this "
            f"{type(tokenizer).__name__} is written in Python: leave out --structure"
        )
    model = tokenizer.backend_tokenizer.model
    pairs = isinstance(model, BPE)
    if not pairs or model.continuing_subword_prefix or model.end_of_word_suffix:
        kind = f"{type(model).__name__}{' with marked parts of words' if pairs else ''}"
        raise PrunerZeroError(
            "--structure vocabulary cuts tokenizers of byte-pair encoding, and this one is "
            f"{kind}: leave out --structure"
        )


class TokenTable:
    """The tokens of a byte-pair `tokenizer` of transformers, and how merges make them.

    Raises PrunerZeroError as `check_tokenizer` does.
    """

    def __init__(self, tokenizer: Any) -> None:
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self.spec: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        model = self.spec["model"]
        self.ids: dict[str, int] = model["vocab"]
        self.names = {number: token for token, number in self.ids.items()}
        self.added: set[int] = {each["id"] for each in self.spec["added_tokens"]}
        self.merges: list[Pair] = [(first, second) for first, second in model["merges"]]
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}

    @property
    def count(self) -> int:
        """One more than the highest number of a token."""
        return 1 + max(self.names.keys() | self.added)

    def always(
        self, words: Sequence[str] = (), scripts: Sequence[str] = (), named: Collection[int] = ()
    ) -> set[int]:
        """The tokens that must stay, each with the tokens on its path.

        Single bytes or their fallback and ASCII characters, with which every text can still be
        encoded; the unknown token; added tokens, but of those that only reserve a number the ones
        that the tokenizer, its chat template or its post-processor names; the tokens `named`; those
        of `words`, at the beginning of a text and after a space; characters of `scripts`.
        """
        model, special = self.spec["model"], self.tokenizer.all_special_tokens
        single = _ASCII_OR_BYTE if model.get("byte_fallback") else _CHARACTER
        texts = f"{self.spec['post_processor']} {self.tokenizer.chat_template}"

        def in_use(token: str) -> bool:
            return not _PLACEHOLDER.search(token) or token in special or token in texts

        unknown = model.get("unk_token")
        stay = {number for token, number in self.ids.items() if single.fullmatch(token)}
        stay |= {number for token, number in self.ids.items() if token == unknown}
        stay |= {each["id"] for each in self.spec["added_tokens"] if in_use(each["content"])}
        spaced = [*words, *(f" {word}" for word in words)]
        encoded = self.tokenizer.backend_tokenizer.encode_batch(spaced, add_special_tokens=False)
        tokens = {number for encoding in encoded for number in encoding.ids}.union(named)
        if scripts:
            tokens.update(characters_of(scripts, self.tokenizer))
        paths = (self.path(number) for number in tokens & self.names.keys() - self.added)
        return stay.union(tokens, *(path for path in paths if path))

    def in_order(self, shares: Tensor) -> list[int]:
        """All tokens by their `shares` (count or more,) of a text, the largest first."""
        of_each = shares.tolist()
        return sorted(self.names, key=lambda number: (-of_each[number], number))

    def path(self, number: int) -> set[int] | None:
        """The tokens that merges pass through on the way to a token, itself among them.

        None where no merges lead to it, so that it never occurs in an encoded text.
        """
        token = self.names[number]
        symbols, passed = list(token), set(token)
        while len(symbols) > 1:
            best = min(pairwise(symbols), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            symbols = _merged(symbols, best)
            passed.add("".join(best))
        if symbols != [token] and not self.spec["model"].get("ignore_merges"):
            return None
        passed.add(token)
        return {self.ids[symbol] for symbol in passed} if self.ids.keys() >= passed else None

    def choose(self, order: Iterable[int], size: int, stay: Collection[int]) -> list[int]:
        """Up to `size` tokens, sorted: those that must `stay`, then others in `order`.

        A token comes with all tokens on its path, so that text of chosen tokens alone is encoded
        as before. One whose path does not fit any more is left out.
        """
        chosen = set(stay)
        for number in order:
            if len(chosen) >= size:
                break
            if number in chosen or number not in self.names:
                continue
            path = self.path(number)
            if path is not None and len(chosen) + len(path - chosen) <= size:
                chosen |= path
        return sorted(chosen)

    def cut(self, kept: Sequence[int]) -> dict[str, Any]:
        """The JSON of the tokenizer with the tokens `kept`, sorted and numbered in their order."""
        numbers = {old: new for new, old in enumerate(kept)}
        vocab = {token: numbers[old] for token, old in self.ids.items() if old in numbers}
        merges = [pair for pair in self.merges if {*pair, "".join(pair)} <= vocab.keys()]
        added = [each for each in self.spec["added_tokens"] if each["id"] in numbers]
        return {
            **self.spec,
            "model": {**self.spec["model"], "vocab": vocab, "merges": merges},
            "added_tokens": [{**each, "id": numbers[each["id"]]} for each in added],
            "post_processor": _renumbered(self.spec["post_processor"], numbers),
        }


def replace_tokens(tokenizer: Any, spec: dict[str, Any]) -> None:
    """Give a tokenizer of transformers the tokens of `spec`, which `TokenTable.cut` made."""
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(spec))
    # Tokenizers of one family keep what they were made of.
    for name in ("vocab", "merges"):
        if hasattr(tokenizer, f"_{name}"):
            setattr(tokenizer, f"_{name}", spec["model"][name])


def _merged(symbols: Sequence[str], pair: Pair) -> list[str]:
    """The symbols after the merge of every occurrence of `pair`, from the left."""
    made, at = [], 0
    while at < len(symbols):
        found = tuple(symbols[at : at + 2]) == pair
        made.append("".join(pair) if found else symbols[at])
        at += 1 + found
    return made


def _renumbered(part: Any, numbers: dict[int, int]) -> Any:
    """A post-processor with new numbers: in lists called ids, and in pairs of token and number."""
    if isinstance(part, dict):
        return {
            key: [numbers[each] for each in value] if key == "ids" else _renumbered(value, numbers)
            for key, value in part.items()
        }
    if isinstance(part, list):
        if len(part) == 2 and isinstance(part[0], str) and isinstance(part[1], int):
            return [part[0], numbers[part[1]]]
        return [_renumbered(each, numbers) for each in part]
    return part
