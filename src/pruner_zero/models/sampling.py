"""Text that a model writes: windows of tokens, drawn one token after the other."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, DynamicLayer, PreTrainedModel

from pruner_zero.devices import has_fast_bfloat16
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel, cache_arguments
from pruner_zero.models.next_token import in_bfloat16, in_float32, positions_at_once
from pruner_zero.progress import track

# The separator between documents in the training text of many models. In models tuned to follow
# instructions, BOS begins a turn of a dialogue and not a document.
_SEPARATOR = "<|endoftext|>"


def start_token(language_model: LanguageModel) -> int:
    """The token that a document begins with: `<|endoftext|>`, else the tokenizer's BOS or EOS.

    Where the tokenizer has none of them, BOS or EOS of the model's configuration. Raises
    PrunerZeroError where the configuration has neither.
    """
    vocabulary = language_model.tokenizer.get_vocab()
    if _SEPARATOR in vocabulary:
        return int(vocabulary[_SEPARATOR])
    for source in (language_model.tokenizer, language_model.model.config):
        for tokens in (_tokens(source, "bos_token_id"), _tokens(source, "eos_token_id")):
            if tokens:
                return tokens[0]
    raise PrunerZeroError(
        f"the tokenizer of {language_model.name} names no token that a document begins or ends "
        "with, and without one the model cannot write text: set its bos_token, or give a text"
    )


def end_tokens(language_model: LanguageModel) -> frozenset[int]:
    """The tokens that a document ends with, by the tokenizer and the model's configurations."""
    model = language_model.model
    generation = getattr(model, "generation_config", None)
    sources = (language_model.tokenizer, model.config, generation)
    return frozenset(token for source in sources for token in _tokens(source, "eos_token_id"))


def control_tokens(tokenizer: Any) -> frozenset[int]:
    """The special tokens: marks of turns and documents, which are no part of what a turn says.

    Qwen2.5-Coder, which was not trained on turns of users, writes them in the place of their end.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(token for token, entry in added.items() if entry.special)


def _tokens(source: Any, name: str) -> tuple[int, ...]:
    """The ids under `name`, which holds one, several or none; a negative one stands for none."""
    value = getattr(source, name, None)
    if value is None:
        return ()
    return tuple(token for token in ([value] if isinstance(value, int) else value) if token >= 0)


def writing_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype in which `model` writes: bfloat16 for float32 where products in it are fast."""
    fast = model.dtype == torch.float32 and has_fast_bfloat16(model.device)
    return torch.bfloat16 if fast else model.dtype


# The pieces of a document that the model does not write: the first begins the document, each later
# one takes the place of the token with which the model ends what it writes after the piece before.
Document = tuple[tuple[int, ...], ...]


@torch.no_grad()
def sample_windows(
    model: PreTrainedModel,
    documents: Sequence[Iterator[Document]],
    seqlen: int,
    generator: torch.Generator,
    *,
    ends: Collection[int] = (),
    banned: Tensor | None = None,
    dtype: torch.dtype | None = None,
    label: str = "writing text",
) -> Tensor:
    """Windows (n, seqlen) int64, on the CPU, of text that `model` writes.

    documents: for each window, those that it holds one after the other. Their pieces are put in
    where their turn comes; each other token is drawn from the distribution that the model gives, at
    temperature 1. A document ends with a token of `ends` after its last piece, or where the model
    draws the token that began it. Earlier documents are masked in attention, and where positions
    are learned, as in GPT-2, they count on. banned: tokens (m,) int64 that are never drawn.
    generator: on the CPU, whatever the device of the model. dtype: bfloat16 has a model in float32
    write in bfloat16, as `writing_dtype` recommends; None and other dtypes leave the model as it
    is. Raises PrunerZeroError where the model keeps no keys and values of earlier tokens, or where
    its probabilities are not finite.

    Source: Williams et al., arXiv 2410.17170; here the temperature is 1 throughout, and a window
    holds several documents. Dialogues: Magpie, arXiv 2406.08464.
    """
    next_logits = _next_logits(model, seqlen)
    states = [_Window(of_window, frozenset(ends)) for of_window in documents]
    tokens = torch.empty(len(states), seqlen, dtype=torch.int64)
    visible = torch.ones_like(tokens)

    def put(position: int, drawn: Sequence[int]) -> None:
        put_in = [state.step(token) for state, token in zip(states, drawn, strict=True)]
        tokens[:, position] = torch.tensor([token for token, _ in put_in])
        visible[torch.tensor([begins for _, begins in put_in]), :position] = 0

    put(0, [-1] * len(states))
    narrow = in_bfloat16 if dtype is torch.bfloat16 else in_float32
    with narrow(model):
        for position in track(range(1, seqlen), label, seqlen - 1):
            logits = next_logits(tokens[:, position - 1 : position], visible[:, :position])
            if banned is not None:
                logits = logits.index_fill(1, banned.to(logits.device), -torch.inf)
            chosen = torch.rand(len(states), 1, generator=generator, dtype=torch.float64)
            put(position, draw_tokens(logits, chosen).tolist())
    return tokens


