"""The pieces of a chat template that stand before and after what is written by a model."""

from typing import Any

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.dialogue import dialogue, plain_document, prompt_document, turn_ends
from pruner_zero.models.language_model import LanguageModel
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

TEMPLATE = (
    "{{ 'Be kind.' }}{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<s>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
PROMPT = [{"role": "user", "content": "Why?"}]


def tiny(template: str | None) -> LanguageModel:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return LanguageModel(tiny_model("llama"), tokenizer, "tiny")


def words(model: LanguageModel, pieces: Any) -> list[str]:
    return [model.tokenizer.decode(piece) for piece in pieces]


def test_a_dialogue_is_left_open_where_its_speakers_stand() -> None:
    model = tiny(TEMPLATE)
    pieces = dialogue(model)
    assert pieces is not None
    assert words(model, pieces) == ["Be kind.<user>", "<s><assistant>"]
    assert turn_ends(model, pieces) == {0}

    # Turns that end with words have no token of their own.
    model = tiny(TEMPLATE.replace("<s>", "[/INST]"))
    pieces = dialogue(model)
    assert pieces is not None
    assert not turn_ends(model, pieces)


@pytest.mark.parametrize(
    "template",
    [
        None,
        "the same for everyone",
        "{% for m in messages %}{{ m['content'] * 2 }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_that_does_not_surround_the_words_gives_no_dialogue(
    template: str | None,
) -> None:
    assert dialogue(tiny(template)) is None


def test_a_prompt_is_shown_by_the_template_which_may_refuse_it() -> None:
    model = tiny(TEMPLATE)
    answered = [*PROMPT, {"role": "assistant", "content": "So."}, *PROMPT]
    assert words(model, prompt_document(model, answered)) == [
        "Be kind.<user>Why?<s><assistant>So.<s><user>Why?<s><assistant>"
    ]
    # Without a template, a prompt begins a document.
    model = tiny(None)
    assert plain_document(model) == ((0,),)
    assert words(model, prompt_document(model, PROMPT)) == ["<s>Why?"]
    with pytest.raises(PrunerZeroError, match="of tiny refuses the prompt that begins with 'Why"):
        prompt_document(tiny("{{ raise_exception('no') }}"), PROMPT)
