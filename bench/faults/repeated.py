"""The benchmark ``faults``: each experiment repeated with several seeds."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.faults.experiment import Outcome, run_experiment
from bench.faults.history import Kind
from bench.faults.inject import FAULTS, Fault
from bench.faults.provider import cut_provider
from bench.options import Options
from reattach.testing.programs.cluster import Cluster
from reattach.testing.programs.relay import Relay

_HEADS = (
    *(
        "fault",
        "repetitions",
        "runs",
        "completed",
        "events read",
        "losses",
        "doubles",
        "orphans",
        "other faults",
    ),
    *("longest time to an end (s)", "bound (s)"),
)


def table(outcomes: Sequence[Outcome]) -> str:
    """Format a markdown table with one line for each fault."""
    rows = [_HEADS, tuple("---" for _ in _HEADS)]
    for name in dict.fromkeys(outcome.fault for outcome in outcomes):
        of_fault = [outcome for outcome in outcomes if outcome.fault == name]
        slowest = max(of_fault, key=lambda outcome: outcome.longest_end_seconds)
        counts = (sum(outcome.count(kind) for outcome in of_fault) for kind in Kind)
        runs = sum(outcome.runs for outcome in of_fault)
        events = sum(outcome.events_read for outcome in of_fault)
        completed = sum(outcome.ends.count("end_turn") for outcome in of_fault)
        numbers = (len(of_fault), runs, completed, events, *counts)
        times = (slowest.longest_end_seconds, slowest.bound_seconds)
        rows.append((name, *map(str, numbers), *(f"{seconds:.1f}" for seconds in times)))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


DRAIN_SECONDS: Final = 0.3
"""Shorter than most runs, so that a server that is stopped hands runs over."""


def repeated(
    cluster: Cluster, fault: Fault, repetitions: int, provider: Relay | None = None
) -> list[Outcome]:
    outcomes = []
    for seed in range(repetitions):
        begin = time.monotonic()
        outcome = asyncio.run(run_experiment(cluster, fault, seed, provider))
        outcomes.append(outcome)
        print(
            f"  {fault.name}, seed {seed}: {outcome.events_read} events read, all ended after "
            f"{outcome.longest_end_seconds:.1f} s of {outcome.bound_seconds:.1f} s; "
            f"{', '.join(outcome.ends)}; {time.monotonic() - begin:.1f} s in all",
            flush=True,
        )
        for finding in outcome.findings:
            print(f"    {finding.kind}: {finding.what}", flush=True)
    return outcomes


def main(options: Options) -> None:
    faults = [fault for fault in FAULTS if options.only in fault.name]
    with cut_provider() as provider:
        environment = {"REATTACH_DRAIN_SECONDS": str(DRAIN_SECONDS), **provider.environment}
        with Cluster(lease_seconds=options.lease_seconds, environment=environment) as cluster:
            outcomes = [
                outcome
                for fault in faults
                for outcome in repeated(cluster, fault, options.repetitions, provider.relay)
            ]
    summary = (
        f"Three servers, a lease of {options.lease_seconds:g} s. In each repetition four runs, "
        "three readers of each, who change the server all the time.\n\n"
    )
    print(f"\n{summary}{table(outcomes)}")
    if options.table:
        Path(options.table).write_text(summary + table(outcomes), "utf-8")
    if any(outcome.findings for outcome in outcomes):
        raise SystemExit("A promise was broken. The findings are listed above.")
