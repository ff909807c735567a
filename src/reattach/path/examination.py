"""The order of an examination: everything that waits does so at the same time."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import httpx2

from reattach.client.drivers.transport import checked_url, failure_of
from reattach.diagnostics import Level
from reattach.domain.errors import ReattachError
from reattach.path.cuts import check_broken_body, check_silences, check_total
from reattach.path.findings import Fault, Finding, Report
from reattach.path.pace import (
    LOOK_AGAIN,
    check_burst,
    check_compression,
    check_head,
    judge_frames,
    record_frames,
)
from reattach.path.passage import (
    check_body,
    check_connections,
    check_errors,
    check_leaving,
    judge_request_headers,
    judge_response_headers,
)
from reattach.path.probe import Answer, Probe, new_http_client
from reattach.path.proxies import recognise
from reattach.path.recording import Recording
from reattach.path.remedies import PLACES
from reattach.path.timing import FULL, Timing
from reattach.path.tls import check_http2
from reattach.redact import without_secrets

_ORDER: Final = (
    "reach", "delay", "head", "burst", "compression", "silence", "total time", "broken body",
    "request headers", "response headers", "errors", "large bodies", "leaving", "connections",
    "http/2",
)  # fmt: skip
_REACHES: Final = 3
"""Requests of which the fastest says how long an answer takes."""

_SAME_SHARE: Final = 0.9
"""A silent stream that lived for this share of the longest possible time died of its length."""

Progress = Callable[[frozenset[str]], None]
"""Called with the names of the checks that have not ended, whenever one has."""


async def examine(
    url: str, api_key: str | None, *, timing: Timing = FULL, progress: Progress | None = None
) -> Report:
    """Examine the path to the server at ``url``.

    Raises:
        ReattachError: It is not a URL, or nothing answers there.
    """
    url = checked_url(url)
    async with await asyncio.to_thread(new_http_client, url) as http:
        probe = Probe(http, url, api_key)
        try:
            answers = [await probe.state() for _ in range(_REACHES)]
        except httpx2.RequestError as error:
            failure = failure_of(error, url)
            if isinstance(failure, ReattachError):
                raise failure from error
            raise ReattachError(
                f"Nothing answers at {without_secrets(url)}: {failure.cause}.",
                remedy="Check the address, and that the proxy and the server are running.",
            ) from error
        refused = next((one for one in answers if one.status != 200 or not _is_ours(one)), None)
        if refused is not None:
            proxies = recognise([refused.headers], ())
            return Report(without_secrets(url), None, proxies, [_refusal(refused, api_key)])
        try:
            return await _Examination(probe, timing, answers, progress).run()
        finally:
            await probe.end(len({one.members["process"] for one in answers}))


class _Examination:
    """The checks of one path, once the server has answered."""

    def __init__(
        self, probe: Probe, timing: Timing, answers: list[Answer], progress: Progress | None
    ) -> None:
        self._probe = probe
        self._timing = timing
        self._answers = answers
        self._progress = progress
        self._state: Mapping[str, Any] = answers[0].members
        self._findings: dict[str, Finding] = {}
        self._open = set(_ORDER)
        self._heard: list[Mapping[str, str]] = [one.headers for one in answers]

    async def run(self) -> Report:
        timing, probe = self._timing, self._probe
        seen = self._state["request"]
        answer_seconds = min(one.seconds for one in self._answers)
        proxies = recognise(self._heard, seen["header_names"])
        self._note(self._reached(proxies, answer_seconds))
        self._note(judge_request_headers(probe, seen))
        ping_seconds = float(self._state["ping_interval_seconds"])
        waiting: dict[str, Coroutine[Any, Any, Finding]] = {
            "leaving": check_leaving(probe, timing),
            "http/2": check_http2(probe.url),
        }
        for name, is_wanted, check in (
            ("silence", timing.silences_seconds, check_silences(probe, timing, ping_seconds)),
            ("total time", timing.total_seconds, check_total(probe, timing)),
        ):
            if is_wanted:
                waiting[name] = check
            else:
                check.close()
                self._open.discard(name)
        async with asyncio.TaskGroup() as group:
            for name, check in waiting.items():
                group.create_task(self._run(name, check))
            await self._run_in_order(answer_seconds)
        self._explain_silence()
        findings = sorted(self._findings.values(), key=lambda one: _ORDER.index(one.what))
        return Report(without_secrets(probe.url), str(self._state["version"]), proxies, findings)

    def _explain_silence(self) -> None:
        """Blame the limit on the whole time for silent streams that ended because of it."""
        total = self._findings.get("total time")
        silence = self._findings.get("silence")
        if total is None or silence is None:
            return
        total_seconds = total.figures.get("cut_after_seconds")
        silence_seconds = silence.figures.get("cut_after_seconds")
        if not isinstance(total_seconds, float) or not isinstance(silence_seconds, float):
            return
        if silence_seconds >= total_seconds * _SAME_SHARE:
            detail = f"silence cannot be judged: every stream is cut after {total_seconds:.1f} s"
            self._note(Finding("warning", "silence", detail, remedy="Mend the total time first."))

    async def _run_in_order(self, answer_seconds: float) -> None:
        """Run the short checks, those that measure times before those that send much."""
        probe, timing = self._probe, self._timing
        async with asyncio.TaskGroup() as group:
            group.create_task(self._check_frames())
            head = check_head(probe, timing, answer_seconds)
            group.create_task(self._run("head", head))
            group.create_task(self._run("burst", check_burst(probe, timing)))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run("compression", check_compression(probe, timing)))
            group.create_task(self._run("broken body", check_broken_body(probe, timing)))
            group.create_task(self._run("errors", check_errors(probe)))
        await self._run("connections", check_connections(probe, timing))
        await self._run("large bodies", check_body(probe, timing))

    async def _check_frames(self) -> None:
        probe, timing = self._probe, self._timing
        recordings: list[Recording] = []
        for number in range(timing.repeats * 2):
            recordings.append(await record_frames(probe, timing, f"frames-{number}"))
            finding = judge_frames(recordings, timing)
            # Late frames may be the fault of a busy network, so they get another chance.
            if number + 1 >= timing.repeats and finding.fault is not Fault.LATE:
                break
        self._note(finding)
        if recordings[-1].status == 200:
            self._note(judge_response_headers(probe, recordings[-1]))

    async def _run(self, name: str, check: Coroutine[Any, Any, Finding]) -> None:
        try:
            finding = await check
        except httpx2.RequestError as error:
            cause = " ".join(str(error).split()) or type(error).__name__
            finding = Finding("wrong", name, f"a request failed: {cause}", remedy=LOOK_AGAIN)
        self._note(finding)

    def _note(self, finding: Finding) -> None:
        self._findings[finding.what] = finding
        self._open.discard(finding.what)
        if self._progress is not None:
            self._progress(frozenset(self._open))

    def _reached(self, proxies: tuple[str, ...], answer_seconds: float) -> Finding:
        processes = {one.members["process"] for one in self._answers}
        way = f" through {', '.join(PLACES[one] for one in proxies)}" if proxies else ""
        version = self._state["request"]["http_version"]
        level: Level = "ok"
        detail = f"Reattach {self._state['version']} answers{way} in {answer_seconds * 1000:.0f} ms"
        detail += f"; requests reach it over HTTP/{version}"
        if len(processes) > 1:
            detail += f"; {len(processes)} processes share the address"
        figures = {"answer_seconds": round(answer_seconds, 4), "http_version": version}
        return Finding(level, "reach", detail, figures=figures)


def _is_ours(answer: Answer) -> bool:
    return {"version", "process", "request"} <= answer.members.keys()


def _refusal(answer: Answer, api_key: str | None) -> Finding:
    """Explain why the probe cannot begin."""
    members = answer.members
    detail = str(members.get("detail", ""))[:300]
    said = f"{answer.status} {detail}".strip()
    challenge = answer.headers.get("www-authenticate", "")
    if answer.status == 401 and api_key is not None and challenge == "Bearer":
        detail = "Authorization is lost on the way to the server: it got a request without a key"
        return Finding("wrong", "reach", detail, Fault.REQUEST_HEADERS)
    if answer.status == 401 and challenge.lower().startswith("basic"):
        remedy = "Let requests with an API key pass: both use the header Authorization."
        detail = "a proxy asks for a password before the server"
        return Finding("wrong", "reach", detail, remedy=remedy)
    if answer.status in range(300, 400):
        location = answer.headers.get("location", "nowhere")[:300]
        remedy = "Use the address to which it leads: clients do not send a key elsewhere."
        return Finding("wrong", "reach", f"the address redirects to {location}", remedy=remedy)
    if answer.status == 401 and api_key is None:
        remedy = "Give a key with the scope admin: set REATTACH_API_KEY, or use --key."
        return Finding("wrong", "reach", f"a key is required ({said})", remedy=remedy)
    if answer.status == 401:
        remedy = (
            "Check the key with `reattach keys list` on the server, and that the proxy does not "
            "replace the header Authorization."
        )
        return Finding("wrong", "reach", f"the key is not valid ({said})", remedy=remedy)
    if answer.status == 403 and members.get("code") == "forbidden":
        remedy = (
            "Create a key with `reattach keys create NAME --scope admin`, and `--tenant` unless "
            "the tenant is the default one."
        )
        return Finding("wrong", "reach", "the key lacks the scope admin", remedy=remedy)
    remedy = (
        "Check the address with the path under which Reattach is mounted, that the server has this "
        "version, and that the proxy forwards /v1/admin/probe."
    )
    return Finding("wrong", "reach", f"no Reattach server answered ({said or 'no text'})",
                   remedy=remedy)  # fmt: skip
