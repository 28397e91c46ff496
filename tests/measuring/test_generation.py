"""Generation: prompts from all over the text, and each measure as its definition says."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruner_zero import evaluate
from pruner_zero.measuring import speed
from pruner_zero.measuring.generation import (
    PROMPT,
    WRITTEN,
    Generation,
    measure_generation,
    take_prompts,
)
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.sampling import end_tokens
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.token_windows import consecutive_windows
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model


def language_model(seed: int = 0) -> LanguageModel:
    return LanguageModel(tiny_model("llama", seed), tiny_tokenizer(), f"llama {seed}")


def prompts_of(text: str, count: int) -> Tensor:
    return take_prompts(consecutive_windows(Corpus("text", text), tiny_tokenizer(), 40), count)


@torch.no_grad()
def write_plainly(language_model: LanguageModel, prompts: Tensor) -> list[list[int]]:
    """The most likely token, from a pass over all tokens so far; none that ends a text."""
    ends = end_tokens(language_model)
    written = []
    for prompt in prompts.tolist():
        tokens = list(prompt)
        for _ in range(WRITTEN):
            scores = language_model.model(torch.tensor([tokens])).logits[0, -1].tolist()
            tokens.append(max((s, -n) for n, s in enumerate(scores) if n not in ends)[1] * -1)
        written.append(tokens[len(prompt) :])
    return written


@pytest.mark.parametrize("begins", [False, True])
def test_prompts_are_evenly_spaced_pieces_of_the_text(begins: bool, prose: str) -> None:
    """Whatever the windows' length, also where each begins with BOS."""
    windows = consecutive_windows(Corpus("text", prose), tiny_tokenizer(begins=begins), 21, 20)
    prompts = take_prompts(windows, 3)
    text = prose.encode()[: 20 * (21 - begins)]
    places = [number * (len(text) // PROMPT) // 3 * PROMPT for number in range(3)]
    pieces = [text[place : place + PROMPT].decode() for place in places]
    assert tiny_tokenizer().batch_decode(prompts[:, begins:].tolist()) == pieces
    assert (prompts[:, :begins] == 0).all()
    assert take_prompts(windows, len(text) // PROMPT).shape == (len(text) // PROMPT, 32 + begins)
    line = refusal(lambda: take_prompts(windows, 14))
    assert line.startswith(f"the windows of text hold {len(text) // PROMPT} prompts of 32 tokens")


def test_each_measure_is_that_of_its_definition(prose: str) -> None:
    model, dense, prompts = language_model(1), language_model(1), prompts_of(prose, 3)
    with torch.no_grad():
        # So that they agree on some tokens alone.
        dense.model.model.layers[0].mlp.down_proj.weight *= 3
    result = measure_generation(model, prompts, dense, batch_size=2)
    written = write_plainly(model, prompts)
    for tokens, repeated in zip(written, result.repeated_each, strict=True):
        grams = [tuple(tokens[i : i + 4]) for i in range(WRITTEN - 3)]
        assert repeated == pytest.approx(1 - len(set(grams)) / len(grams))
    decoded = tiny_tokenizer().batch_decode(written)
    for text, other in zip(decoded, result.other_scripts_each, strict=True):
        letters = [unicodedata.name(c) for c in text if unicodedata.category(c)[0] == "L"]
        foreign = [name for name in letters if not name.startswith("LATIN ")]
        assert other == pytest.approx(len(foreign) / len(letters) if letters else 0)
    agreed = []
    for prompt, tokens in zip(prompts.tolist(), written, strict=True):
        with torch.no_grad():
            logits = dense.model(torch.tensor([prompt + tokens])).logits[0, PROMPT - 1 : -1]
        agreed.append(sum(logits.argmax(-1).eq(torch.tensor(tokens)).tolist()) / WRITTEN)
    assert result.compared is not None
    assert 0 < sum(agreed) < 3
    assert result.compared.agreed == pytest.approx(agreed)
    assert measure_generation(model, prompts).compared is None
    itself = measure_generation(model, prompts, model).compared
    assert itself is not None
    assert (itself.divergence, itself.agreement) == (0, 1)


def test_letters_of_other_scripts_than_each_prompt() -> None:
    """A model that writes Greek alone: of a Greek prompt, and of one without letters, no other."""
    texts = ["Latin letters alone".ljust(PROMPT), "λ" * 16, "1234 5678".ljust(PROMPT)]
    prompts = torch.tensor(tiny_tokenizer()(texts, add_special_tokens=False)["input_ids"])
    greek = tiny_tokenizer()("λ" * (WRITTEN // 2), add_special_tokens=False)["input_ids"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pruner_zero.measuring.generation.continue_prompts",
            lambda *_: torch.tensor([greek] * 3),
        )
        result = measure_generation(language_model(), prompts)
    assert result.other_scripts_each == (1.0, 0.0, 0.0)
    assert result.other_scripts == pytest.approx(1 / 3)
    assert result.repeated == pytest.approx(1 - 2 / (WRITTEN - 3))


@pytest.mark.parametrize("beside", [False, True])
def test_it_is_written_with_the_perplexity_of_each_text(
    beside: bool, llama_folder: Path, text_file: Path, prose: str, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    options: dict[str, Any] = {"beside": llama_folder} if beside else {}
    sizes: dict[str, Any] = {"seqlen": 40, "generate": 3, "output": file, **options}
    result = evaluate(language_model(1).model, text_file, tokenizer=tiny_tokenizer(), **sizes)
    dense = language_model() if beside else None
    expected = measure_generation(language_model(1), prompts_of(prose, 3), dense)
    assert result.generation == expected
    assert json.loads(file.read_text())["generation"] == expected.to_json()
    row = result.to_rows()[0]
    assert (row["repeated"], row["other_scripts"]) == (expected.repeated, expected.other_scripts)
    assert ("written_agreement" in row) == beside
    assert "repeated" in repr(result)
    assert ("written agreement" in repr(result)) == beside


def test_what_cannot_write_is_refused_before_anything_is_measured(
    prose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, passes = tiny_model("gpt2"), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    options: dict[str, Any] = {"tokenizer": tiny_tokenizer(), "seqlen": 40, "generate": 2}
    line = refusal(lambda: evaluate(model, [prose], **options))
    assert "windows of 96 tokens are longer than the 64 positions" in line
    monkeypatch.setattr(speed, "check_tokens", lambda *_: None)
    monkeypatch.setattr(speed, "cache_arguments", lambda *_: None)
    line = refusal(lambda: evaluate(model, [prose], **options))
    assert line.endswith("so that decoding cannot be measured: leave out --generate")
    assert not passes


def test_means_are_over_the_continuations() -> None:
    values = Generation((0.0, 0.5), (0.25, 0.25)).to_json()
    assert (values["repeated"], values["other_scripts"]) == (0.25, 0.25)
    assert (values["prompts"], values["prompt_tokens"], values["tokens"]) == (2, PROMPT, WRITTEN)
    assert "beside" not in values
