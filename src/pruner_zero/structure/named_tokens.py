"""The tokens that the configurations of a model name, and their numbers in a smaller vocabulary."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel


def needed_tokens(model: PreTrainedModel) -> set[int]:
    """The tokens in fields such as eos_token_id, by their numbers.

    Those of the other fields that name tokens are only banned or weighted, and may go.
    """
    fields = [value for config in _configs(model) for _, value in _fields(config, "token_id")]
    numbers = {number for value in fields for number in _as_list(value)}
    # Some families have −1 where there is no such token.
    return {number for number in numbers if number >= 0}


def renumber(model: PreTrainedModel, kept: Sequence[int], banned: Collection[int] = ()) -> None:
    """Give the configurations of `model` the numbers that tokens have among those `kept`.

    banned: tokens that the model shall not write, beside those of suppress_tokens. Bans and weights
    of tokens that are gone go with them, as do those of sequences with such a token, which the
    model cannot write any more.
    """
    numbers = {old: new for new, old in enumerate(kept)}
    generation = model.generation_config
    if banned and generation is not None:
        generation.suppress_tokens = sorted({*(generation.suppress_tokens or []), *banned})
    for config in _configs(model):
        if hasattr(config, "vocab_size"):
            config.vocab_size = len(kept)
        for name, value in _fields(config, "token_id"):
            new = [numbers.get(number, number) for number in _as_list(value)]
            setattr(config, name, new if isinstance(value, list) else new[0])
        for ending in ("suppress_tokens", "bad_words_ids", "sequence_bias"):
            for name, value in _fields(config, ending):
                # As a list in any case: the keys of a mapping are tuples, which JSON does not have.
                entries = value.items() if isinstance(value, dict) else value
                left = [new for old in entries if (new := _renumbered(old, numbers)) is not None]
                setattr(config, name, left or None)


def _renumbered(part: Any, numbers: Mapping[int, int]) -> Any:
    """A token or nested lists of them with the new numbers, None where one is gone.

    Weights, which are floats, stay as they are.
    """
    if isinstance(part, list | tuple):
        parts = [_renumbered(each, numbers) for each in part]
        return None if None in parts else parts
    return part if isinstance(part, float) else numbers.get(part)


def _configs(model: PreTrainedModel) -> Iterator[Any]:
    configs = [model.config, model.config.get_text_config(), model.generation_config]
    yield from {id(config): config for config in configs if config is not None}.values()


def _fields(config: Any, ending: str) -> list[tuple[str, Any]]:
    """The fields with such a name that have a value."""
    fields = vars(config).items()
    return [(name, value) for name, value in fields if name.endswith(ending) and value is not None]


def _as_list(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]
