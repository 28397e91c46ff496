"""Scripts of a text, and the tokens of other scripts."""

from functools import partial

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from pruner_zero.text.scripts import (
    characters_of,
    count_scripts,
    describe_shares,
    read_scripts,
    tokens_outside,
)
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer


def test_letters_are_counted_by_their_script() -> None:
    shares = count_scripts("abc, 123! \u4f60\u597d \u0434\u0430 z \u16a0\u16a1 \u00e9\u00e8")
    assert shares == {
        "Latin": 0.5,
        "Han": pytest.approx(1 / 6),
        "Cyrillic": pytest.approx(1 / 6),
        "other": pytest.approx(1 / 6),
    }
    assert describe_shares(shares) == "Latin 50%, Han 17%, Cyrillic 17%, other 17%"
    assert describe_shares({"Latin": 0.997, "Han": 0.003}) == "Latin 100%"
    assert count_scripts("1 + 1 = 2") == {}


def test_scripts_have_names_in_unicode() -> None:
    assert read_scripts(" Latin,Old_Italic ,") == ("Latin", "Old_Italic")
    assert "no script 'Klingon'" in refusal(lambda: read_scripts("Latin,Klingon"))
    assert "no script 'a}'" in refusal(lambda: read_scripts("a}"))
    assert "--scripts is empty" in refusal(lambda: read_scripts(" ,"))


def test_tokens_of_other_scripts_are_outside() -> None:
    words = ["<s>", "na\u00efve", "12 $", "\u4f60", "\u043d\u0435 no", "\ufffd"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary)), bos_token="<s>"
    )

    def outside(*scripts: str) -> list[int]:
        return tokens_outside(scripts, tokenizer).tolist()

    assert outside("Latin") == outside("Latin", "Common") == [3, 4, 5]
    assert outside("Latin", "Han") == [4]
    assert outside("Han") == [1, 4]
    assert outside("Latin", "Cyrillic") == [3]
    assert outside("Latin", "Cherokee") == [3, 4]
    for choose in (tokens_outside, characters_of):
        message = refusal(partial(choose, ["Cherokee", "Thai"], tokenizer))
        assert "--scripts Cherokee,Thai: no token of the model has a character of these" in message


def test_bytes_are_outside_of_latin_where_they_are_no_whole_character() -> None:
    tokenizer = tiny_tokenizer()
    chosen = set(tokens_outside(["Latin"], tokenizer).tolist())
    assert chosen == {t for t in range(257) if "\ufffd" in tokenizer.decode([t])}
    assert len(chosen) == 128
