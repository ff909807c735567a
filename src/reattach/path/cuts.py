"""Checks of when the path cuts a stream, and whether a client can see that."""

import asyncio

from reattach.diagnostics import Level
from reattach.path.findings import Fault, Finding
from reattach.path.pace import failed
from reattach.path.probe import Probe
from reattach.path.recording import Recording
from reattach.path.timing import Timing

_LIKE_A_PING_BYTES = 200
_FATAL_TOTAL_SECONDS = 60.0
"""Below this, most answers of agents with tools are cut."""


async def check_silences(probe: Probe, timing: Timing, ping_seconds: float) -> Finding:
    """Check after which silence a stream is cut."""
    recordings = await asyncio.gather(
        *(_record_silence(probe, timing, seconds) for seconds in timing.silences_seconds)
    )
    longest = max(timing.silences_seconds)
    survived = [
        seconds
        for seconds, one in zip(timing.silences_seconds, recordings, strict=True)
        if one.is_complete
    ]
    cut = [one for one in recordings if not one.is_complete]
    if not cut:
        figures = {"silence_seconds": longest, "cut_after_seconds": None}
        return Finding("ok", "silence", f"{longest:g} s of silence pass", figures=figures)
    first = min(cut, key=lambda one: one.silence_seconds)
    after_seconds = first.silence_seconds
    figures = {
        "silence_seconds": max(survived, default=0.0),
        "cut_after_seconds": round(after_seconds, 1),
    }
    detail = f"a silent stream is cut after {after_seconds:.1f} s, {first.how_it_ended}"
    if survived and max(survived) >= timing.enough_silence_seconds:
        return Finding("ok", "silence", f"{detail}, which is long enough", figures=figures)
    if after_seconds <= ping_seconds:
        detail += f", before the next ping: the server sends one every {ping_seconds:g} s"
        return Finding("wrong", "silence", detail, Fault.IDLE_CUT, figures=figures)
    detail += f"; only the pings, every {ping_seconds:g} s, keep streams alive"
    return Finding("warning", "silence", detail, Fault.IDLE_CUT, figures=figures)


async def _record_silence(probe: Probe, timing: Timing, seconds: float) -> Recording:
    return await probe.record(
        f"silence-{round(seconds * 1000)}",
        within_seconds=seconds + timing.grace_seconds,
        silence_seconds=seconds,
        burst_bytes=_LIKE_A_PING_BYTES,
    )


async def check_total(probe: Probe, timing: Timing) -> Finding:
    """Check after which time a stream is cut that is never silent for long."""
    frames = round(timing.total_seconds / timing.total_interval_seconds) + 1
    recording = await probe.record(
        "total",
        within_seconds=timing.total_seconds + timing.grace_seconds,
        frames=frames,
        interval_seconds=timing.total_interval_seconds,
    )
    seconds = recording.ended_at_seconds
    if recording.is_complete and recording.end == "whole":
        detail = f"a stream of {timing.total_seconds:g} s passes"
        return Finding("ok", "total time", detail, figures={"cut_after_seconds": None})
    if recording.head_seconds is None and recording.end != "silent":
        return failed("total time", recording)
    figures = {"cut_after_seconds": round(seconds, 1), "frames": len(recording.frames)}
    detail = f"a stream is cut after {seconds:.1f} s in all, {recording.how_it_ended}"
    level: Level = "wrong" if seconds < _FATAL_TOTAL_SECONDS else "warning"
    return Finding(level, "total time", detail, Fault.TOTAL_CUT, figures=figures)


async def check_broken_body(probe: Probe, timing: Timing) -> Finding:
    """Check that a client can see that the server broke a response."""
    recording = await probe.record(
        "broken", within_seconds=timing.grace_seconds, frames=3, interval_seconds=0.05, end="broken"
    )
    if recording.end == "whole":
        detail = "a response that the server broke looks whole: clients do not know that they have "
        detail += "to resume"
        return Finding("wrong", "broken body", detail, Fault.LOOKS_WHOLE)
    if recording.end == "silent":
        detail = "a response that the server broke stays open, so clients wait for their time-out"
        return Finding("wrong", "broken body", detail, Fault.LOOKS_WHOLE)
    return Finding("ok", "broken body", f"a broken response ends {recording.how_it_ended}")
