"""Text in the markup of a prompt, escaped as XML.

The functions of ``xml.sax.saxutils`` would import ``urllib.request``.
"""

from typing import Final

_IN_TEXT: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_TEXT: Final = str.maketrans(_IN_TEXT)
_VALUE: Final = str.maketrans({**_IN_TEXT, "\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})


def escape(text: str) -> str:
    """Return a text that begins and ends no element."""
    return text.translate(_TEXT)


def quoted(value: str) -> str:
    """Return the value of an attribute with its quotes: single ones around double ones."""
    escaped = value.translate(_VALUE)
    if '"' not in escaped:
        return f'"{escaped}"'
    if "'" not in escaped:
        return f"'{escaped}'"
    return '"' + escaped.replace('"', "&quot;") + '"'
