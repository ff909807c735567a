"""The dashboard, the alert rules and the Prometheus of deploy/ agree with a real scrape."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from reattach.meters.families import FAMILIES
from reattach.testing.programs.server import ServerProcess

DEPLOY = Path(__file__).parents[2] / "deploy"
GRAFANA = DEPLOY / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboard.json").read_text("utf-8"))
ALERTS: dict[str, Any] = yaml.safe_load((GRAFANA / "alerts.yaml").read_text("utf-8"))
CASES: dict[str, Any] = yaml.safe_load((GRAFANA / "alerts.test.yaml").read_text("utf-8"))
PROMETHEUS: dict[str, Any] = yaml.safe_load((GRAFANA / "prometheus.yml").read_text("utf-8"))
SERVICES: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]

METRIC = re.compile(r"\b(?:reattach|process)_[a-z_]+\b")
OF_PROMETHEUS = {"job", "instance", "worker", "le"}
"""Labels that all metrics have, or all histograms."""

WIDTH = 24
"""The columns of Grafana's grid."""


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = DASHBOARD["panels"]
    return found


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel.get("targets", [])]


def rules() -> list[dict[str, Any]]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    return [*queries(), *(rule["expr"] for rule in rules())]


def with_values(query: str) -> str:
    """Replace the variables of Grafana as it does."""
    query = query.replace("$__rate_interval", "5m")
    return re.sub(r"\$(?:job|instance)\b", ".*", query)


def series_of(family: str, kind: str) -> set[str]:
    parts = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
    return {family + part for part in parts}


def is_overlapping(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


@pytest.fixture(scope="module")
def scrape(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The metrics of a real server."""
    directory = tmp_path_factory.mktemp("scraped")
    with ServerProcess(directory, arguments=["--scripted", "--log-level", "warning"]) as server:
        answer = httpx2.get(f"{server.url}/metrics", timeout=20)
    assert answer.status_code == 200
    return answer.text


def promtool(*arguments: str | Path, given: str | None = None) -> None:
    program = shutil.which("promtool")
    if program is None:  # Not `skip_or_fail`: it cannot be installed with the other dependencies.
        pytest.skip("promtool is not installed: it is in the package `prometheus`")
    done = subprocess.run(
        [program, *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_loads_in_grafana_9_and_later() -> None:
    assert DASHBOARD["uid"] == "reattach"
    assert DASHBOARD["schemaVersion"] == 36  # that of Grafana 9; later ones migrate it
    assert "id" not in DASHBOARD  # Grafana gives each import its own.
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids) > 30
    assert {panel["type"] for panel in panels()} == {"row", "stat", "timeseries"}


def test_the_panels_fill_the_grid_and_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in panels()]
    assert all(place["x"] + place["w"] <= WIDTH for place in places)
    assert not [pair for pair in combinations(places, 2) if is_overlapping(*pair)]
    bottom = max(place["y"] + place["h"] for place in places)
    assert sum(place["w"] * place["h"] for place in places) == WIDTH * bottom


def test_every_panel_says_what_it_shows_and_asks_the_chosen_data_source() -> None:
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for panel in panels():
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert {source["uid"] for source in sources} == {"${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    used = set(re.findall(r"\$(\w+)", " ".join(queries()))) - {"__rate_interval"}
    assert used == set(variables) - {"datasource"}


def test_every_metric_of_the_dashboard_and_the_alerts_exists_in_a_real_scrape(scrape: str) -> None:
    present = {family.name for family in text_string_to_metric_families(scrape)}
    # The parser takes the suffix from the names of counters.
    known = {
        series
        for name, family in FAMILIES.items()
        for series in series_of(name, family.kind)
        if name.removesuffix("_total") in present
    }
    known |= {"reattach_lease_margin_seconds", "reattach_spans_total"}  # Not without their parts.
    variables = [
        one["definition"] for one in DASHBOARD["templating"]["list"] if one.get("definition")
    ]
    named = {name for text in [*expressions(), *variables] for name in METRIC.findall(text)}
    assert named - known == set()
    assert len(named) > 20


def test_every_label_of_the_dashboard_and_the_alerts_belongs_to_its_metric() -> None:
    for expression in expressions():
        metrics = METRIC.findall(expression)
        labels = set(OF_PROMETHEUS)
        for name in metrics:
            family = FAMILIES.get(name) or FAMILIES[re.sub(r"_(?:bucket|count|sum)$", "", name)]
            labels |= set(family.labels)
        grouped = re.findall(r"\bby \(([^)]*)\)", expression)
        selected = re.findall(r"[{,]\s*(\w+)\s*(?:=~|!=|!~|=)", expression)
        used = {label.strip() for group in grouped for label in group.split(",")} | set(selected)
        assert used <= labels, expression


def test_every_alert_says_what_to_do_and_has_a_case_that_fires_and_one_that_does_not() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")
    cases = [case["name"] for case in CASES["tests"]]
    assert cases == [f"{name} {how}" for name in names for how in ("fires", "is silent")]


def test_the_alerts_fire_when_their_cases_say_so() -> None:
    promtool("check", "rules", GRAFANA / "alerts.yaml")
    promtool("test", "rules", GRAFANA / "alerts.test.yaml")


def test_prometheus_parses_every_query_of_the_dashboard(tmp_path: Path) -> None:
    recorded = [
        {"record": f"panel:{number}", "expr": with_values(query)}
        for number, query in enumerate(queries())
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recorded}]}))
    promtool("check", "rules", file)


def test_the_metrics_follow_the_rules_of_promtool(scrape: str) -> None:
    promtool("check", "metrics", given=scrape)


def test_prometheus_scrapes_every_server_of_the_compose_file() -> None:
    servers = [name for name in SERVICES if name.startswith("reattach-")]
    (job,) = PROMETHEUS["scrape_configs"]
    (static,) = job["static_configs"]
    environment = SERVICES[servers[0]]["environment"]
    port = environment["REATTACH_METRICS_PORT"]
    assert static["targets"] == [f"{server}:{port}" for server in servers]
    assert environment["REATTACH_METRICS_HOST"] == "0.0.0.0"
    assert not any("ports" in SERVICES[server] for server in servers)
    assert job["job_name"] == "reattach"
    assert PROMETHEUS["rule_files"] == ["alerts.yaml"]


def test_the_profile_mounts_the_files_and_is_off_by_default() -> None:
    for name in ("prometheus", "grafana"):
        service = SERVICES[name]
        assert service["profiles"] == ["metrics"]
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).is_file()
    assert all(published.startswith("127.0.0.1:") for published in SERVICES["grafana"]["ports"])
    assert "ports" not in SERVICES["prometheus"]
    (source,) = yaml.safe_load((GRAFANA / "datasources.yaml").read_text("utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((GRAFANA / "dashboards.yaml").read_text("utf-8"))["providers"]
    mounted = [volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]]
    assert any(path.startswith(provider["options"]["path"] + "/") for path in mounted)


def test_the_docs_list_every_alert_with_its_severity() -> None:
    page = (DEPLOY.parent / "docs" / "observe.md").read_text("utf-8")
    listed = re.findall(r"^\| `(Reattach\w+)` \| (\w+) \|", page, re.MULTILINE)
    assert sorted(listed) == sorted((rule["alert"], rule["labels"]["severity"]) for rule in rules())
