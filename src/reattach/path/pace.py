"""Checks of how fast the pieces of a response arrive."""

import asyncio
from typing import Final

from reattach.path.findings import Fault, Finding
from reattach.path.probe import Probe
from reattach.path.recording import Recording, delays_seconds, median
from reattach.path.timing import Timing

LOOK_AGAIN: Final = "Look into the log of the proxy, then run this again."

_CODINGS: Final = ("gzip", "br", "zstd")

_WITHHELD_SHARE: Final = 0.8
"""A part that comes after this share of the time until the next one waited for that one."""

_EACH_READ_FRAMES: Final = 3
"""Frames that may arrive together where only reads can be counted."""


async def record_frames(
    probe: Probe, timing: Timing, stream: str, encoding: str = "identity"
) -> Recording:
    """Record a stream of paced frames."""
    return await probe.record(
        stream,
        within_seconds=timing.stream_seconds + timing.grace_seconds,
        encoding=encoding,
        frames=timing.frames,
        interval_seconds=timing.interval_seconds,
    )


async def check_head(probe: Probe, timing: Timing, answer_seconds: float) -> Finding:
    """Check that the head of a response arrives before its body begins.

    ``answer_seconds`` is the time that a short answer takes on this path.
    """
    heads: list[float] = []
    for number in range(timing.repeats * 2):
        recording = await probe.record(
            f"head-{number}",
            within_seconds=timing.head_seconds + timing.grace_seconds,
            first_seconds=timing.head_seconds,
        )
        if recording.head_seconds is None or recording.status != 200:
            return failed("head", recording)
        heads.append(recording.head_seconds)
        is_late = min(heads) - answer_seconds >= timing.late_seconds
        if number + 1 >= timing.repeats and not is_late:
            break
    late_seconds = max(min(heads) - answer_seconds, 0.0)
    figures = {"late_seconds": round(late_seconds, 3)}
    if min(heads) >= timing.head_seconds * _WITHHELD_SHARE:
        detail = (
            f"the head of a response is withheld until its first byte, here for {min(heads):.1f} s"
        )
        return Finding("warning", "head", detail, Fault.HEAD_WITHHELD, figures=figures)
    if late_seconds >= timing.late_seconds:
        detail = f"the head of a response comes {late_seconds:.2f} s late"
        return Finding("warning", "head", detail, Fault.LATE, figures=figures)
    return Finding(
        "ok", "head", f"the head of a response comes within {min(heads):.2f} s", figures=figures
    )


def judge_frames(recordings: list[Recording], timing: Timing) -> Finding:
    """Judge how late the frames of uncompressed streams came."""
    whole = [one for one in recordings if one.frames]
    if not whole:
        return _withheld_to_the_end("delay", recordings[-1])
    delays = delays_seconds(whole)
    middle, worst = median(delays), max(delays)
    together = min(one.frames_per_read for one in whole)
    figures = {
        "median_seconds": round(middle, 3),
        "worst_seconds": round(worst, 3),
        "frames_per_read": round(together, 1),
        "frames": len(delays),
    }
    size = f"median {middle:.2f} s, worst {worst:.2f} s, {together:.1f} frames a read"
    if middle >= timing.late_seconds or worst >= timing.withheld_seconds:
        detail = f"frames are withheld: {size}"
        return Finding("wrong", "delay", detail, Fault.BUFFERED, figures=figures)
    if len(delays) < timing.frames:
        detail = f"only {len(delays)} of {timing.frames} frames came; {size}"
        return Finding("wrong", "delay", detail, Fault.TOTAL_CUT, figures=figures)
    if worst >= timing.late_seconds:
        detail = f"some frames are late: {size}"
        return Finding("warning", "delay", detail, Fault.LATE, figures=figures)
    return Finding("ok", "delay", f"each frame comes at once: {size}", figures=figures)


async def check_burst(probe: Probe, timing: Timing) -> Finding:
    """Check that a large frame after a silence arrives before the body ends."""
    for number in range(timing.repeats):
        finding = await _try_burst(probe, timing, f"burst-{number}")
        if finding.level == "ok":
            break  # A busy network may have withheld another one, but no proxy does.
    return finding


