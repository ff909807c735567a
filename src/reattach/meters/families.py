"""All metrics of a server: their names, types, labels and help texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from reattach.meters.instruments import EVENTS, RUN_SECONDS, SECONDS

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. All have the label ``worker`` too."""

    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: Sequence[float] = ()
    """The upper bounds of a histogram's buckets."""


def _gauge(help_text: str, *labels: str) -> Family:
    return Family("gauge", help_text, labels)


def _counter(help_text: str, *labels: str) -> Family:
    return Family("counter", help_text, labels)


def _histogram(help_text: str, *labels: str, bounds: Sequence[float] = SECONDS) -> Family:
    return Family("histogram", help_text, labels, bounds)


FAMILIES: Final[Mapping[str, Family]] = {
    "reattach_build_info": _gauge(
        "Always 1; the labels are the version and the stores of the server.", "version", "store"
    ),
    "reattach_scrape_age_seconds": _gauge(
        "Age of the figures of this worker: 0, or more if it did not answer the scrape in time."
    ),
    # Runs.
    "reattach_runs": _gauge("Open runs that this worker drives, by status.", "status"),
    "reattach_runs_ended_total": _counter(
        "Runs that this worker ended, by status and model.", "status", "model"
    ),
    "reattach_run_time_to_first_event_seconds": _histogram(
        "Time from a send to the first output of its run.", "model", bounds=RUN_SECONDS
    ),
    "reattach_run_duration_seconds": _histogram(
        "Time from the creation of a run to its end.", "model", bounds=RUN_SECONDS
    ),
    "reattach_events_total": _counter("Events that this worker wrote to the logs of runs."),
    "reattach_takeovers_total": _counter(
        "Runs that this worker took over from an owner that was gone, by whether they continue.",
        "outcome",
    ),
    "reattach_continuations_total": _counter(
        "Interrupted answers that this worker went on with, by the cause of the interruption "
        "and the way in which the answer went on.",
        "cause",
        "way",
    ),
    "reattach_lease_margin_seconds": _gauge(
        "Time until the lease of this worker runs out, if it is not renewed; absent without shared "
        "stores."
    ),
    # Readers.
    "reattach_readers": _gauge("Open streams, by the way in which they are read.", "transport"),
    "reattach_readers_queued": _gauge(
        "Readers with new events that wait for their turn in the event loop."
    ),
    "reattach_resumes_total": _counter(
        "Requests to follow a run, by where the client was: at the start, in the middle, at the "
        "end, ahead of the log, behind events that are gone, or with a snapshot.",
        "cursor",
    ),
    "reattach_resume_events": _histogram(
        "Events that a client had missed when it followed a run.", bounds=EVENTS
    ),
    "reattach_readers_cut_total": _counter("Streams that the server cut off.", "reason"),
    "reattach_delivery_lag_seconds": _histogram(
        "Time from the engine's event to its write to the socket of a sampled reader (one in 64, "
        "and at least one) of a run of this worker."
    ),
    # Connections and requests.
    "reattach_connections": _gauge("Open client connections."),
    "reattach_sent_bytes_total": _counter("Bytes sent to clients, including heads of responses."),
    "reattach_refused_total": _counter(
        "Requests and connections that were refused because of a limit.", "reason"
    ),
    "reattach_callbacks_total": _counter("Callbacks that were sent, by outcome.", "outcome"),
    "reattach_spans_total": _counter(
        "Spans of traces, by whether they were exported; absent without traces.", "outcome"
    ),
    # Stores.
    "reattach_store_seconds": _histogram(
        "Time of an operation of a store, as its caller waited for it.", "store", "operation"
    ),
    "reattach_store_errors_total": _counter(
        "Operations of a store that failed because it did not answer.", "store", "operation"
    ),
    "reattach_data_free_bytes": _gauge(
        "Free disk space of the data directory; absent with shared stores."
    ),
    # The process.
    "reattach_event_loop_lag_seconds": _histogram(
        "Delay of a timer of the event loop, which is how long it was busy."
    ),
    "process_cpu_seconds_total": _counter("Total user and system CPU time spent in seconds."),
    "process_max_fds": _gauge("Maximum number of open file descriptors."),
    "process_open_fds": _gauge("Number of open file descriptors."),
    "process_resident_memory_bytes": _gauge("Resident memory size in bytes."),
    "process_start_time_seconds": _gauge("Start time of the process since unix epoch in seconds."),
    "process_virtual_memory_bytes": _gauge("Virtual memory size in bytes."),
}
