"""Checks of the doctor for models: names, keys, lists, and on request whether they answer."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from reattach.diagnostics import Diagnostic
from reattach.domain.clock import SystemClock
from reattach.domain.errors import EngineError, StartupError
from reattach.domain.ids import new_agent_id, new_message_id, new_run_id
from reattach.domain.limits import MAX_ASKED_MODELS
from reattach.domain.messages import Message, Role, TextPart
from reattach.engine.base import ModelSettings, Turn, closing_deltas
from reattach.engine.catalog import Catalog
from reattach.server.announcing import check_default, missing_keys, no_models
from reattach.server.assembly import accounts_of, engines_of
from reattach.server.checks.continuing import check_continuing
from reattach.settings import Settings, unknown_variables

_ANSWER_SECONDS: Final = 60.0
_OUTPUT_TOKENS: Final = 16
"""The smallest limit that every provider accepts; the check stops at the first token."""


async def check_models(settings: Settings, *, ask: bool) -> AsyncIterator[Diagnostic]:
    """Check names and keys, list hosted models, and with ``ask`` call each model.

    Models that are set to continue their answers are called twice.
    """
    for diagnostic in unknown_variables(os.environ):
        yield diagnostic
    try:
        catalog = Catalog(await asyncio.to_thread(engines_of, settings, SystemClock()))
        check_default(settings, catalog)
    except StartupError as error:
        yield Diagnostic("wrong", "models", error.fact, error.remedy)
        return
    try:
        for diagnostic in _keys(settings):
            yield diagnostic
        await catalog.refresh()
        for problem in catalog.problems():
            yield Diagnostic("warning", "models", problem, "Check the key and the URL.")
        yield await asyncio.to_thread(_offered, catalog)
        failed: set[str] = set()
        if ask:
            async for diagnostic in _answers(catalog, failed):
                yield diagnostic
        async for diagnostic in check_continuing(settings, catalog, ask=ask, failed=failed):
            yield diagnostic
    finally:
        await catalog.aclose()


def _keys(settings: Settings) -> Sequence[Diagnostic]:
    found = []
    for handle, variables in missing_keys(settings).items():
        if variables is None:
            found.append(Diagnostic("ok", "model", f"{handle} is offered"))
        else:
            remedy = f"Set {variables} in the environment of the server."
            found.append(Diagnostic("wrong", "model", f"{handle} has no key", remedy))
    found.extend(
        Diagnostic("ok", "provider", f"{account.provider.name}, by {account.source}")
        for account in (() if settings.models else accounts_of(settings))
    )
    return found


def _offered(catalog: Catalog) -> Diagnostic:
    handles = [model.handle for model in catalog.models()]
    if not handles:
        return no_models()
    shown = ", ".join(handles[:5]) + (f" and {len(handles) - 5} more" if len(handles) > 5 else "")
    return Diagnostic("ok", "models", shown)


async def _answers(catalog: Catalog, failed: set[str]) -> AsyncIterator[Diagnostic]:
    """Call each model, and add the handles of those that do not answer to ``failed``."""
    models = catalog.models()
    for model in models[:MAX_ASKED_MODELS]:
        began = time.monotonic()
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await _ask(catalog, model.handle)
        except EngineError as error:
            failed.add(model.handle)
            remedy = "Correct the cause, or remove the model from REATTACH_MODELS."
            yield Diagnostic("wrong", "answer", f"{model.handle}: {error.detail}", remedy)
        except TimeoutError:
            failed.add(model.handle)
            remedy = "Check the provider, and any proxy in front of it."
            detail = f"{model.handle} sent nothing for {_ANSWER_SECONDS:g} s"
            yield Diagnostic("wrong", "answer", detail, remedy)
        else:
            taken = time.monotonic() - began
            yield Diagnostic("ok", "answer", f"{model.handle} answers, first token {taken:.1f} s")
    if len(models) > MAX_ASKED_MODELS:
        detail = f"{len(models) - MAX_ASKED_MODELS} more models were not checked"
        yield Diagnostic("ok", "answer", detail)


async def _ask(catalog: Catalog, handle: str) -> None:
    """Call the model and return at its first delta. Raises EngineError."""
    now = SystemClock().now()
    message = Message(
        id=new_message_id(), role=Role.USER, parts=(TextPart("Say yes."),), created_at=now
    )
    turn = Turn(
        run_id=new_run_id(),
        agent_id=new_agent_id(),
        conversation_id=None,
        model=handle,
        system="Answer with one word.",
        history=(),
        input=(message,),
        settings=ModelSettings(max_output_tokens=_OUTPUT_TOKENS),
    )
    async with closing_deltas(catalog.engine(handle).run(turn)) as deltas:
        async for _ in deltas:
            return
