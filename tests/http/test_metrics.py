"""The metrics of a server, compared with what its clients saw."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from reattach.domain.ids import DEFAULT_TENANT
from reattach.meters.families import FAMILIES
from reattach.records.base import KeyScope
from reattach.settings import Settings
from tests.docs.test_docs import all_blocks
from tests.support.live_server import LiveServer, listening, new_threads, to
from tests.support.scraped import Scraped, parse

OBSERVE: Final = Path(__file__).parents[2] / "docs" / "observe.md"


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[LiveServer]:
    async with listening(tmp_path) as live:
        yield live


async def scraped(live: LiveServer) -> Scraped:
    response = await live.client.get("/metrics")
    assert response.status_code == 200, response.text
    return parse(response.text)


async def test_every_metric_is_exposed_with_the_type_and_help_of_its_family(
    live: LiveServer,
) -> None:
    text = (await live.client.get("/metrics")).text
    helped = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    typed = dict(re.findall(r"^# TYPE (\S+) (.+)$", text, re.MULTILINE))
    assert helped == {name: family.help for name, family in FAMILIES.items()}
    assert typed == {name: family.kind for name, family in FAMILIES.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_metric_is_named_as_prometheus_advises(name: str) -> None:
    family = FAMILIES[name]
    assert re.fullmatch(r"(reattach|process)(_[a-z]+)+", name)
    assert name.endswith("_total") == (family.kind == "counter")
    assert not re.search(r"_(ms|milliseconds|minutes|kb|mib|count|sum|bucket)(_total)?$", name)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", label) for label in family.labels)
    assert not {"worker", "le", "tenant", "run_id", "key", "client"} & set(family.labels)
    assert (family.kind == "histogram") == bool(family.bounds)
    assert list(family.bounds) == sorted(set(family.bounds))
    assert family.help.endswith(".")


def test_the_documentation_has_a_row_for_each_metric() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| (.+) \|$", OBSERVE.read_text(), re.MULTILINE
    )
    documented = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)), meaning)
        for name, kind, labels, meaning in rows
        if name in FAMILIES or name.startswith(("reattach_", "process_"))
    }
    assert documented == {
        name: (family.kind, tuple(family.labels), family.help) for name, family in FAMILIES.items()
    }


def test_the_documented_configuration_of_prometheus_scrapes_the_default_port() -> None:
    written = next(iter(all_blocks(OBSERVE, "yaml")))
    (job,) = yaml.safe_load(written)["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    assert target == f"127.0.0.1:{Settings.model_fields['port'].default}"
    assert job["authorization"]["credentials_file"]
    assert "metrics_path" not in job  # /metrics is the default of Prometheus.


async def test_a_scrape_has_the_form_that_it_asks_for(live: LiveServer) -> None:
    plain = await live.client.get("/metrics", headers={"accept-encoding": "identity"})
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "content-encoding" not in plain.headers
    asked = {"accept": "application/openmetrics-text; version=1.0.0", "accept-encoding": "gzip"}
    open_metrics = await live.client.get("/metrics", headers=asked)
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
    assert open_metrics.headers["content-encoding"] == "gzip"
    assert open_metrics.text.endswith("# EOF\n")


async def test_only_keys_with_the_scope_operator_see_the_metrics(live: LiveServer) -> None:
    keys = live.context.records.keys
    _, every = await keys.create(DEFAULT_TENANT, "every")
    _, operator = await keys.create(DEFAULT_TENANT, "operator", scopes={KeyScope.OPERATOR})
    live.clock.skipped_seconds += 60
    assert (await live.client.get("/metrics")).status_code == 401
    refused = await live.client.get("/metrics", headers={"authorization": f"Bearer {every}"})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert "reattach_" not in refused.text
    allowed = await live.client.get("/metrics", headers={"authorization": f"Bearer {operator}"})
    assert allowed.status_code == 200


async def test_a_server_that_measures_nothing_says_so(tmp_path: Path) -> None:
    async with listening(tmp_path, metrics=False) as live:
        answer = await live.client.get("/metrics")
        assert answer.status_code == 404
        assert "REATTACH_METRICS" in answer.json()["detail"]


async def test_runs_events_and_bytes_are_those_that_the_clients_saw(live: LiveServer) -> None:
    agent, thread = await new_threads(live)
    before = await scraped(live)
    run_id = await live.held_run(agent, thread, "[chunks=20]", after=3, stream_tokens=True)
    held = await scraped(live)
    assert held.value("reattach_runs", status="running") == 1
    async with live.stream(f"/v1/runs/{run_id}/stream", {}) as stream:
        frames = [await stream.next()]
        open_streams = await scraped(live)
        assert open_streams.value("reattach_readers", transport="post") == 1
        live.gates.open(agent)
        frames += await stream.rest()
    after = await scraped(live)
    events = len(frames) - 1  # [DONE] is none.
    assert after.value("reattach_runs", status="running") == 0
    assert after.since(before, "reattach_events_total") == events
    model = "scripted/echo"
    assert after.value("reattach_runs_ended_total", status="completed", model=model) == 1
    for name in ("time_to_first_event", "duration"):
        assert after.value(f"reattach_run_{name}_seconds_count", model=model) == 1
    assert after.value("reattach_delivery_lag_seconds_count") > 0
    body_bytes = sum(len(frame.raw) for frame in frames)
    assert after.since(before, "reattach_sent_bytes_total") > body_bytes
    assert after.value("reattach_store_seconds_count", store="log", operation="append") > 0


async def test_a_model_beyond_the_catalogue_is_counted_as_other(live: LiveServer) -> None:
    meters = live.context.meters
    assert meters.model_label("scripted/echo") == "scripted/echo"
    assert meters.model_label("openai/anything-a-client-names") == "other"
    assert meters.model_label(None) == "other"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_resume_is_counted_by_where_its_client_was(live: LiveServer, method: str) -> None:
    agent, thread = await new_threads(live)
    live.gates.open(agent)
    frames = await live.streamed(
        to(thread), {"input": "[chunks=5]", "background": True, "stream_tokens": True}
    )
    last = len(frames) - 1
    run_id = str((await live.run_ids())[0])
    before = await scraped(live)
    for cursor in (0, 2, last, last + 1):
        body = {"starting_after": cursor}
        await live.streamed(f"/v1/runs/{run_id}/stream", body, method=method)
    after = await scraped(live)
    for place in ("start", "middle", "end", "ahead"):
        assert after.since(before, "reattach_resumes_total", cursor=place) == 1
    assert after.since(before, "reattach_resume_events_count") == 4
    assert after.since(before, "reattach_resume_events_sum") == last + (last - 2)
