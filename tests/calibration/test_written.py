"""What the text that a model wrote is like, and the notes on it."""

import torch

from pruner_zero.calibration.written import describe_written, note_written, repeated_shares
from pruner_zero.progress import reported_to
from pruner_zero.text.mixture import SelfText
from tests.tiny import Notes, tiny_tokenizer


def test_four_tokens_that_stood_before_are_repeated_but_for_pieces_of_a_template() -> None:
    windows = torch.tensor([[*range(12)], [7] * 12, [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 9, 9]])
    assert repeated_shares(windows, [((0,),)]).tolist() == [0, 1 - 1 / 9, 1 - 8 / 9]
    window = torch.tensor([[1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]])
    pieces = [((1, 2, 3, 4, 5), (6,))]
    assert repeated_shares(window, pieces).item() == 1 - 4 / 5
    assert repeated_shares(window[:, :3], pieces).item() == 0


def test_a_description_shows_what_the_model_wrote() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["Ask: What  is\nthis?", "Ask: 1 + 1 = 2 abcd"]
    windows = torch.tensor([tokenizer.encode(text) for text in texts])
    opening = tuple(tokenizer.encode("Ask: "))
    described = describe_written(windows, [((1, 2),), (opening,)], tokenizer)
    assert described == {"sample": "What is this?", "scripts": {"Latin": 1.0}, "repeated": 0.0}


def test_the_sample_is_of_a_window_that_begins_with_a_document() -> None:
    tokenizer = tiny_tokenizer()
    windows = [tokenizer.encode(text) for text in ("middle Ask: x", "Ask: Why is it so", "Ask: y")]
    rows = torch.tensor([window[:12] for window in windows[:2]])
    short, long = (tuple(tokenizer.encode(text)) for text in ("Ask: ", "Ask: Why"))
    assert describe_written(rows, [(short,), (long,)], tokenizer)["sample"] == "is"
    assert describe_written(rows[:1], [(short,)], tokenizer)["sample"] == "middle Ask:"


def notes(scripts: dict[str, float], text: SelfText) -> list[str]:
    progress, facts = Notes(), {"sample": "Why?", "scripts": scripts, "repeated": 0.04}
    with reported_to(progress):
        note_written(facts, tiny_tokenizer(), text)
    return progress.lines


def test_a_note_says_what_the_text_is_like() -> None:
    assert notes({"Latin": 0.98, "Han": 0.02}, SelfText()) == [
        "the model wrote text such as: Why? (letters: Latin 98%, Han 2%; 4% of it repeats itself)"
    ]


def test_a_script_that_the_template_does_not_have_is_noted_with_the_option() -> None:
    mixed = {"Latin": 0.6, "Han": 0.4}
    assert notes(mixed, SelfText())[1:] == [
        "of the letters that the model wrote, Han 40%: if the pruned model is not for that, give "
        "--scripts Latin"
    ]
    assert not notes(mixed, SelfText(scripts=("Latin", "Han")))[1:]
