"""Generation: how much a model repeats itself, in which scripts it writes, and who agrees."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruner_zero.calibration.self_text import repeated_shares
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.predictions import Divergence, compare_predictions
from pruner_zero.models.sampling import continue_prompts, end_tokens
from pruner_zero.text.scripts import count_scripts
from pruner_zero.text.token_windows import Windows, begun

# Tokens of a prompt, tokens that are written after it, and prompts that are continued together.
PROMPT, WRITTEN = 32, 64
_AT_ONCE = 32


@dataclass(frozen=True)
class Generation:
    """What a model writes after prompts, always its most likely token: values of each continuation.

    repeated_each: the share of the 4-grams of tokens that it has before, 1 − distinct / all.
    other_scripts_each: the share of its letters in scripts of which its prompt has none; 0 where
    the prompt has no letters. compared: the divergence from another model's predictions along the
    continuations, None without one.

    Source: seq-rep-4 of Welleck et al. 2019 (1908.04319), there after 50 tokens, of 100.
    """

    repeated_each: tuple[float, ...]
    other_scripts_each: tuple[float, ...]
    compared: Divergence | None = None

    @property
    def repeated(self) -> float:
        """The mean share of repeated 4-grams."""
        return sum(self.repeated_each) / len(self.repeated_each)

    @property
    def other_scripts(self) -> float:
        """The mean share of letters in other scripts."""
        return sum(self.other_scripts_each) / len(self.other_scripts_each)

    def to_json(self) -> dict[str, Any]:
        """The sizes, the means, the values of each continuation, and those beside, as JSON."""
        values: dict[str, Any] = {
            "prompts": len(self.repeated_each),
            "prompt_tokens": PROMPT,
            "tokens": WRITTEN,
            "repeated": self.repeated,
            "other_scripts": self.other_scripts,
            "repeated_each": list(self.repeated_each),
            "other_scripts_each": list(self.other_scripts_each),
        }
        return {**values, "beside": self.compared.to_json()} if self.compared else values


def take_prompts(windows: Windows, count: int) -> Tensor:
    """`count` evenly spaced pieces of the text in consecutive `windows`, of `PROMPT` tokens each.

    Returns (count, tokens) int64; before the piece is what every window begins with. Raises
    PrunerZeroError where the windows hold fewer.
    """
    stream = windows.tokens[:, len(windows.start) :].flatten()
    most = len(stream) // PROMPT
    if count > most:
        raise PrunerZeroError(
            f"the windows of {windows.corpus} hold {most} prompts of {PROMPT} tokens and not "
            f"{count}: choose a smaller --generate, more --windows or a longer text"
        )
    pieces = stream[: most * PROMPT].view(most, PROMPT)
    return begun(pieces[torch.arange(count) * most // count], windows.start)


def measure_generation(
    language_model: LanguageModel,
    prompts: Tensor,
    dense: LanguageModel | None = None,
    batch_size: int = 1,
) -> Generation:
    """What `language_model` writes after `prompts` (n, tokens) of int64, `WRITTEN` tokens each.

    Tokens that end a text are not written. dense: a model with the same tokens, whose predictions
    are compared along the continuations, `batch_size` of them in a forward pass. Raises
    PrunerZeroError as `continue_prompts` and `compare_predictions` do.
    """
    model, tokenizer = language_model.model, language_model.tokenizer
    ends = torch.tensor(sorted(end_tokens(language_model)), dtype=torch.int64)
    parts = prompts.split(_AT_ONCE)
    written = torch.cat([continue_prompts(model, part, WRITTEN, ends) for part in parts])
    texts = (
        tokenizer.batch_decode(t.tolist(), skip_special_tokens=True) for t in (prompts, written)
    )
    compared = None
    if dense is not None:
        whole, first = torch.cat([prompts, written], 1), prompts.shape[1] - 1
        compared = compare_predictions(model, dense.model, whole, batch_size, first)
    return Generation(
        tuple(repeated_shares(written, ()).tolist()),
        tuple(_in_other_scripts(*pair) for pair in zip(*texts, strict=True)),
        compared,
    )


def _in_other_scripts(prompt: str, written: str) -> float:
    known = count_scripts(prompt)
    others = (share for name, share in count_scripts(written).items() if name not in known)
    return float(sum(others)) if known else 0.0
