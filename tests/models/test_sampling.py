"""Text that a model writes is drawn from the distributions that it gives without a cache."""

from collections.abc import Collection, Iterator
from itertools import accumulate, cycle, repeat
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import cast_weights
from pruner_zero.models.sampling import (
    Document,
    draw_tokens,
    end_tokens,
    sample_windows,
    start_token,
    writing_dtype,
)
from tests.tiny import tiny_tokenizer
from tests.tiny_models import ARCHITECTURES, SLIDING_WINDOW, VOCABULARY, tiny_model

START, SEQLEN = 5, 3 * SLIDING_WINDOW
# So many that a window holds several documents.
ENDS = range(VOCABULARY // 2, VOCABULARY)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write(
    model: PreTrainedModel, windows: int = 3, ends: Collection[int] = (), **options: Any
) -> Tensor:
    return sample_windows(model, plain(windows), SEQLEN, generator(), ends=ends, **options)


def plain(windows: int) -> list[Iterator[Document]]:
    """Documents that begin with START."""
    return [repeat(((START,),)) for _ in range(windows)]


@torch.no_grad()
def write_plainly(model: PreTrainedModel, windows: int, ends: Collection[int]) -> Tensor:
    """Each token from a forward pass over its document so far, without a cache."""
    draws = generator()
    written = [[START] for _ in range(windows)]
    first = [0] * windows
    for place in range(1, SEQLEN):
        distributions = []
        for tokens, begin in zip(written, first, strict=True):
            document: dict[str, Any] = {"input_ids": torch.tensor([tokens[begin:]])}
            if model.config.model_type == "gpt2":
                document["position_ids"] = torch.arange(begin, place)[None]
            distributions.append(model(**document, use_cache=False).logits[0, -1].softmax(-1))
        chosen = torch.rand(windows, generator=draws, dtype=torch.float64).tolist()
        drawn = [
            next(token for token, below in enumerate(accumulate(shares.tolist())) if below > place)
            for shares, place in zip(distributions, chosen, strict=True)
        ]
        for row, tokens in enumerate(written):
            ended = tokens[-1] in ends and tokens[-1] != START
            tokens.append(START if ended else drawn[row])
            if tokens[-1] == START:
                first[row] = place
    return torch.tensor(written)


@pytest.mark.parametrize("ends", [(), ENDS], ids=["one document", "several"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_token_is_drawn_from_its_document_so_far(
    architecture: str, ends: Collection[int]
) -> None:
    model = tiny_model(architecture)
    assert torch.equal(write(model, ends=ends), write_plainly(model, 3, ends))


def test_a_start_token_that_also_ends_documents_is_not_repeated() -> None:
    model = tiny_model("llama")
    model.resize_token_embeddings(START + 2)
    tokens = write(model, windows=8, ends=[START])
    assert torch.equal(tokens, write_plainly(model, 8, [START]))
    later = tokens[:, 1:-1] == START
    assert later.any()
    assert (tokens[:, 2:][later] != START).any()


def test_pieces_stand_where_the_model_ends_what_it_writes() -> None:
    """Here every token that it draws ends its turn; that before a later piece is replaced."""
    documents = [cycle([((START, 1, 2), (3,)), ((4, 4),)])]
    [tokens] = sample_windows(
        tiny_model("llama"), documents, 11, generator(), ends=range(VOCABULARY)
    )
    put_in = [START, 1, 2, 3, None, 4, 4, None, START, 1, 2]
    assert [t if p else None for t, p in zip(tokens.tolist(), put_in, strict=True)] == put_in


def test_a_later_document_sees_nothing_of_the_earlier_ones() -> None:
    model, seen = tiny_model("llama"), []
    model.register_forward_pre_hook(
        lambda _, tokens, options: seen.append(int(options["attention_mask"].sum())),
        with_kwargs=True,
    )
    documents = [repeat(((START, 1, 2), (3,)))]
    sample_windows(model, documents, 12, generator(), ends=range(VOCABULARY))
    assert seen == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1]


def test_banned_tokens_are_not_drawn() -> None:
    banned = torch.arange(0, VOCABULARY, 2)
    tokens = write(tiny_model("llama"), windows=20, banned=banned)[:, 1:]
    assert (tokens % 2 == 1).all()


@pytest.mark.parametrize("vocabulary", [3, 1024, 5000])
def test_tokens_are_drawn_at_quantiles_of_the_whole_vocabulary(vocabulary: int) -> None:
    logits = 4 * torch.randn(300, vocabulary, generator=generator())
    logits[:, 1:2].fill_(-torch.inf)
    chosen = torch.rand(300, 1, generator=generator(1), dtype=torch.float64)
    chosen[:2] = torch.tensor([[0.0], [1 - 2**-53]])
    before = logits.clone()
    tokens = draw_tokens(logits, chosen)
    shares = logits.double().softmax(-1)
    above = shares.cumsum(-1).gather(1, tokens[:, None])
    assert (chosen < above + 1e-5).all()
    assert (chosen >= above - shares.gather(1, tokens[:, None]) - 1e-5).all()
    assert (tokens != 1).all()
    assert torch.equal(logits, before)


def test_a_model_in_float32_writes_in_bfloat16_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pruner_zero.models.next_token.emulated_dtypes", lambda: ())
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    narrow = tiny_model("llama")
    cast_weights(narrow, torch.bfloat16)
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(
            "pruner_zero.models.sampling.has_fast_bfloat16", lambda device, fast=fast: fast
        )
        assert writing_dtype(model) is dtype
        assert writing_dtype(narrow) is torch.bfloat16
    assert torch.equal(write(model, dtype=torch.bfloat16), write(narrow))
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}


