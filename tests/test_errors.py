"""Messages of errors: on one line, with a near spelling where a name is unknown."""

from pruner_zero.errors import did_you_mean, one_line


def test_a_message_of_several_lines_becomes_one() -> None:
    assert one_line(ValueError("first\n\tsecond   third")) == "first second third"


def test_an_error_without_a_message_is_described_by_its_type() -> None:
    assert one_line(KeyError()) == "KeyError"


def test_a_long_message_is_cut() -> None:
    assert one_line("word " * 100, longest=10) == "word word…"


def test_a_near_spelling_is_named_and_else_all_names() -> None:
    assert did_you_mean("Wnda", ["ria", "wanda"]) == "did you mean 'wanda'?"
    assert did_you_mean("magnitude", ["wanda", "ria"]) == "known: ria, wanda"
