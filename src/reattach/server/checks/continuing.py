"""Checks of the doctor for REATTACH_CONTINUE_MODELS: whether the models continue a begun answer."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from reattach.diagnostics import Diagnostic
from reattach.domain.clock import SystemClock
from reattach.domain.context import text_tokens
from reattach.domain.errors import EngineError, NotFoundError, StartupError
from reattach.domain.ids import new_agent_id, new_message_id, new_run_id
from reattach.domain.limits import MAX_ASKED_MODELS
from reattach.domain.messages import Message, Role, TextPart
from reattach.engine.base import ModelSettings, Partial, Turn, Way
from reattach.engine.catalog import Catalog
from reattach.engine.prefix import Rest
from reattach.engine.providers import continue_forms
from reattach.settings import Settings

if TYPE_CHECKING:
    from reattach.engine.pydantic_ai import PydanticAIEngine

_WHAT: Final = "continuing"
_PROMPT: Final = "Count from 1 to 20. Write nothing but the numbers, separated by commas."
_BEGINNING: Final = "1, 2, 3, 4,"
_NEXT: Final = " 5"
_OUTPUT_TOKENS: Final = 6
"""So few that an answer that begins anew does not come as far as the beginning does."""
_LONG_CHARS: Final = 30
"""More than so many tokens of such an answer have: the server ignores the limit."""
_SHOWN_CHARS: Final = 40
_ANSWER_SECONDS: Final = 60.0

_OTHER_FORM: Final = {"flags": "prefix", "prefix": "flags"}


async def check_continuing(
    settings: Settings, catalog: Catalog, *, ask: bool, failed: Collection[str]
) -> AsyncIterator[Diagnostic]:
    """Check that each entry names a model, and with ``ask`` let each model continue a text.

    Models in ``failed`` are not called.
    """
    if not settings.continue_models:
        return
    entries, without = _models(settings, catalog)
    for entry in without:
        detail = f"REATTACH_CONTINUE_MODELS: {entry} names no model with chat completions"
        yield Diagnostic("warning", _WHAT, detail, f"Correct or remove {entry}.")
    if not ask and entries:
        models = "1 model is" if len(entries) == 1 else f"{len(entries)} models are"
        detail = f"{models} set to continue an interrupted answer, unchecked"
        hint = "; `reattach doctor --models` lets each produce a few tokens"
        yield Diagnostic("ok", _WHAT, detail + hint)
    for handle in list(entries)[:MAX_ASKED_MODELS] if ask else ():
        if handle not in failed:
            yield await _check(catalog, handle, entries[handle])
    if ask and len(entries) > MAX_ASKED_MODELS:
        left = len(entries) - MAX_ASKED_MODELS
        yield Diagnostic("ok", _WHAT, f"{left} more models were not checked")


def _models(settings: Settings, catalog: Catalog) -> tuple[Mapping[str, str], list[str]]:
    """Return the handles of the models that continue, each with its entry, and idle entries."""
    forms = continue_forms(settings.continue_models)
    handles = [model.handle for model in catalog.models()]
    # A provider may offer a model that it does not list.
    named = [pattern for pattern, _ in forms if not set("*?[") & set(pattern)]
    found: dict[str, str] = {}
    for handle in dict.fromkeys([*handles, *named]):
        entry = next((f"{p}={form}" for p, form in forms if fnmatchcase(handle, p)), None)
        engine = _engine(catalog, handle)
        if entry and engine is not None and Way.PREFIX in engine.ways(_turn(handle)):
            found[handle] = entry
    entries = [f"{pattern}={form}" for pattern, form in forms]
    return found, [one for one in entries if one not in found.values()]


def _engine(catalog: Catalog, handle: str) -> "PydanticAIEngine | None":
    """Return the engine of a model, if the setting applies to its models."""
    try:
        from reattach.engine.pydantic_ai import PydanticAIEngine  # needs an extra

        engine = catalog.engine(handle)
    except (StartupError, NotFoundError):
        return None
    return engine if isinstance(engine, PydanticAIEngine) else None


async def _check(catalog: Catalog, handle: str, entry: str) -> Diagnostic:
    engine, turn = _engine(catalog, handle), _turn(handle)
    assert engine is not None
    pattern, _, form = entry.rpartition("=")
    removal = f"Remove {entry} from REATTACH_CONTINUE_MODELS"
    if pattern != handle:
        removal = f"Replace {entry} in REATTACH_CONTINUE_MODELS by the models that continue"
    remedy = f"{removal}, or try the form {_OTHER_FORM[form]}."
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            rest = await engine.rest_of(turn, most_chars=_LONG_CHARS)
    except TimeoutError:
        detail = f"{handle} sent nothing for {_ANSWER_SECONDS:g} s when it had to continue"
        return Diagnostic("wrong", _WHAT, detail, remedy)
    except EngineError as error:
        if error.may_pass and Way.PREFIX in engine.ways(turn):
            detail = f"{handle} could not be checked: {error.detail}"
            return Diagnostic("warning", _WHAT, detail, "Run `reattach doctor --models` again.")
        detail = f"{handle} refuses to continue an answer ({form}): {error.detail}"
        return Diagnostic("warning", _WHAT, detail, remedy)
    return _judge(rest, handle, form, remedy)


def _judge(rest: Rest, handle: str, form: str, remedy: str) -> Diagnostic:
    """Return the result for the rest that a model produced."""
    text = rest.text
    is_long = rest.was_repeated and len(text) >= _LONG_CHARS
    if text.startswith(_NEXT) and not is_long:
        detail = f"{handle} continues an interrupted answer ({form})"
        if rest.was_repeated:
            detail += "; its server repeats the beginning, which is dropped"
        return Diagnostic("ok", _WHAT, detail)
    if text.startswith(_NEXT.strip()):
        detail = f"{handle} continues an interrupted answer, but without the space before its rest"
        joined = "Words may be joined where an answer was interrupted. If that matters: "
        return Diagnostic("warning", _WHAT, detail, f"{joined}{remedy[0].lower()}{remedy[1:]}")
    if is_long or text.lstrip().startswith("1"):
        detail = f"{handle} answers anew instead of continuing ({form})"
    elif text:
        shown = " ".join(text.split())[:_SHOWN_CHARS]
        detail = f"{handle} does not continue ({form}): after '{_BEGINNING}' came '{shown}'"
    elif rest.has_reasoning:
        detail = f"{handle} reasons before it continues ({form})"
        limit = "Only answers without reasoning are continued."
        return Diagnostic("warning", _WHAT, detail, f"{limit} Turn reasoning off. Else: {remedy}")
    elif rest.was_repeated:
        detail = f"{handle} repeats the beginning of its answer ({form}), and nothing follows"
    else:
        detail = f"{handle} produces nothing when it has to continue ({form})"
    return Diagnostic("wrong", _WHAT, detail, f"Interrupted answers would be damaged. {remedy}")


def _turn(handle: str) -> Turn:
    """Return the turn of an answer that was interrupted after a few words."""
    now = SystemClock().now()
    asked, begun = (
        Message(id=new_message_id(), role=role, parts=(TextPart(text),), created_at=now)
        for role, text in ((Role.USER, _PROMPT), (Role.ASSISTANT, _BEGINNING))
    )
    # The engine lowers the limit by the text so far.
    limit = _OUTPUT_TOKENS + text_tokens(_BEGINNING)
    return Turn(
        run_id=new_run_id(),
        agent_id=new_agent_id(),
        conversation_id=None,
        model=handle,
        system="You count.",
        history=(),
        input=(asked,),
        settings=ModelSettings(temperature=0.0, max_output_tokens=limit),
        partial=Partial([begun]),
    )