async def _try_burst(probe: Probe, timing: Timing, stream: str) -> Finding:
    recording = await probe.record(
        stream,
        within_seconds=timing.burst_seconds * 2 + timing.grace_seconds,
        silence_seconds=timing.burst_seconds,
        burst_bytes=timing.burst_bytes,
        last_seconds=timing.burst_seconds,
    )
    size = f"{timing.burst_bytes // 1024} KiB"
    if not recording.is_complete:
        if recording.frames:
            detail = f"a burst of {size} did not arrive; the stream ended {recording.how_it_ended}"
            return Finding("wrong", "burst", detail, Fault.BUFFERED)
        return failed("burst", recording)
    late_seconds = delays_seconds([recording])[-1]
    figures = {"late_seconds": round(late_seconds, 3)}
    # The first frame may have been withheld as well, so the end of the body is compared too.
    before_end_seconds = recording.ended_at_seconds - recording.frames[-1].arrived_at_seconds
    if before_end_seconds < timing.burst_seconds * (1 - _WITHHELD_SHARE):
        detail = f"a burst of {size} after silence is withheld until the body ends"
        return Finding("wrong", "burst", detail, Fault.BUFFERED, figures=figures)
    return Finding("ok", "burst", f"{size} after silence come within {late_seconds:.2f} s",
                   figures=figures)  # fmt: skip


async def check_compression(probe: Probe, timing: Timing) -> Finding:
    """Check whether streams are compressed for clients that offer it, and whether they wait."""
    recordings = await asyncio.gather(
        *(record_frames(probe, timing, f"coding-{coding}", coding) for coding in _CODINGS)
    )
    used: dict[str, str] = {}
    late: dict[str, str] = {}
    for coding, recording in zip(_CODINGS, recordings, strict=True):
        if recording.end == "silent" and not recording.reads:
            late[coding] = f"nothing comes in {recording.ended_at_seconds:.0f} s"
        elif recording.encoding is not None:
            used[recording.encoding] = recording.encoding
            delay = _delay_of_compressed(recording, timing)
            if delay is not None:
                again = await record_frames(probe, timing, f"coding-{coding}-again", coding)
                delay = _delay_of_compressed(again, timing)
            if delay is not None:
                late[coding] = delay
    figures = {"codings": ", ".join(used) or None}
    if late:
        said = "; ".join(f"{coding}: {text}" for coding, text in late.items())
        detail = f"streams are compressed and withheld for clients that offer it ({said})"
        return Finding("wrong", "compression", detail, Fault.COMPRESSED, figures=figures)
    if used:
        detail = f"streams are compressed ({', '.join(used)}) in spite of no-transform, "
        detail += "but not withheld"
        return Finding("warning", "compression", detail, Fault.COMPRESSED, figures=figures)
    return Finding("ok", "compression", "streams are not compressed", figures=figures)


def _delay_of_compressed(recording: Recording, timing: Timing) -> str | None:
    """Return how late a compressed stream was, in words; None if it was not."""
    if recording.has_readable_frames and recording.frames:
        delays = delays_seconds([recording])
        if median(delays) < timing.late_seconds and max(delays) < timing.withheld_seconds:
            return None
        together = recording.frames_per_read
        return f"median {median(delays):.2f} s, {together:.1f} frames a read"
    if len(recording.reads) * _EACH_READ_FRAMES > timing.frames:
        return None
    return f"{timing.frames} frames in {len(recording.reads)} reads"


def failed(what: str, recording: Recording) -> Finding:
    """Return the finding for a stream that ended before anything could be measured."""
    cause = f": {recording.cause}" if recording.cause else ""
    seconds = recording.ended_at_seconds
    detail = f"a stream ended {recording.how_it_ended} after {seconds:.1f} s{cause}"
    return Finding("wrong", what, detail, remedy=LOOK_AGAIN)


def _withheld_to_the_end(what: str, recording: Recording) -> Finding:
    if recording.end == "silent":
        detail = f"nothing came in {recording.ended_at_seconds:.0f} s"
        return Finding("wrong", what, detail, Fault.BUFFERED)
    return failed(what, recording)
