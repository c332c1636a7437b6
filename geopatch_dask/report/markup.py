"""HTML and SVG from pieces that cannot be mixed up with text.

What a report shows was written by others: operators, their tracebacks, names of files.  A piece is
:class:`Markup` only when :func:`tag` made it; every other string is text, and is escaped when it
gets into a tag.  So there is no place where escaping can be forgotten.

>>> tag("p", "a < b", tag("b", "!"), class_="note")
'<p class="note">a &lt; b<b>!</b></p>'
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

__all__ = ["EMPTY", "Markup", "clean", "first_line", "joined", "shortened", "tag"]

#: Control characters, lone surrogates, and marks that turn the direction of writing round: no page
#: and no terminal should get them from a stranger.
_BAD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
#: Elements without content.
_VOID = frozenset({"meta", "rect", "line", "path", "use"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


EMPTY = Markup()


def clean(text: object) -> str:
    r"""Text that is safe to print: no control characters but tab and line feed.

    >>> clean("red \x1b[31malert"), clean("a\nb")
    ('red �[31malert', 'a\nb')
    """
    return _BAD.sub("\ufffd", str(text))


def shortened(text: object, most: int) -> str:
    """The first ``most`` characters, and how many there are more.

    >>> shortened("abcdef", 4)
    'abcd ... (2 more)'
    """
    whole = clean(text)
    return whole if len(whole) <= most else f"{whole[:most]} ... ({len(whole) - most:,} more)"


def first_line(text: object, most: int) -> str:
    r"""The first line that says something, shortened.

    >>> first_line("\n ValueError: the lamp\n is out", 40)
    'ValueError: the lamp ...'
    """
    lines = str(text).strip().splitlines() or [""]
    return shortened(lines[0].rstrip() + (" ..." if len(lines) > 1 else ""), most)


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """One element.

    Parameters
    ----------
    name : str
        Of the element; from our code, never from data.
    *children : Markup or anything
        What is not Markup is text.
    **attributes
        ``class_`` is ``class``, ``stroke_width`` is ``stroke-width``; None leaves one out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{joined(children)}</{name}>")


def joined(parts: Iterable[object]) -> Markup:
    """Pieces one after the other; what is not Markup is text."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def _escaped(value: object) -> str:
    return html.escape(clean(value))
