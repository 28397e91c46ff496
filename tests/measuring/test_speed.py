"""Speed: its measures, the turns of the models, and several models side by side."""

import time
from pathlib import Path
from typing import Any

import torch

from pruner_zero import evaluate
from pruner_zero.measuring.speed import measure_speed
from pruner_zero.models.language_model import LanguageModel
from tests.pruning.conftest import language_model
from tests.tiny_models import tiny_model


def slowed(model: LanguageModel, prefill: float, decode: float) -> list[int]:
    """Delays passes of many tokens by `prefill` s and of one by `decode` s; lists their tokens."""
    token_counts: list[int] = []

    def wait(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = (args[0] if args else kwargs["input_ids"]).shape[1]
        token_counts.append(tokens)
        time.sleep(prefill if tokens > 1 else decode)

    model.model.register_forward_pre_hook(wait, with_kwargs=True)
    return token_counts


def test_prefill_and_decoding_are_timed_apart_in_turns_after_a_warm_up() -> None:
    fast, slow = language_model("llama"), language_model("gemma3")
    token_counts, _ = slowed(fast, 0.02, 0.01), slowed(slow, 0.06, 0.03)
    result = measure_speed([fast, slow], 8, generated=3, turns=2)
    assert token_counts == [8, 1, 1, 1] * 3
    first, second = result.rows
    assert (first["model"], second["model"]) == ("llama", "gemma3")
    # Waiting is a lower bound of the time, so the speed has an upper bound.
    assert 0 < first["prefill"] <= 8 / 0.02
    assert 0 < first["decode"] <= 1 / 0.01
    assert 0 < second["prefill"] <= 8 / 0.06
    assert 0 < second["decode"] <= 1 / 0.03


def test_the_decoded_tokens_are_those_of_generate() -> None:
    model = language_model("llama")
    written: list[int] = []
    model.model.register_forward_pre_hook(
        lambda _module, args, _kwargs: written.append(int(args[0][0, -1])), with_kwargs=True
    )
    measure_speed([model], 8, generated=4, turns=1)
    tokens = torch.randint(257, (1, 8), generator=torch.Generator().manual_seed(0))
    expected = tiny_model("llama").generate(
        tokens, max_new_tokens=4, do_sample=False, eos_token_id=None
    )
    assert written[1:5] == expected[0, 8:].tolist()


def test_parameters_and_bytes_of_each(llama_folder: Path) -> None:
    result = evaluate(llama_folder, speed=True, seqlen=8, beside=[str(llama_folder)])
    assert len(result.rows) == 2
    for row in result.rows:
        parameters = tiny_model("llama").num_parameters()
        assert (row["parameters"], row["bytes"]) == (parameters, 4 * parameters)
