"""The loss that a language model is trained and judged by."""

import math

from torch import Tensor, nn
from torch.nn import functional


def next_token_loss(model: nn.Module, window: Tensor) -> Tensor:
    """The mean next-token cross entropy of `window` (1, tokens): a scalar, nats, fp32."""
    window = window.to(next(model.parameters()).device)
    logits = model(window, use_cache=False).logits[0, :-1].float()
    return functional.cross_entropy(logits, window[0, 1:])


def to_perplexity(loss: float) -> float:
    """The perplexity of a mean next-token loss in nats: `exp(loss)`, infinite on overflow."""
    return math.exp(loss) if loss < 700 else math.inf
