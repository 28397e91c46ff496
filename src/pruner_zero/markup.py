"""Elements of HTML as text, with everything escaped that is not markup."""

import re

from markupsafe import Markup, escape

# Characters that no HTML or XML document may contain, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def element(name: str, *children: str) -> Markup:
    """The element `name`; children that are not Markup are escaped."""
    content = Markup("").join(escape(clean(child)) for child in children)
    return Markup("<{0}>{1}</{0}>").format(name, content)


def clean(text: str) -> str:
    """The text with � for characters that XML forbids: control characters, lone surrogates."""
    if isinstance(text, Markup):
        return text
    return _FORBIDDEN.sub("\ufffd", text)
