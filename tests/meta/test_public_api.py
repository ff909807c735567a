"""The public API: a change of these lists is a change for users, and belongs in the changelog."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module, metadata, resources
from pathlib import Path

import pytest

from reattach.extras import install_command

PUBLIC = {
    "reattach": ["ToolContext", "ToolError", "__version__", "tool"],
    "reattach.client": [
        *("Client", "ClosedError", "ConflictError", "Event", "ExpiredError", "FileStorage"),
        *("GaveUpError", "ManyStream", "NotFoundError", "ReattachError", "Retry", "Snapshot"),
        *("State", "Stream", "SyncClient", "SyncManyStream", "SyncStream", "Takeover", "Token"),
        *("TokenSource", "UnauthorizedError", "UnavailableError"),
    ],
    "reattach.embed": [
        *("AnswerFunction", "ConflictError", "ConversationBusyError", "CursorAheadError", "Delta"),
        *("Engine", "EngineError", "ExpiredError", "Finished", "FunctionEngine"),
        *("InvalidArgumentError", "Model", "NotFoundError", "OtidConflictError", "Reattach"),
        *("ReattachError", "ReasoningPart", "HiddenReasoningPart", "Run", "RunStream", "Settings"),
        *("StartupError", "StepFinished", "StoreUnavailableError", "TextPart", "ToolCallDelta"),
        *("ToolReturnPart", "Turn", "UnavailableError", "Usage", "tune_gc"),
    ],
    "reattach.testing": [
        *("AnthropicForms", "Cluster", "EngineConformance", "LogConformance", "LogMachine"),
        *("LogStore", "OpenAIForms", "PostgresqlServer", "Recording", "RedisServer", "Relay"),
        *("ServerProcess", "Subject", "frames_to", "seq_of", "whole_frames"),
    ],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_a_public_module_exports_exactly_the_pinned_names(module: str) -> None:
    public = import_module(module)

    assert sorted(public.__all__) == sorted(PUBLIC[module])
    assert [name for name in PUBLIC[module] if not hasattr(public, name)] == []


@pytest.mark.parametrize("module", ["reattach", "reattach.testing"])
def test_a_public_module_has_no_other_attribute(module: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
        _ = import_module(module).nothing


@pytest.mark.parametrize("module", ["reattach", "reattach.testing"])
def test_importing_a_public_module_imports_no_dependency(module: str) -> None:
    program = (
        f"import sys; before = set(sys.modules); import {module}; "
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}"
        " - set(sys.stdlib_module_names)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    assert ran.stdout.strip() == "['reattach']"


def test_the_package_ships_its_types() -> None:
    assert (resources.files("reattach") / "py.typed").is_file()


def test_a_module_that_uses_the_public_api_as_an_application_does_can_be_imported() -> None:
    """mypy checks its types with all other tests; see ``scripts/check``."""
    assert import_module("tests.meta.typed_application").answer.__name__ == "answer"


def test_the_extra_testing_installs_whatever_the_test_kit_imports() -> None:
    kit = Path(import_module("reattach.testing").__path__[0])
    used = {
        line.split()[1].partition(".")[0]
        for path in kit.rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if line.startswith(("import ", "from "))
    }
    wanted = metadata.requires("reattach") or []
    own = {"httpx2", "msgspec", "typing_extensions", "reattach"}
    in_extra = {one.split(">")[0] for one in wanted if "extra == 'testing'" in one}

    assert used - set(sys.stdlib_module_names) - own <= in_extra
    assert install_command("testing") == "pip install '.[testing]'"
