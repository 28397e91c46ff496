"""`builtin:pydoc`: the language reference that ships with CPython, split by topic."""

from collections.abc import Mapping

from pruner_zero.errors import PrunerZeroError
from pruner_zero.text.role import Role

SHARES: Mapping[Role, float] = {"calibration": 0.5, "search": 0.25, "test": 0.25}

# Shorter paragraphs ("See also ...") recur everywhere and betray nothing.
PASSAGE_LENGTH = 80


def pydoc_documents(part: Role | None) -> list[str]:
    """The topics of `part` in the order of their names; all topics where it is None.

    The text follows the Python version, as its hash in every report shows.
    Raises PrunerZeroError where the interpreter comes without `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise PrunerZeroError(
            "builtin:pydoc needs pydoc_data, which this Python lacks: pass a local text file"
        ) from error
    names = sorted(topics) if part is None else split_topics(topics)[part]
    return [topics[name] for name in names]


def split_topics(topics: Mapping[str, str]) -> dict[Role, list[str]]:
    """Divide `topics` (name → text) about 50 : 25 : 25 by length; names in sorted order.

    Topics quote one another (`specialnames` holds all of `customization`), so those that
    share a passage stay in one part: what is tested was not calibrated or searched on.
    The largest family goes first, each to the part that lacks most of its share.
    """

    def length(family: list[str]) -> int:
        return sum(len(topics[name]) for name in family)

    lacking = {part: share * length(list(topics)) for part, share in SHARES.items()}
    parts: dict[Role, list[str]] = {part: [] for part in SHARES}
    for family in sorted(_families(topics), key=lambda family: (-length(family), family)):
        part = max(lacking, key=lambda part: lacking[part])
        parts[part] += family
        lacking[part] -= length(family)
    return {part: sorted(names) for part, names in parts.items()}


def _families(topics: Mapping[str, str]) -> list[list[str]]:
    families: list[tuple[list[str], set[str]]] = []
    for name in sorted(topics):
        names, passages = [name], passages_of(topics[name])
        apart = []
        for family in families:
            if passages.isdisjoint(family[1]):
                apart.append(family)
            else:
                names, passages = family[0] + names, family[1] | passages
        families = [*apart, (sorted(names), passages)]
    return [names for names, _ in families]


def passages_of(text: str) -> set[str]:
    """The paragraphs of `text` long enough to recognise, without their indentation."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return {paragraph for paragraph in paragraphs if len(paragraph) > PASSAGE_LENGTH}
