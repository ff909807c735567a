"""The public conformance tests of Durable Streams, over streams that only tests can write.

``conformance.json`` has all of them by their results. Those that fail need what only writers need:
producers, forks and expiry. Those that are skipped are off by default.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from reattach.http.dialects.durable_streams import reading
from tests.dialects.durable_streams.writable import serving_streams
from tests.dialects.node_programs import DIRECTORY, require_node

EXPECTED = Path(__file__).with_name("conformance.json")
WAIT_SECONDS = 120.0


async def test_the_conformance_tests_that_need_no_writer_pass_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "POLL_SECONDS", 0.5)  # Some tests wait until it is over.
    node = require_node("@durable-streams/server-conformance-tests")
    report = tmp_path / "report.json"
    async with serving_streams(tmp_path) as url:
        process = await asyncio.create_subprocess_exec(
            node,
            "node_modules/vitest/vitest.mjs",
            *("run", "--config", "conformance.config.mjs"),
            *("--reporter", "json", "--outputFile", str(report)),
            cwd=DIRECTORY,
            env={**os.environ, "STREAMS_URL": url},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    results: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    reasons = []
    expected = json.loads(EXPECTED.read_text())
    for file in json.loads(report.read_text())["testResults"]:
        for one in file["assertionResults"]:
            group, title, status = one["ancestorTitles"][-1], one["title"], one["status"]
            results[status][group].append(title)
            if title not in expected[status].get(group, ()):
                reasons.append(f"{group}: {title}: {status} {one['failureMessages']}"[:1000])
    assert reasons == []
    found = {
        status: {group: sorted(titles) for group, titles in groups.items()}
        for status, groups in results.items()
    }
    assert found == expected
    counts = Counter({status: sum(map(len, groups.values())) for status, groups in found.items()})
    assert counts == {"passed": 188, "failed": 144, "skipped": 6}
