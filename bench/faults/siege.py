"""A siege: three servers under one fault after another, beside one hostile tenant.

The faults and the checks are those of the tests. The end of the output counts the broken promises
and the contradictions that the servers' audits found.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Final

from bench.faults.experiment import Outcome, run_experiment
from bench.faults.history import Kind
from bench.faults.hostile import HostileTenant
from bench.faults.inject import Fault, fault_named
from bench.faults.repeated import table
from bench.options import Options
from reattach.runs.ownership.audit import Contradictions
from reattach.testing.programs.cluster import Cluster

FAULTS: Final = (
    fault_named("kill -9"),
    fault_named("SIGSTOP"),
    fault_named("SIGTERM"),
    fault_named("connections to Redis cut"),
    fault_named("connections to PostgreSQL cut"),
    fault_named("Redis killed and started, "),
    fault_named("PostgreSQL stopped"),
    fault_named("PostgreSQL crashed"),
)
"""None of them loses what a store confirmed, so the audit must find no lost end."""

ENVIRONMENT: Final = {
    "REATTACH_DRAIN_SECONDS": "5",
    "REATTACH_CALLBACKS_TO_PRIVATE": "true",
}
_COUNTS: Final = tuple(field.name for field in fields(Contradictions))


async def besiege(cluster: Cluster, minutes: float, seed: int) -> tuple[list[Outcome], int]:
    """Inject one fault after another; return the outcomes and the number of hostile requests."""
    hostile = HostileTenant(cluster.urls, await asyncio.to_thread(cluster.new_key), seed)
    outcomes: list[Outcome] = []
    until = time.monotonic() + 60 * minutes
    async with hostile.at_work():
        while time.monotonic() < until:
            fault: Fault = FAULTS[len(outcomes) % len(FAULTS)]
            outcome = await run_experiment(cluster, fault, seed + len(outcomes))
            outcomes.append(outcome)
            print(
                f"  {fault.name}: {outcome.events_read} events read, {', '.join(outcome.ends)}",
                flush=True,
            )
            for finding in outcome.findings:
                print(f"    {finding.kind}: {finding.what}", flush=True)
    return outcomes, hostile.requests


def found_by_audit(output: str) -> Counter[str]:
    """Count the contradictions that the servers logged."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    found: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
    for line in plain.splitlines():
        if "audit found contradictions" in line:
            for count in _COUNTS:
                match = re.search(rf"{count}=(\d+)", line)
                found[count] += int(match[1]) if match else 0
    return found


def summary(outcomes: Sequence[Outcome], requests: int, found: Counter[str]) -> str:
    counts = {kind: sum(outcome.count(kind) for outcome in outcomes) for kind in Kind}
    runs = sum(outcome.runs for outcome in outcomes)
    broken = ", ".join(f"{kind.value} {count}" for kind, count in counts.items())
    audit = ", ".join(f"{name} {count}" for name, count in found.items())
    return (
        f"{len(outcomes)} faults, {runs} runs watched, {requests} requests of the hostile tenant\n"
        f"Broken promises: {broken}\n"
        f"The audit found: {audit}\n"
    )


def main(options: Options) -> None:
    with Cluster(lease_seconds=options.lease_seconds, environment=ENVIRONMENT) as cluster:
        outcomes, requests = asyncio.run(besiege(cluster, options.minutes, 1))
        found = found_by_audit(cluster.output)
    print(f"\n{table(outcomes)}\n{summary(outcomes, requests, found)}")
    if any(outcome.findings for outcome in outcomes):
        raise SystemExit("A promise was broken. The findings are listed above.")
