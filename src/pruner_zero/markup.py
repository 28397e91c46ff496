"""Elements of HTML and SVG as text, with everything escaped that is not markup."""

import re

from markupsafe import Markup, escape

# Characters that no XML document may contain, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def element(name: str, *children: str, **attributes: object) -> Markup:
    """The element `name`; attributes, and children that are not Markup, are escaped.

    A trailing underscore of an attribute's name is dropped and other underscores become hyphens:
    class_ is class and stroke_width is stroke-width. An attribute of None is left out. Numbers
    have two decimals at most.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _text(value))
        for key, value in attributes.items()
        if value is not None
    )
    content = Markup("").join(escape(clean(child)) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, content)


def clean(text: str) -> str:
    """The text with � for characters that XML forbids: control characters, lone surrogates."""
    if isinstance(text, Markup):
        return text
    return _FORBIDDEN.sub("\ufffd", text)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return clean(str(value))
