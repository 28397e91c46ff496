"""Tokenizers with fewer tokens: every text survives, and text of kept tokens is cut as before."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from pruner_zero.errors import PrunerZeroError
from pruner_zero.structure.tokens import TokenTable
from tests.metric.strategies import lightly

TEXT = [
    "the quick brown fox jumps over the lazy dog and the quicker one over the laziest dogs",
    "pruning removes weights; pruned weights are zeros, and zeroing is not removing 12 34 1234",
    "Grüße an die Füchse, naïve über größere Hunde und größte Füße",
] * 4
WORDS = sorted({word for line in TEXT for word in line.split()})
texts = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join))


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's: a token for each byte, and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens(["<end>"])
    return wrapped(tokenizer)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Gemma's: characters, and bytes where a character has no token."""
    numbers = {"<unk>": 0, "<s>": 1, **{f"<0x{byte:02X}>": 2 + byte for byte in range(256)}}
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", "▁")
    learned.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    learned.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=160, show_progress=False))
    table = TokenTable(wrapped(learned, bos_token=None))
    numbers |= {token: 258 + place for place, token in enumerate(sorted(table.ids))}
    tokenizer = Tokenizer(
        models.BPE(numbers, table.merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = learned.normalizer, learned.pre_tokenizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    return wrapped(tokenizer)


def wrapped(tokenizer: Tokenizer, bos_token: str | None = "<s>") -> PreTrainedTokenizerFast:
    if bos_token:
        number = tokenizer.token_to_id(bos_token)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos_token} $A", special_tokens=[(bos_token, number)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos_token)


MADE = {"byte level": byte_level(), "byte fallback": byte_fallback()}
TABLES = {name: TokenTable(tokenizer) for name, tokenizer in MADE.items()}
DENSE = {name: tokenizer.backend_tokenizer for name, tokenizer in MADE.items()}


def cut(name: str, share: float, seed: int = 0) -> tuple[list[int], Tokenizer]:
    """A part of the tokens that may go, chosen by a seed, and the tokenizer without the others."""
    table = TABLES[name]
    always = table.always()
    size = len(always) + round(share * (table.count - len(always)))
    order = sorted(table.names, key=lambda number: (number * 7919 + seed * 104729) % 1009)
    kept = table.choose(order, size, always)
    assert always <= set(kept)
    assert len(kept) <= size
    return kept, smaller_of(table, kept)


def smaller_of(table: TokenTable, kept: list[int]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(table.cut(kept)))


@pytest.mark.parametrize("name", TABLES)
@lightly
@given(text=texts, share=st.floats(0, 1), seed=st.integers(0, 9))
def test_text_is_decoded_and_words_of_kept_tokens_are_encoded_as_before(
    name: str, text: str, share: float, seed: int
) -> None:
    kept, smaller = cut(name, share, seed)
    dense, names = DENSE[name], set(kept)
    decoded = dense.decode(dense.encode(text, add_special_tokens=False).ids)
    assert smaller.decode(smaller.encode(text, add_special_tokens=False).ids) == decoded
    for word in text.split():
        before = dense.encode(f" {word}", add_special_tokens=False)
        if names.issuperset(before.ids):
            after = smaller.encode(f" {word}", add_special_tokens=False)
            assert after.tokens == before.tokens
            assert [kept[number] for number in after.ids] == before.ids


@pytest.mark.parametrize("name", TABLES)
def test_a_token_and_its_path_are_enough_to_make_it(name: str) -> None:
    """The path is the merges that the package itself makes, in its own words."""
    table, made = TABLES[name], 0
    always = table.always()
    for number, token in table.names.items():
        path = table.path(number)
        if path is None or len(path) < 2 or number in always:
            continue
        smaller = smaller_of(table, sorted(always | path))
        text = DENSE[name].decode([number])
        if DENSE[name].encode(text, add_special_tokens=False).tokens == [token]:
            assert smaller.encode(text, add_special_tokens=False).tokens == [token]
            made += 1
    assert made > 20


def test_added_tokens_that_only_reserve_a_number_may_go() -> None:
    """Those that the tokenizer, its chat template or --keep names stay."""
    made = byte_level()
    free = ["<unused0>", "<|reserved_special_token_1|>", "<|dummy_2|>", "<｜place▁holder▁no▁3｜>"]
    made.add_tokens([*free, "<unused4>", "<unused5>", "<tool>", "<unused>"], special_tokens=True)
    made.pad_token, made.chat_template = "<unused4>", "{{ '<unused5>' }}"
    table = TokenTable(made)
    always = table.always()
    gone = {table.tokenizer.convert_tokens_to_ids(token) for token in free}
    assert table.added - always == gone
    assert table.always(["<unused0>"]) >= always | {min(gone)}
    smaller = smaller_of(table, sorted(always))
    assert not smaller.get_vocab().keys() & set(free)
    text = "a <unused0> b <tool>"
    coded = smaller.encode(text, add_special_tokens=False)
    assert coded.tokens[-1] == "<tool>"
    assert smaller.decode(coded.ids, skip_special_tokens=False) == text


def test_tokens_come_in_order_with_their_paths() -> None:
    table = TABLES["byte level"]
    long = max(table.names, key=lambda number: len(table.names[number]))
    always, path = table.always(), table.path(long)
    assert path is not None
    assert len(path - always) > 2
    assert set(table.choose([long], table.count, always)) == always | path
    assert set(table.choose([long], len(always) + 1, always)) == always


def test_special_tokens_are_numbered_anew_wherever_they_are_named() -> None:
    kept, smaller = cut("byte level", 0.1)
    assert smaller.encode("fox").tokens[0] == "<s>"
    assert smaller.encode("fox").ids[0] == smaller.token_to_id("<s>")
    assert smaller.token_to_id("<end>") == len(kept) - 1
    assert smaller.get_vocab_size() == len(kept)


def test_other_tokenizers_are_refused() -> None:
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    with pytest.raises(PrunerZeroError, match="this one is Unigram"):
        TokenTable(PreTrainedTokenizerFast(tokenizer_object=unigram))
    marked = Tokenizer(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>"))
    with pytest.raises(PrunerZeroError, match="BPE with marked parts of words"):
        TokenTable(PreTrainedTokenizerFast(tokenizer_object=marked))
    with pytest.raises(PrunerZeroError, match="object is written in Python"):
        TokenTable(object())
