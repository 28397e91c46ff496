"""Calibration texts with shares, from the command line, YAML and Python alike; sizes to leave."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruner_zero.errors import PrunerZeroError
from pruner_zero.settings.base import names_of, options_of
from pruner_zero.settings.calibration import read_parameters, read_shares
from pruner_zero.settings.prune_settings import PruneSettings
from pruner_zero.settings.read_settings import read_settings
from pruner_zero.settings.recover_settings import RecoverSettings
from pruner_zero.settings.search_settings import SearchSettings
from pruner_zero.text.corpus import Corpus
from tests.text.refusals import refusal as line_of

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
SHARES = st.floats(0, exclude_min=True, allow_infinity=False)


def calibration(value: Any) -> Any:
    return read_settings(PruneSettings, {"model": "m", "calibration": value}).calibration


def refusal(value: Any) -> str:
    with pytest.raises(PrunerZeroError) as raised:
        calibration(value)
    return str(raised.value)


@given(st.dictionaries(NAMES, SHARES, min_size=2))
def test_the_words_of_a_mixture_give_it_back(shares: dict[str, float]) -> None:
    words = options_of(PruneSettings)["calibration"].words(shares)
    assert words[::2] == ["--calibration"] * len(shares)
    assert read_shares(words[1::2]) == shares


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["c4"], "c4"),
        (["c4=0.5"], "c4"),
        (["c4", "self"], {"c4": 1, "self": 1}),
        (["c4=3", "a=b.txt"], {"c4": 3, "a=b.txt": 1}),
        (["a=b.txt=0.25", "c4"], {"a=b.txt": 0.25, "c4": 1}),
        (["=2", "c4"], {"=2": 1, "c4": 1}),
    ],
)
def test_text_after_the_last_equals_sign_is_a_share(words: list[str], expected: Any) -> None:
    assert read_shares(words) == expected
    assert calibration(words) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"calibration": "c4", "scripts": "Latin"}, "--scripts has no effect without text that a"),
    ],
)
def test_settings_of_written_text_need_it(given: dict[str, Any], message: str) -> None:
    line = line_of(lambda: read_settings(PruneSettings, {"model": "m", **given}))
    assert message in line


@pytest.mark.parametrize(
    "given",
    [
        {"scripts": ["Latin", "Greek"]},
        {"calibration": {"self:p.txt": 1, "c4": 2}, "scripts": "Latin"},
        {"calibration": {"self:documents": 1, "c4": 2}, "scripts": "Latin"},
    ],
)
def test_settings_of_written_text_fit_where_a_model_writes(given: dict[str, Any]) -> None:
    settings = read_settings(PruneSettings, {"model": "m", "sparsity": 0.5, **given})
    assert settings.scripts in ("Latin", "Latin,Greek")


def test_every_text_setting_takes_a_list_from_a_file() -> None:
    mixed = {"c4": 3, "b.txt": 1}
    words = ["c4=3", "b.txt"]
    needed = {"model": "m", "sparsity": 0.5, "minutes": 1, "calibration": words}
    search = read_settings(SearchSettings, {**needed, "search_text": words})
    assert (search.calibration, search.search_text) == (mixed, mixed)
    assert read_settings(RecoverSettings, {"model": "m", "text": words}).text == mixed


def test_a_path_of_a_file_is_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run=0.5").touch()
    assert read_shares(["run=0.5", "c4=0.5"]) == {"run=0.5": 1, "c4": 0.5}
    assert read_shares(["run=0.5=2", "c4"]) == {"run=0.5": 2, "c4": 1}


def test_a_text_that_is_alone_is_its_name() -> None:
    assert calibration("c4=0.5") == "c4=0.5"
    assert calibration({"c4": 3}) == "c4"
    assert calibration(None) is None


def test_shares_are_positive_numbers() -> None:
    for share in ("-1", "0", "nan", "inf"):
        words = f"the share of self is {share}: give a number above 0"
        assert refusal(["c4", f"self={share}"]) == refusal([f"self={share}"]) == words
    assert refusal({"c4": 1, "self": "much"}).startswith("--calibration is 'much'")


def test_a_text_is_given_once() -> None:
    assert refusal(["c4", "c4=2"]) == "the text c4 is given twice: give it a larger share"


@pytest.mark.parametrize("value", [[], {}, "", 7, [7], ["c4", None]])
def test_a_value_that_is_no_text_is_refused(value: Any) -> None:
    assert "give a text, or several, each as TEXT or TEXT=SHARE" in refusal(value)


def test_texts_of_python_have_names() -> None:
    texts = {Path("a.txt"): 1, Corpus("mine", "words"): 2, "self": 3}
    assert names_of(texts) == {"a.txt": 1, "mine": 2, "self": 3}
    assert names_of(["one", "two"]) == "(strings)"
    assert names_of(None) is None
    with pytest.raises(PrunerZeroError, match="two texts have the same name"):
        names_of({Corpus("mine", "words"): 1, Corpus("mine", "others"): 1})


def test_a_seed_that_no_generator_of_torch_takes_is_refused() -> None:
    assert read_settings(PruneSettings, {"model": "m", "seed": 2**63 - 1}).seed == 2**63 - 1
    with pytest.raises(PrunerZeroError, match="--seed"):
        read_settings(PruneSettings, {"model": "m", "seed": 2**63})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.75", 0.75),
        (".5", 0.5),
        ("1", 1),
        ("134515008", 134_515_008),
        ("100_000", 100_000),
        ("100M", 100_000_000),
        ("1.2B", 1_200_000_000),
        (" 500 k ", 500_000),
        ("1e8", 100_000_000),
    ],
)
def test_numbers_and_shares(text: str, number: float) -> None:
    assert read_parameters(text) == number


@pytest.mark.parametrize(
    "text", ["", "most", "0", "0M", "-1", "75%", "1.2.3M", "nan", "inf", "1e999"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write a share such as 0\.75, or a number such as 100M"):
        read_parameters(text)
