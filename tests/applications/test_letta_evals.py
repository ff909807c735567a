"""letta-evals, whose samples lose their connection twice, and which resumes by itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.applications.programs import assert_kept, environment, require_program
from tests.applications.wire import Fault, Wire
from tests.support.threads import Thread

SUITE = Path(__file__).parent / "evals/suite.yaml"
SEND = r"POST /v1/agents/[^/]+/messages"
RESUME = r"POST /v1/runs/[^/]+/stream"
PRICES = {"scripted/echo": {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0}}
"""Fill the program's cache of models, which it would fetch from the network."""


@pytest.mark.promise("P1", "P4")
def test_samples_that_are_cut_twice_get_their_whole_answers(
    wire: Wire, raw: httpx.Client, tmp_path: Path
) -> None:
    program = require_program("letta-evals")
    (tmp_path / "model_prices.json").write_text(json.dumps(PRICES))
    wire.plan(Fault(SEND, 3), Fault(RESUME, 2), Fault(SEND, 1), Fault(RESUME, 2))

    ran = subprocess.run(
        [
            *(program, "run", str(SUITE), "--base-url", wire.url, "--max-concurrent", "1"),
            *("--output", str(tmp_path / "results"), "--quiet"),
        ],
        env=environment(tmp_path, wire.url) | {"LETTA_EVALS_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    summary = json.loads((tmp_path / "results/summary.json").read_text())
    assert summary["gates_passed"] is True
    lines = (tmp_path / "results/default.jsonl").read_text().splitlines()
    samples = sorted((json.loads(line) for line in lines), key=lambda one: one["sample_id"])
    assert [one["error"] for one in samples] == [None, None]
    for sample, turns in zip(samples, (1, 2), strict=True):
        answers = [
            "".join(i["content"] for i in turn if i["message_type"] == "assistant_message")
            for turn in sample["trajectory"]
        ]
        assert len(answers) == turns
        assert_kept(Thread(raw, sample["agent_id"], None), *answers)
    cursors = [exchange.json["starting_after"] for exchange in wire.requests(RESUME)]
    assert cursors == [3, 5, 1, 3]
