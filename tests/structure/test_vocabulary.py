"""A smaller vocabulary: the model gives the kept tokens the same logits, and loads anywhere."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from pruner_zero.errors import PrunerZeroError
from pruner_zero.measuring.comparing import compare
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import size_of
from pruner_zero.models.saving import save_model
from pruner_zero.pruning.prune import prune
from pruner_zero.recovery.recover import recover
from pruner_zero.structure.named_tokens import needed_tokens
from pruner_zero.structure.tokens import TokenTable
from pruner_zero.structure.vocabulary import Vocabulary, expected_counts, occurrences
from pruner_zero.text.token_windows import mix_windows
from tests.structure.test_tokens import TEXT, byte_fallback, byte_level
from tests.tiny_models import windows_of

TOKENIZERS = {"byte level": byte_level, "byte fallback": byte_fallback}
SMALL: dict[str, Any] = {
    "structure": "vocabulary",
    "calibration": TEXT,
    "windows": 4,
    "seqlen": 24,
}


def model(rows: int, tied: bool = True, end: int = 300) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=end,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_kept_tokens_have_the_logits_of_the_dense_model(name: str, tied: bool) -> None:
    """Rows beyond the tokenizer go first; the tokenizer and the configuration are cut too."""
    tokenizer = TOKENIZERS[name]()
    rows = len(tokenizer) + 8
    dense, smaller = (model(rows, tied, end=len(tokenizer) - 1) for _ in range(2))
    text = "the quick fox prunes zeros"
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    result = prune(smaller, tokenizer=tokenizer, parameters=size_of(dense)[0] - 700, **SMALL)
    cut = result.recipe.cut
    assert isinstance(cut, Vocabulary)
    stay = list(cut.kept_tokens)
    assert size_of(smaller)[0] == result.parameters[1] <= size_of(dense)[0] - 700
    assert 0 < len(stay) < rows - 8
    assert tokenizer.convert_ids_to_tokens(range(len(stay))) == [names[old] for old in stay]
    assert smaller.config.eos_token_id == stay.index(dense.config.eos_token_id)
    assert smaller.config.vocab_size == len(stay) == len(tokenizer)
    after = tokenizer(text, return_tensors="pt")["input_ids"]
    old = torch.tensor(stay)[after]
    torch.testing.assert_close(smaller(after).logits, dense(old).logits[..., stay])


def test_the_folder_loads_by_plain_transformers(tmp_path: Path) -> None:
    tokenizer = byte_level()
    smaller = model(len(tokenizer))
    result = prune(smaller, tokenizer=tokenizer, sparsity=0.25, output=tmp_path / "out", **SMALL)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = again("the quicker fox", return_tensors="pt")["input_ids"]
    assert torch.equal(tokens, tokenizer("the quicker fox", return_tensors="pt")["input_ids"])
    assert torch.equal(loaded(tokens).logits, smaller(tokens).logits)
    assert loaded.config.vocab_size == len(again) == round(0.75 * len(byte_level()))
    assert f"{result.recipe.cut} are removed" in result.share()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"- removed: {result.recipe.cut}, by " in card
    assert not (tmp_path / "out" / "metric.json").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sparsity": 0.99}, "must stay so that every text can be encoded: choose --sparsity"),
        ({"sparsity": 0.3, "parameters": "0.9"}, "needs either --sparsity"),
        ({"structure": "channels", "sparsity": 0.5, "keep": "a.txt"}, "--keep has no effect"),
        ({"sparsity": 0.3, "scripts": "Klingon"}, "Unicode has no script 'Klingon'"),
        ({"parameters": "0.1"}, "cannot be reached by removing tokens: choose --parameters"),
        ({"sparsity": 0.5, "metric": "wanda"}, "vocabulary takes no metric"),
        ({"sparsity": 0.5, "update": "none"}, "leave out --update"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], words: str) -> None:
    tokenizer = byte_level()
    dense = model(len(tokenizer))
    with pytest.raises(PrunerZeroError, match=words):
        prune(dense, tokenizer=tokenizer, **{**SMALL, **settings})
    assert dense.config.vocab_size == len(tokenizer) == len(byte_level())


def test_the_expected_count_of_a_token_is_the_sum_of_its_probabilities() -> None:
    tokenizer = byte_level()
    dense = LanguageModel(model(len(tokenizer)), tokenizer, "dense")
    windows = torch.arange(60).view(3, 20)
    plain = dense.model(windows).logits.softmax(-1).sum((0, 1)).double()
    counts = expected_counts(dense, windows)
    assert float(counts.sum()) == pytest.approx(60, rel=1e-3)
    # Products may be in bfloat16.
    torch.testing.assert_close(counts, plain.detach(), rtol=0.02, atol=1e-3)


def test_the_price_of_a_token_is_how_often_text_lacks_it_that_was_not_counted() -> None:
    """By loops over ranks, and the minimum of the means that are the maximum of those before."""
    tokenizer = byte_level()
    dense = LanguageModel(model(len(tokenizer)), tokenizer, "tiny")
    generator = torch.Generator().manual_seed(0)
    windows = (torch.rand(6, 24, generator=generator) ** 3 * 300).long()
    cut, good = Vocabulary(0.0).fit(dense).offer(dense, windows_of(windows))
    table = TokenTable(tokenizer)
    always = table.always(named=needed_tokens(dense.model))
    free = [number for number in table.names if number not in always]

    def ranked(counted: torch.Tensor) -> tuple[list[int], dict[int, float]]:
        expected = expected_counts(dense, counted)
        shares = {
            number: (counted == number).sum().item() / counted.numel() / 2
            + expected[number].item() / expected.sum().item() / 2
            for number in free
        }
        return sorted(free, key=lambda number: (shares[number], -number)), shares

    halves = windows[:3], windows[3:]
    lacks = [0.0] * len(free)
    for counted, other in (halves, halves[::-1]):
        for rank, number in enumerate(ranked(counted)[0]):
            lacks[rank] += (other == number).sum().item() / windows.numel()
    count, (order, shares) = len(free), ranked(windows)
    means = torch.full((count, count), torch.inf, dtype=torch.float64)
    for first in range(count):
        for last in range(first, count):
            means[first, last] = sum(lacks[first : last + 1]) / (last + 1 - first)
    expected = [
        max(float(means[: rank + 1, rank:].amin(1).amax()), shares[order[rank]])
        for rank in range(count)
    ]
    ratio = good.prices / torch.tensor(expected, dtype=torch.float64)
    assert ratio.min() > 0
    assert ratio.max() / ratio.min() == pytest.approx(1, rel=1e-6)
    assert cut.expected is not None
    torch.testing.assert_close(cut.expected, expected_counts(dense, windows))


def test_each_half_of_a_text_counts_by_the_share_of_its_windows_however_long_it_is() -> None:
    zeros, stream = torch.zeros(3, 4, dtype=torch.int64), torch.tensor([1] * 50 + [2] * 50)
    long = replace(windows_of(zeros), stream=stream)
    short = windows_of(torch.tensor([[3, 3, 3, 4]]))
    halves = occurrences(mix_windows([long, short]), 6)
    expected = [[0, 0.75, 0, 0.25, 0, 0], [0, 0, 0.75, 0.125, 0.125, 0]]
    assert halves.tolist() == expected


def test_nothing_is_on_offer_where_all_tokens_must_stay() -> None:
    tokenizer = byte_level()
    dense = LanguageModel(model(len(tokenizer)), tokenizer, "tiny")
    windows = torch.arange(48).view(2, 24)
    assert len(Vocabulary(0.0).offer(dense, windows_of(windows))[1].prices)
    every = Vocabulary(
        0.0, words=tuple(tokenizer.batch_decode([[n] for n in range(len(tokenizer))]))
    )
    assert not len(every.offer(dense, windows_of(windows))[1].prices)


def test_tokens_of_words_and_characters_of_scripts_stay(tmp_path: Path) -> None:
    """At the beginning of a text or after a space, whatever the text that is counted."""
    (tmp_path / "words.txt").write_text("zeroing\nlaziest dogs\n")
    lengths = {}
    for keep in (None, tmp_path / "words.txt"):
        tokenizer = byte_level()
        given = {**SMALL, "calibration": ["fox " * 100], "sparsity": 1 - 290 / 378, "keep": keep}
        prune(model(len(tokenizer)), tokenizer=tokenizer, **given)
        assert len(tokenizer) == 290
        lengths[keep] = [len(tokenizer.tokenize(w)) for w in ("zeroing", " zeroing", " laziest")]
    dense = [len(byte_level().tokenize(w)) for w in ("zeroing", " zeroing", " laziest")]
    assert lengths[None] > dense == lengths[tmp_path / "words.txt"]
    english = {**SMALL, "calibration": [TEXT[1] * 3], "sparsity": 1 - 270 / 378}
    umlauts = {}
    for scripts in (None, "Latin"):
        tokenizer = byte_level()
        prune(model(len(tokenizer)), tokenizer=tokenizer, scripts=scripts, **english)
        umlauts[scripts] = len(tokenizer.tokenize("ü"))
    assert umlauts == {None: 2, "Latin": 1}


def test_a_reserved_token_that_the_text_holds_stays() -> None:
    tokenizer, reserved = byte_level(), {"<unused0>", "<unused1>"}
    tokenizer.add_tokens(sorted(reserved), special_tokens=True)
    given = {**SMALL, "calibration": ["<unused1> fox " * 100], "sparsity": 1 - 290 / 378}
    prune(model(len(tokenizer)), tokenizer=tokenizer, **given)
    assert tokenizer.get_vocab().keys() & reserved == {"<unused1>"}


def test_tokens_that_are_banned_or_weighted_are_numbered_anew(tmp_path: Path) -> None:
    """Plain `generate` obeys as before; what names a token that is gone is left out."""
    tokenizer = byte_level()
    dense = model(len(tokenizer))
    with torch.no_grad():
        # The weights of tokens alone decide.
        dense.lm_head.weight.zero_()
    q, u, z, goes, lost = tokenizer.convert_tokens_to_ids(["q", "u", "z", "Ġquicker", "Ġfox"])
    config = dense.generation_config
    config.bad_words_ids = [[u], [goes], [u, goes]]
    gone = {(goes,): 7.0, (lost,): 6.0, (z, goes): 1.0}
    config.sequence_bias = {(u,): 9.0, (z,): 5.0, (q,): 3.0, (z, z): -3.0} | gone
    config.suppress_tokens, config.begin_suppress_tokens = [lost], [lost, z]
    start = torch.zeros(1, 1, dtype=torch.long)
    before = tokenizer.decode(dense.generate(start, do_sample=False, max_new_tokens=6)[0, 1:])
    given = {**SMALL, "calibration": ["a lazy dog " * 100], "sparsity": 1 - 270 / 378}
    prune(dense, tokenizer=tokenizer, output=tmp_path / "out", **given)
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    after = tokenizer.decode(small.generate(start, do_sample=False, max_new_tokens=6)[0, 1:])
    assert before == after == "qzqzqz"
    assert not {"Ġquicker", "Ġfox"} & tokenizer.get_vocab().keys()
    q, u, z = tokenizer.convert_tokens_to_ids(["q", "u", "z"])
    config = small.generation_config
    assert config.bad_words_ids == [[u]]
    assert config.sequence_bias == [[[u], 9.0], [[z], 5.0], [[q], 3.0], [[z, z], -3.0]]
    assert (config.suppress_tokens, config.begin_suppress_tokens) == (None, [z])


def test_an_end_of_text_that_merges_make_stays_with_its_path() -> None:
    tokenizer = byte_level()
    dense = model(len(tokenizer), end=tokenizer.convert_tokens_to_ids("Ġquicker"))
    given = {**SMALL, "calibration": ["a lazy dog " * 100], "sparsity": 1 - 270 / 378}
    prune(dense, tokenizer=tokenizer, **given)
    end = tokenizer(" quicker", add_special_tokens=False)["input_ids"]
    assert end == [dense.config.eos_token_id] == [dense.generation_config.eos_token_id]


def test_a_model_that_is_cut_to_scripts_writes_no_others(tmp_path: Path) -> None:
    """Though all bytes stay, of which it could write any character; and earlier bans hold."""
    for scripts in (None, "Latin"):
        tokenizer = byte_level()
        dense = model(len(tokenizer))
        banned = tokenizer.convert_tokens_to_ids("<end>")
        dense.generation_config.suppress_tokens = [banned]
        given = {**SMALL, "sparsity": 1 - 300 / 378, "scripts": scripts}
        prune(dense, tokenizer=tokenizer, output=tmp_path / "out", overwrite=True, **given)
        small = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        torch.manual_seed(0)
        start = torch.zeros(8, 1, dtype=torch.long)
        tokens = small.generate(start, do_sample=True, min_new_tokens=64, max_new_tokens=64)
        text = "".join(AutoTokenizer.from_pretrained(tmp_path / "out").batch_decode(tokens))
        # Its number in the smaller vocabulary is another one.
        assert len(tokenizer) <= banned
        assert "<end>" not in text
        assert ("\ufffd" in text) == (scripts is None)


def test_the_model_with_fewer_tokens_is_trained_towards_the_dense_one(tmp_path: Path) -> None:
    """By `prune` after the cut, and by `recover` from the folder; then its weights are pruned."""
    tokenizer, given = byte_level(), {**SMALL, "calibration": ["fox " * 100]}
    dense = LanguageModel(model(len(tokenizer)), tokenizer, "dense")
    save_model(dense, tmp_path / "dense")
    options: dict[str, Any] = {**given, "sparsity": 1 - 290 / 378, "distill": 2}
    trained = prune(tmp_path / "dense", output=tmp_path / "trained", **options)
    assert [point.step for point in trained.distillation] == [0, 2]
    assert "the whole: trained in 2 steps" in (tmp_path / "trained" / "README.md").read_text()
    prune(tmp_path / "dense", output=tmp_path / "small", **{**options, "distill": 0})
    result = recover(
        tmp_path / "small",
        text=TEXT * 4,
        teacher=tmp_path / "dense",
        steps=30,
        seqlen=24,
        learning_rate=0.01,
        output=tmp_path / "out",
    )
    losses = [point.validation_loss for point in result.curve]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.02
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 290
    weights = {**SMALL, "structure": None, "metric": "wanda", "sparsity": 0.5}
    both = prune(tmp_path / "out", output=tmp_path / "both", **weights)
    assert both.sparsity == pytest.approx(0.5, abs=0.02)
    assert both.language_model.model.config.vocab_size == 290


def test_rows_of_tokens_elsewhere_are_refused() -> None:
    tokenizer = byte_level()
    dense = model(len(tokenizer))
    dense.model.layers[0].mlp.bias = torch.nn.Parameter(torch.zeros(len(tokenizer), 2))
    with pytest.raises(PrunerZeroError, match=r"layers\.0\.mlp\.bias, which has a row for each"):
        prune(dense, tokenizer=tokenizer, sparsity=0.2, **SMALL)


def test_compare_refuses_models_with_other_tokens() -> None:
    tokenizer = byte_level()
    with pytest.raises(PrunerZeroError, match="bits per byte that evaluate"):
        compare(
            model(len(tokenizer)),
            "dense,token-count@vocabulary=0.5",
            calibration=TEXT,
            text=TEXT,
            tokenizer=tokenizer,
            seqlen=16,
            windows=2,
        )
