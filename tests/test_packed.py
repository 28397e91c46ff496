"""benchmarks/packed.py gives the log-likelihoods of lm-eval's own model."""

import copy
import random
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval")

from pruner_zero.evaluation.tasks import harness_model
from pruner_zero.models import LanguageModel
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen2"])
def test_choices_that_share_a_question_are_scored_as_if_alone(kind: str) -> None:
    from packed import packed

    generator = random.Random(0)

    def tokens(most: int) -> list[int]:
        return [generator.randrange(5, 60) for _ in range(generator.randint(1, most))]

    requests = []
    for _ in range(40):
        question = tokens(3)
        requests += [(("", ""), question, tokens(3)) for _ in range(generator.randint(1, 4))]
    generator.shuffle(requests)
    language_model = LanguageModel(tiny_model(kind), tiny_tokenizer(), kind)
    plain = harness_model(copy.deepcopy(language_model), 1)
    wanted = plain._loglikelihood_tokens(requests, disable_tqdm=True)
    scored = packed(language_model)._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [greedy for _, greedy in scored] == [greedy for _, greedy in wanted]
    likelihoods = torch.tensor([value for value, _ in scored])
    assert torch.allclose(likelihoods, torch.tensor([value for value, _ in wanted]), atol=1e-4)


def test_a_question_beyond_the_sliding_window_is_refused() -> None:
    from packed import packed

    language_model = LanguageModel(tiny_model("gemma3"), tiny_tokenizer(), "gemma3")
    request = (("", ""), [5] * 20, [6])
    with pytest.raises(ValueError, match="window"):
        packed(language_model)._loglikelihood_tokens([request])
