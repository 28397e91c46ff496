"""The dense model's predictions that a pruned model is trained towards, and the divergence."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pruner_zero.models.block_calls import blocks_replaced
from pruner_zero.text.translation import Translation

# The most probable tokens of each position that are kept apart; the others are one event together.
KEPT = 512
# The number of logits computed at a time: in float32 they take 64 MiB.
LOGITS = 2**24
# The number of them that a core has in its cache.
_IN_CACHE = 2**20
# The least logarithm of a probability.
_LEAST = -100.0


class Target(NamedTuple):
    """The dense model's distribution at some positions.

    tokens: the most probable ones (positions, k) int32. log_p: the logarithms of their
    probabilities, float16, whose error is below 0.4 %. log_rest: that of the probability of all
    other tokens together (positions,), float32.
    """

    tokens: Tensor
    log_p: Tensor
    log_rest: Tensor

    def part(self, positions: slice) -> "Target":
        """Some of the positions."""
        return Target(*(values[positions] for values in self))

    def of_pieces(self, pieces: Tensor, ends: Tensor) -> "Target":
        """The target of a window in pieces, what `Translation.windows` gives of it (seqlen,).

        After the last piece of a token it is the target of the token; within a token, the next
        piece alone.
        """
        rows, ended, following = ends[:-1].clamp_min(0), ends[:-1] >= 0, pieces[1:, None]
        tokens, log_p, log_rest = (values[rows] for values in self)
        # The next piece takes the last place where it is not among the most probable tokens.
        held = (tokens == following) & ~ended[:, None]
        absent = ~held.any(-1) & ~ended
        tokens[absent, -1] = following[absent, 0].int()
        held[absent, -1] = True
        log_p = log_p.masked_fill(~ended[:, None], _LEAST).masked_fill(held, 0)
        return Target(tokens, log_p, log_rest.masked_fill(~ended, _LEAST))


def logits_in_chunks(
    model: nn.Module, windows: Tensor, hidden: Tensor, as_tuple: bool
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The logits (positions, vocabulary) of `LOGITS` numbers at a time, with their inputs.

    windows: (n, tokens), of which the last positions have no next token and are left out; the
    others are numbered through, and the slice says which a chunk has. hidden: the last block's
    output (n, tokens, width). The inputs (1, positions, width) are leaves of a graph if gradients
    are enabled. as_tuple: as in `BlockCalls`.
    """
    ids = windows[:, :-1].reshape(1, -1)
    states = hidden.detach()[:, :-1].reshape(1, -1, hidden.shape[-1])
    vocabulary = model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    size = max(1, min(LOGITS // vocabulary, windows.shape[1]))
    for first in range(0, ids.shape[1], size):
        positions = slice(first, min(first + size, ids.shape[1]))
        inputs = states[:, positions].clone().requires_grad_(torch.is_grad_enabled())
        with blocks_replaced(model, inputs, as_tuple):
            logits = model(ids[:, positions], use_cache=False).logits[0]
        yield positions, inputs, logits


def target_of(
    model: nn.Module,
    windows: Tensor,
    hidden: Tensor,
    as_tuple: bool,
    translation: Translation | None = None,
) -> Target:
    """The predictions of `model` for `windows` (n, tokens), after what `run_blocks` gave.

    translation: to a tokenizer with fewer tokens, whose tokens are predicted: a token that it lacks
    adds its probability to that of its first piece. The positions are then those of the pieces.
    """
    parts = []
    for *_, logits in logits_in_chunks(model, windows, hidden, as_tuple):
        parts.append(_most_probable(logits if translation is None else _moved(logits, translation)))
    probable, log_p, log_rest = map(torch.cat, zip(*parts, strict=True))
    target = Target(probable, log_p, log_rest)
    if translation is not None:
        positions, rows = windows.shape[1] - 1, zip(*translation.windows(windows), strict=True)
        translated = [
            target.part(slice(number * positions, (number + 1) * positions)).of_pieces(*row)
            for number, row in enumerate(rows)
        ]
        target = Target(*map(torch.cat, zip(*translated, strict=True)))
    # Last, because autocast refuses to join tensors of float16.
    return target._replace(log_p=target.log_p.half())


def _moved(logits: Tensor, translation: Translation) -> Tensor:
    """The logarithms of the probabilities (positions, tokens) of the first pieces."""
    first = translation.first.to(logits.device)
    p = logits[:, : len(first)].float().softmax(-1)
    moved = p.new_zeros(len(p), int(first.max()) + 1).index_add_(1, first, p)
    return moved.log_().clamp_min_(_LEAST)


def _most_probable(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The fields of the target of `logits` (positions, vocabulary), on the CPU."""
    scores = logits.to(torch.float32, copy=True)
    top, tokens = scores.topk(min(KEPT, scores.shape[-1] - 1), -1)
    rest = scores.scatter_(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
    total = torch.logaddexp(top.logsumexp(-1, keepdim=True), rest)
    # A logarithm of 0 would give 0 · ∞ in the loss.
    log_rest = (rest - total)[:, 0].clamp_min(_LEAST)
    return tokens.int().cpu(), (top - total).clamp_min(_LEAST).cpu(), log_rest.cpu()


def divergence(logits: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """KL(target ‖ softmax of `logits` (positions, vocabulary)), summed, and its gradient.

    All tokens but those of `target` count as one event. Both are float32. A few rows at a time,
    which stay in the cache of a core: rows of 262,144 words take a third of the time so.
    """
    tokens, log_p, log_rest = (values.to(logits.device) for values in target)
    # A copy, which becomes the gradient.
    gradient = logits.detach().to(torch.float32, copy=True)
    size = max(1, _IN_CACHE // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    fields = (gradient, tokens.long(), log_p.float(), log_rest)
    parts = zip(*(values.split(size) for values in fields), strict=True)
    return torch.stack([_to_gradient(*part) for part in parts]).sum(), gradient


def _to_gradient(scores: Tensor, tokens: Tensor, log_p: Tensor, log_rest: Tensor) -> Tensor:
    """The loss of some rows, summed; their `scores` (rows, vocabulary) become its gradient."""
    top = scores.gather(-1, tokens)
    scores.scatter_(-1, tokens, -torch.inf)
    rest = scores.logsumexp(-1, keepdim=True)
    total = torch.logaddexp(top.logsumexp(-1, keepdim=True), rest)
    log_q, log_left = top - total, (rest - total)[:, 0]
    p, left = log_p.exp(), log_rest.exp()
    loss = (p * (log_p - log_q)).sum() + (left * (log_rest - log_left)).sum()
    # The gradient of the one event is divided among its tokens by their shares in it.
    scores.sub_(rest).exp_().mul_((log_left.exp() - left)[:, None])
    scores.scatter_(-1, tokens, log_q.exp() - p)
    return loss