def named(bos: Any = None, eos: Any = None, **vocabulary: int) -> SimpleNamespace:
    return SimpleNamespace(bos_token_id=bos, eos_token_id=eos, get_vocab=lambda: vocabulary)


def with_tokens(
    tokenizer: SimpleNamespace, config: SimpleNamespace, generation: SimpleNamespace | None = None
) -> LanguageModel:
    model: Any = SimpleNamespace(config=config, generation_config=generation)
    return LanguageModel(model, tokenizer, "some-model")


@pytest.mark.parametrize(
    ("tokenizer", "config", "expected"),
    [
        (named(1, 2), named(3, 4), 1),
        (named(None, 2), named(3, 4), 2),
        (named(), named(3, 4), 3),
        (named(), named(None, [4, 5]), 4),
        (named(0, 2), named(), 0),
        (named(-1, 2), named(3, 4), 2),
        (named(1, 2, **{"<|endoftext|>": 5}), named(3, 4), 5),
    ],
)
def test_the_tokenizer_names_the_start_token_before_the_configuration(
    tokenizer: SimpleNamespace, config: SimpleNamespace, expected: int
) -> None:
    assert start_token(with_tokens(tokenizer, config)) == expected
    with pytest.raises(PrunerZeroError, match="some-model names no token"):
        start_token(with_tokens(named(), named()))


def test_every_named_end_ends_a_document() -> None:
    assert end_tokens(with_tokens(named(1, 2), named(1, 2), named(1, [2, 7]))) == {2, 7}
    assert end_tokens(with_tokens(named(1), named(1))) == set()
    assert end_tokens(with_tokens(named(1, 2), named(1, [-1]))) == {2}
    tiny = LanguageModel(tiny_model("llama"), tiny_tokenizer(), "tiny")
    assert start_token(tiny) == 0
    assert end_tokens(tiny) == {0}


def test_a_model_that_takes_no_cache_or_leaves_it_empty_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    forward = model.forward

    def forgetful(input_ids: Tensor, cache: Any = None, **_: Any) -> Any:
        return forward(input_ids)

    for without in (forgetful, lambda input_ids: None):
        monkeypatch.setattr(model, "forward", without)
        with pytest.raises(PrunerZeroError, match="LlamaForCausalLM keeps no keys and values"):
            write(model)


def test_damaged_weights_are_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(PrunerZeroError, match="probabilities are not finite"):
        write(model)
