"""The lines that a server logs at its start: its models, its keys, and what is missing."""

import asyncio
import os

import structlog

from reattach.diagnostics import Diagnostic
from reattach.domain.errors import NotFoundError, StartupError
from reattach.domain.origins import ANY, LOCAL
from reattach.engine.catalog import Catalog
from reattach.engine.local import LocalEngine
from reattach.engine.providers import missing_key
from reattach.extras import BUILT_IN_MODEL, install_hint
from reattach.http.middleware.loopback import is_loopback
from reattach.records.records import Records
from reattach.settings import Settings, unknown_variables
from reattach.settings_file import near_names

logger = structlog.get_logger(__name__)

_SHOWN_MODELS = 5


def check_default(settings: Settings, catalog: Catalog) -> None:
    """Raise StartupError if the default model of the settings is not offered."""
    if settings.default_model is None:
        return
    try:
        catalog.model(settings.default_model)
    except NotFoundError as error:
        handles = [model.handle for model in catalog.models()]
        near = near_names(settings.default_model, handles)
        guess = f"Did you mean {near[0]}? " if near else ""
        there = ", ".join(handles) if handles else "no models"
        raise StartupError(
            f"REATTACH_DEFAULT_MODEL names {settings.default_model}, which this server does not "
            f"offer. It offers {there}.",
            remedy=f"{guess}Name an offered model, or add the model to REATTACH_MODELS.",
        ) from error


async def announce(settings: Settings, catalog: Catalog, records: Records) -> None:
    """Log the models, whether keys are required, and one warning for each missing part."""
    handles = [model.handle for model in catalog.models()]
    default = settings.default_model or catalog.first()
    more = f" and {len(handles) - _SHOWN_MODELS} more" if len(handles) > _SHOWN_MODELS else ""
    logger.info("models", handles=", ".join(handles[:_SHOWN_MODELS]) + more, default=default)
    keys = "required"
    if not await records.keys.exist():
        keys = "none exists"
        if settings.require_key:
            keys += (
                f", and one is required: create it with `{settings.command('keys create NAME')}`"
            )
        elif is_loopback(settings.host):
            keys += ": open to programs on this machine"
    logger.info("API keys", keys=keys)
    pages = check_origins(settings)
    for warning in await asyncio.to_thread(missing, settings, catalog):
        logger.warning(warning.detail, remedy=warning.remedy)
    if pages.level == "warning":
        logger.warning(pages.detail, remedy=pages.remedy)


def check_origins(settings: Settings) -> Diagnostic:
    """Return which web pages may call the server, with a warning if all may."""
    origins = (LOCAL,) if settings.cors_origins is None else settings.cors_origins
    if ANY in origins:
        return Diagnostic(
            "warning",
            "web pages",
            "REATTACH_CORS_ORIGINS is *: every web page may call this server from its visitors' "
            "browsers.",
            "Name the origins of your pages, such as https://app.example.com.",
        )
    allowed = ", ".join("pages of this machine" if one == LOCAL else one for one in origins)
    return Diagnostic("ok", "web pages", f"may call this server: {allowed or 'none'}")


def missing(settings: Settings, catalog: Catalog) -> list[Diagnostic]:
    """Return warnings about unknown variables, missing keys and missing models."""
    found = unknown_variables(os.environ)
    for handle, variables in missing_keys(settings).items():
        if variables is not None:
            fact = f"{handle} cannot answer: {variables} is not set."
            remedy = f"Set {variables} in the environment of the server."
            found.append(Diagnostic("warning", "model", fact, remedy))
    if not catalog.may_answer():
        found.append(no_models())
    return found


def missing_keys(settings: Settings) -> dict[str, str | None]:
    """Return the unset variables that each named model needs; None if it has its key."""
    openai = bool(settings.openai_api_key or settings.openai_base_url)
    return {
        handle: missing_key(handle, os.environ, openai_settings=openai)
        for handle in settings.models
    }


def no_models() -> Diagnostic:
    """Return the warning of a server without models, with how to get one."""
    remedy = "Set the key of a provider, such as OPENAI_API_KEY"
    if LocalEngine().missing is not None:
        remedy += f", or install the built-in model. {install_hint('local')} Then {BUILT_IN_MODEL}"
    return Diagnostic("warning", "models", "No model can answer.", f"{remedy}.")
