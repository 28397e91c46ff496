"""The speed of prefill and decoding, of several models on the same machine."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers import DynamicCache

from pruner_zero.errors import PrunerZeroError
from pruner_zero.measuring.origin import Measured
from pruner_zero.models.language_model import LanguageModel, cache_arguments, check_tokens
from pruner_zero.models.matrices import size_of
from pruner_zero.progress import track

# Tokens that are decoded after the prompt.
GENERATED = 32


@dataclass(frozen=True, repr=False)
class Speed(Measured):
    """Tokens a second of one or several models, batch 1.

    rows: of each model its name, the number of its parameters, their bytes, and the medians of
    prefill (a pass over `prompt` tokens) and decode (`generated` tokens after them, one by one,
    with a cache).
    """

    shown = ("model", "parameters", "bytes", "prefill", "decode")

    rows: tuple[Mapping[str, Any], ...]
    prompt: int
    generated: int
    turns: int

    def caption(self) -> str:
        """What was measured, and how often."""
        return (
            f"tokens a second, batch 1: prefill of {self.prompt} tokens, decoding of "
            f"{self.generated} after them, medians of {self.turns} turns"
        )

    def figures(self) -> dict[str, Any]:
        """`speed` (the rows), and what was measured, as JSON values."""
        measured = {"prompt": self.prompt, "generated": self.generated, "turns": self.turns}
        return {"speed": [dict(row) for row in self.rows], "speed_settings": measured}


@torch.no_grad()
def measure_speed(
    models: Sequence[LanguageModel],
    prompt: int,
    *,
    generated: int = GENERATED,
    turns: int = 5,
) -> Speed:
    """The speed of `models`, which take turns, so that other work slows all of them alike.

    Each passes `check_speed`. A turn before the first warms up. The next token is the most likely
    one, which waits for the device.
    """
    seconds: list[list[tuple[float, float]]] = [[] for _ in models]
    for turn in track(range(turns + 1), "speed", turns + 1):
        for language_model, of_model in zip(models, seconds, strict=True):
            measured = _turn(language_model, prompt, generated)
            if turn:
                of_model.append(measured)
    rows = []
    for language_model, of_model in zip(models, seconds, strict=True):
        parameters, size = size_of(language_model.model)
        prefill, decode = (median(column) for column in zip(*of_model, strict=True))
        rows.append(
            {
                "model": language_model.name,
                "parameters": parameters,
                "bytes": size,
                "prefill": round(prompt / prefill, 2),
                "decode": round(generated / decode, 2),
            }
        )
    return Speed(tuple(rows), prompt, generated, turns)


def check_speed(language_model: LanguageModel, prompt: int) -> None:
    """Raise PrunerZeroError where a model has no cache of keys, or takes fewer tokens than these.

    Without keys and values of earlier tokens, there is no decoding token by token to measure.
    """
    check_tokens(language_model.model, torch.zeros(1, prompt, dtype=torch.int64), GENERATED)
    if cache_arguments(language_model.model, DynamicCache()) is None:
        raise PrunerZeroError(
            f"{language_model.name} keeps no keys and values of earlier tokens, so that decoding "
            f"cannot be measured: leave out --speed"
        )


def _turn(language_model: LanguageModel, prompt: int, generated: int) -> tuple[float, float]:
    """The seconds of one prefill and of the decoding after it."""
    model = language_model.model
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (1, prompt), generator=generator).to(language_model.device)
    arguments = cache_arguments(model, DynamicCache(config=model.config))
    assert arguments is not None
    begin = time.perf_counter()
    token = int(model(tokens, **arguments).logits[0, -1].argmax())
    filled = time.perf_counter()
    for _ in range(generated):
        token = int(model(tokens.new_tensor([[token]]), **arguments).logits[0, -1].argmax())
    return filled - begin, time.perf_counter() - filled
