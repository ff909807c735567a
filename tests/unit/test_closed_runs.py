from __future__ import annotations

import tracemalloc

from reattach.log.closed_runs import RUN_BYTES, ClosedRuns
from reattach.log.tail import Tail


class Run:
    tail = Tail()

    def __init__(self, followers: int = 0) -> None:
        self.followers = followers


def cache_of(runs: list[Run], max_bytes: int) -> ClosedRuns[Run]:
    kept = ClosedRuns[Run](max_bytes)
    for run in runs:
        kept.add(run)
    return kept


def test_the_least_recently_used_runs_are_evicted_and_those_with_followers_stay() -> None:
    followed, unused, touched, newest = runs = [Run(followers=1), Run(), Run(), Run()]
    kept = cache_of(runs, max_bytes=5 * RUN_BYTES // 2)
    kept.touch(unused)
    assert kept.evict() == [touched, newest]
    assert kept.evict() == []
    kept.discard(followed)
    kept.add(newest)
    assert kept.evict() == []
    kept.add(touched)
    assert kept.evict() == [unused]


def test_eviction_allocates_no_list_of_the_runs_that_stay() -> None:
    runs = [Run() for _ in range(10_000)]
    kept = cache_of(runs, max_bytes=9_998 * RUN_BYTES)
    tracemalloc.start()
    try:
        evicted = kept.evict()
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert evicted == runs[:2]
    assert most_bytes < len(runs)
