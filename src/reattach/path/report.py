"""A report as lines for people, and as JSON for programs."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from reattach.path.findings import Fault, Finding, Report
from reattach.path.remedies import ADVICE, PLACES, remedies_of

_LEVEL_CHARS: Final = 8
_CHECK_CHARS: Final = 22
_PLACE_CHARS: Final = 20


def lines_of(report: Report) -> Iterator[str]:
    """Yield the report for people: each finding, and the remedies of each fault once."""
    explained: set[Fault] = set()
    for finding in report.findings:
        yield f"{finding.level:{_LEVEL_CHARS}}{finding.what:{_CHECK_CHARS}}{finding.detail}"
        if finding.fault in explained:
            yield f"{'':{_LEVEL_CHARS}}The remedies are those above."
            continue
        yield from _remedy_lines(finding, report.proxies)
        if finding.fault is not None:
            explained.add(finding.fault)
    counts = counts_of(report)
    warnings = "warning" if counts["warning"] == 1 else "warnings"
    yield f"{counts['ok']} ok, {counts['warning']} {warnings}, {counts['wrong']} wrong"


def counts_of(report: Report) -> dict[str, int]:
    """Count the findings of each level."""
    counts = dict.fromkeys(("ok", "warning", "wrong"), 0)
    for finding in report.findings:
        counts[finding.level] += 1
    return counts


def json_of(report: Report) -> dict[str, Any]:
    """Return the report for programs."""
    return {
        "through": report.url,
        "version": report.version,
        "proxies": [PLACES[place] for place in report.proxies],
        "findings": [_finding_json(one, report.proxies) for one in report.findings],
        **counts_of(report),
    }


def _finding_json(finding: Finding, proxies: Sequence[str]) -> dict[str, Any]:
    remedies: list[dict[str, Any]] = []
    if finding.fault is not None:
        remedies = [
            {"where": PLACES[place], "lines": list(one.lines), "note": one.note}
            for place, one in remedies_of(finding.fault, proxies)
        ]
    return {
        "level": finding.level,
        "what": finding.what,
        "detail": finding.detail,
        "fault": finding.fault,
        "remedy": _step_of(finding),
        "figures": dict(finding.figures),
        "remedies": remedies,
    }


def _step_of(finding: Finding) -> str:
    return finding.remedy if finding.fault is None else ADVICE[finding.fault].step


def _remedy_lines(finding: Finding, proxies: Sequence[str]) -> Iterator[str]:
    """Yield the next step, then the lines of each proxy, those of recognised ones first."""
    step = _step_of(finding)
    if finding.level == "ok" or not step:
        return
    indent = " " * _LEVEL_CHARS
    yield indent + step
    if finding.fault is None:
        return
    for place, remedy in remedies_of(finding.fault, proxies):
        texts = [*remedy.lines, *([f"({remedy.note})"] if remedy.lines and remedy.note else [])]
        texts = texts or [remedy.note]
        for number, text in enumerate(texts):
            name = PLACES[place] if number == 0 else ""
            yield f"{indent}  {name:{_PLACE_CHARS}}{text}"