class _Window:
    """What stands next in one window: the rest of a piece, or what the model draws."""

    def __init__(self, documents: Iterator[Document], ends: Collection[int]) -> None:
        self.documents, self.ends = documents, ends
        self.pieces: list[tuple[int, ...]] = []
        self.forced: list[int] = []
        self.first, self.ended = -1, True

    def step(self, drawn: int) -> tuple[int, bool]:
        """The next token, where the model draws `drawn`, and whether a document begins with it."""
        begins = self.ended or (not self.forced and drawn == self.first)
        if begins:
            opening, *self.pieces = next(self.documents)
            self.first, self.forced, self.ended = opening[0], list(opening), False
        elif not self.forced and drawn in self.ends:
            self.ended = not self.pieces
            self.forced = list(self.pieces.pop(0)) if self.pieces else []
        return (self.forced.pop(0) if self.forced else drawn), begins


# Logits whose weights are summed in float32; the sums are added up in float64.
_CHUNK = 1024


def draw_tokens(logits: Tensor, chosen: Tensor) -> Tensor:
    """The tokens (n,) int64, on the CPU, at the quantiles `chosen` of the softmax of `logits`.

    logits: (n, vocabulary), of any floating-point dtype and on any device; minus infinity stands
    for a token that is never drawn. chosen: (n, 1) float64 from [0, 1), on the CPU. The inverse of
    the cumulative distribution is found in two stages, the chunk of the vocabulary and the token in
    it, since a cumulative sum over the vocabulary takes longer than a small model's forward pass.
    Raises PrunerZeroError where the softmax is not finite.
    """
    logits = functional.pad(logits.float(), (0, -logits.shape[1] % _CHUNK), value=-torch.inf)
    weights = logits.sub_(logits.amax(1, keepdim=True)).exp_().unflatten(1, (-1, _CHUNK))
    sums = weights.sum(2).cpu().double()
    if not sums.isfinite().all():
        raise PrunerZeroError(
            "the model's probabilities are not finite: its weights are damaged or its dtype is "
            "too narrow, try --dtype float32"
        )
    chunks, rest = _invert(sums, chosen)
    rows = torch.arange(len(weights), device=weights.device)
    within = weights[rows, chunks[:, 0].to(weights.device)].cpu().double()
    return (_CHUNK * chunks + _invert(within, rest)[0])[:, 0]


def label_places(windows: Tensor, seed: int = 0) -> Tensor:
    """Where in the model's prediction after each of `windows` (n, tokens) its label is drawn.

    Quantiles (n, tokens, 1) float64, as `draw_tokens` takes them; the same for the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*windows.shape, 1, dtype=torch.float64, generator=generator)


def drawn_label_loss(model: nn.Module, window: Tensor, places: Tensor) -> Tensor:
    """The sum of the cross entropies of a window (1, tokens) with labels that the model draws.

    places: where each label is in the model's prediction, (tokens, 1), as from `label_places`. The
    last token has a label too. A scalar, nats, fp32; its gradients as those of `next_token_loss`.
    """
    window = window.to(next(model.parameters()).device)
    logits = model(window, use_cache=False).logits[0].float()
    rows = positions_at_once(logits)
    parts = zip(logits.detach().split(rows), places.split(rows), strict=True)
    labels = torch.cat([draw_tokens(part, chosen) for part, chosen in parts])
    return functional.cross_entropy(logits, labels.to(logits.device), reduction="sum")


def _invert(weights: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The column of each row in which the share `chosen` (n, 1) of its sum lies, and where in it.

    weights: (n, columns) float64, non-negative; a column of weight 0 is never found.
    """
    cumulative = weights.cumsum(1)
    total = cumulative[:, -1:]
    target = (chosen * total).minimum(total.nextafter(torch.zeros(())))
    found = torch.searchsorted(cumulative, target, right=True)
    weight = weights.gather(1, found)
    return found, (1 - (cumulative.gather(1, found) - target) / weight).clamp(0, 1)


def _next_logits(model: PreTrainedModel, capacity: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A function that gives the logits of the next token, and keeps all that it was given.

    Its arguments: the tokens of the windows (n, tokens) since the last call, and for all tokens so
    far (n, tokens) 0 where they are masked. The logits (n, vocabulary) have the model's dtype.
    capacity: how many tokens a window has in the end.
    """
    cache, device = DynamicCache(config=model.config), model.device
    cache.layers = [
        _RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    arguments = cache_arguments(model, cache)
    refusal = PrunerZeroError(
        f"{type(model).__name__} keeps no keys and values of earlier tokens, without which writing "
        "text takes too long: give a text as --calibration"
    )
    if arguments is None:
        raise refusal

    def following(tokens: Tensor, visible: Tensor) -> Tensor:
        output = model(tokens.to(device), attention_mask=visible.to(device), **arguments)
        if cache.get_seq_length() != visible.shape[1]:
            raise refusal
        logits: Tensor = output.logits[:, -1]
        return logits

    return following


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, in memory that is allocated once for `capacity` tokens.

    DynamicLayer copies all of them for every token.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        if not self.is_initialized:
            # What `lazy_initialization` does, without tensors of no elements.
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized: bool = True
            self.room = [
                states.new_empty(*states.shape[:2], self.capacity, states.shape[3])
                for states in (key_states, value_states)
            ]
        end = start + key_states.shape[-2]
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start:end] = states
        self.keys, self.values = (room[:, :, :end] for room in self.room)
        return self.keys, self.values
