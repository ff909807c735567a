"""The words of the project: old ones that must not come back, and what to write instead.

As a program it lists the places: ``python -m tests.meta.words src/reattach/log docs``.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Rule:
    pattern: re.Pattern[str]
    instead: str
    in_code: bool = False
    """It holds for names too, not only for prose."""


def _words(pattern: str, instead: str, *, in_code: bool = False) -> Rule:
    return Rule(re.compile(pattern, re.IGNORECASE | re.MULTILINE), instead, in_code)


_START: Final = r"(?:\A|^\s*(?:[-*] |\| )?|[.!?:] +|[.!?]\n\s*)"

_OPENINGS: Final = r"(?:What|Who|Whoever|That which|Those who|Of (?:those|these|all))\b"

RULES: Final = (
    _words(r"\bcan not\b", "cannot"),
    Rule(
        re.compile(
            _START + _OPENINGS + r"(?![^.?!]*\?)",
            re.MULTILINE,
        ),
        "begin with the thing itself, not with a clause",
    ),
    _words(
        r"(?<![a-z])(?:un)?told(?![a-z])", "notified, reported, shown, sent, given", in_code=True
    ),
    _words(
        r"\btells\b(?! (?:you|them|people|users|operators|readers|us)\b)", "says, shows, reports"
    ),
    _words(r"(?<![a-z])heralds?(?![a-z])", "notifier", in_code=True),
    _words(r"(?<![a-z])glances?(?![a-z])", "prepared query", in_code=True),
    _words(r"(?<![a-z])patiently(?![a-z])", "until_available", in_code=True),
    _words(r"(?<![a-z])befall(?:s|en)?(?![a-z])", "happen to, inject", in_code=True),
    _words(r"(?<![a-z])shortcuts?(?![a-z])", "fast path", in_code=True),
    _words(r"(?<![a-z])witness(?:es)?(?![a-z])", "history", in_code=True),
    Rule(
        re.compile(r"^ +(?:\w+Error|Exception)(?:, [\w.]+)*: [a-z]", re.MULTILINE),
        "begin with a capital letter, as every entry of Raises does",
    ),
    _words(r"\bbut for\b", "except"),
    _words(r"\bthe like\b", "name them"),
    _words(r"\bwhosoever\b|\bthereof\b|\bwhereof\b|\bhitherto\b", "plain words"),
)


_OF_PROSE: Final = re.compile(
    rf"\b{_OPENINGS}|#.*(?i:\b{_OPENINGS})"
    r"|(?i:can not|tells|but for|the like|whosoever|thereof|whereof|hitherto)"
    r"|(?:Error|Exception)(?:, [\w.]+)*: [a-z]"
)
"""Occurs in every file and every piece of prose that breaks a rule of prose."""


_COMMENTS: Final = re.compile(r"(?:(?<=\s)|^)#(?: .*|$)(?:\n[ \t]*#(?: .*|$))*", re.MULTILINE)
_COMMENT_STARTS: Final = re.compile(
    r"^[ \t]*# *(?:(?:noqa|type): *\S+(?:, [A-Z]+\d+)* *)?", re.MULTILINE
)


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """The comments and strings of a file, or its whole text, with the line where each begins."""
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        yield 1, re.sub(r"^```.*?^```", _blank, text, flags=re.DOTALL | re.MULTILINE)
        return
    for block in _COMMENTS.finditer(text):
        comment = _COMMENT_STARTS.sub("", block[0])
        # A sentence of a comment may begin in lower case.
        yield text[: block.start()].count("\n") + 1, comment[:1].upper() + comment[1:]
    if path.suffix != ".py":
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.STRING:
            quotes = re.match(r"[a-zA-Z]*(\"\"\"|'''|\"|')", token.string)
            assert quotes is not None
            yield token.start[0], token.string[quotes.end() : -len(quotes[1])]
        elif token.type == getattr(tokenize, "FSTRING_MIDDLE", -1):
            yield token.start[0], token.string


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def faults_of(path: Path) -> list[str]:
    """``file:line: words: what to write instead`` for each place that breaks a rule."""
    name = path.relative_to(ROOT)
    found: dict[tuple[int, str], str] = {}
    whole = [(1, path.read_text("utf-8"))]
    # Tokenizing takes most of the time, so it is left out where no rule of prose can apply.
    pieces = list(prose_of(path)) if _OF_PROSE.search(whole[0][1]) else []
    if path.suffix == ".py":
        pieces = [piece for piece in pieces if _OF_PROSE.search(piece[1])]
    for rule in RULES:
        for line, text in whole if rule.in_code and path.suffix == ".py" else pieces:
            for match in rule.pattern.finditer(text):
                words = match[0].strip(" .!?:\n|-*")
                at = line + text[: match.end()].count("\n")
                found[at, words] = f"{name}:{at}: {words}: {rule.instead}"
    return [found[key] for key in sorted(found)]


_NO_COMMENTS: Final = (".json", ".jsonl", ".svg", ".txt", ".in", ".c", ".h", ".mjs", ".ts")


def files_below(*places: str) -> list[Path]:
    """The pages and the files with comments that git knows of these files and folders."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *places],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout
    paths = (ROOT / name for name in listed.split("\0") if not name.endswith(_NO_COMMENTS))
    return sorted(path for path in paths if path.is_file() and b"\0" not in path.read_bytes())


def main() -> None:
    faults = [fault for path in files_below(*sys.argv[1:]) for fault in faults_of(path)]
    sys.stdout.writelines(f"{fault}\n" for fault in faults)
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
