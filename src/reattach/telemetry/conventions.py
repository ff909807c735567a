"""Names of the OpenTelemetry conventions that Reattach follows, and its own beside them.

The conventions for generative AI are those of version 0.1.0, on the core conventions 1.45.0. Their
status is "development": names change with each release, and the Python packages still have older
ones. So the names are here, and nowhere else.
"""

from collections.abc import Mapping
from typing import Final

SCOPE_NAME: Final = "reattach"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/gen-ai/0.1.0"

# Operations, which begin the names of spans.
CHAT: Final = "chat"
EXECUTE_TOOL: Final = "execute_tool"
INVOKE_AGENT: Final = "invoke_agent"

# Generative AI.
OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
AGENT_NAME: Final = "gen_ai.agent.name"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
CONVERSATION_COMPACTED: Final = "gen_ai.conversation.compacted"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
"""Seconds from the request to the first output."""
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_write.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
TOOL_TYPE: Final = "gen_ai.tool.type"

# Content, recorded only if it is switched on.
SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
TOOL_CALL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_CALL_RESULT: Final = "gen_ai.tool.call.result"

# Core.
ERROR_TYPE: Final = "error.type"
HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"
URL_PATH: Final = "url.path"
URL_SCHEME: Final = "url.scheme"
SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE_ID: Final = "service.instance.id"

# Reattach's own.
RUN_ID: Final = "reattach.run.id"
RUN_IDS: Final = "reattach.run.ids"
RUN_STATUS: Final = "reattach.run.status"
STOP_REASON: Final = "reattach.run.stop_reason"
TENANT: Final = "reattach.tenant"
AGENT_ID: Final = "reattach.agent.id"
STEP_ID: Final = "reattach.step.id"
CURSOR: Final = "reattach.cursor"
ATTEMPT: Final = "reattach.attempt"
ATTEMPT_WAY: Final = "reattach.attempt.way"
ATTEMPT_INTERRUPTION: Final = "reattach.attempt.interruption"
ATTEMPT_OUTCOME: Final = "reattach.attempt.outcome"
ATTEMPT_FIRST_SEQ: Final = "reattach.attempt.first_seq"
ATTEMPT_LAST_SEQ: Final = "reattach.attempt.last_seq"
RECOVERED: Final = "reattach.recovered"
"""Whether recovery reports the span, because the process that made it died."""

_PROVIDERS: Final[Mapping[str, str]] = {
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "google": "gcp.gemini",
    "google-gla": "gcp.gemini",
    "google-vertex": "gcp.vertex_ai",
    "grok": "x_ai",
    "mistral": "mistral_ai",
    "moonshotai": "moonshot_ai",
    "openai-chat": "openai",
    "openai-responses": "openai",
    "xai": "x_ai",
}
"""The convention's name of a provider by the first part of a model's handle, where they differ."""


def split_handle(handle: str | None) -> tuple[str, str]:
    """Return the convention's name of the provider, and the provider's name of the model."""
    provider, slash, model = (handle or "").partition("/")
    if not slash:
        provider, model = "", provider
    return _PROVIDERS.get(provider, provider) or "_OTHER", model or "unknown"
