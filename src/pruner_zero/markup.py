"""Elements of HTML, SVG and MathML as text in which everything foreign is escaped."""

import re

from markupsafe import Markup, escape

# What no XML document may hold, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def element(name: str, *children: str, **attributes: object) -> Markup:
    """The element `name`; children that are no Markup, and all attributes, are escaped.

    In the names of attributes a last underscore is dropped and the others are hyphens, so that
    class_ and stroke_width can be said; an attribute of None is left out. Numbers are written
    with two decimals at most.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _text(value))
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, join(children))


def join(parts: list[Markup] | tuple[str, ...]) -> Markup:
    """The parts one after the other, escaped unless they are Markup."""
    return Markup("").join(escape(clean(part)) for part in parts)


def clean(text: str) -> str:
    """The text with what XML forbids (control characters, half pairs) shown as �."""
    if isinstance(text, Markup):
        return text
    return _FORBIDDEN.sub("\ufffd", text)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return clean(str(value))
