"""Routes for ``useChat`` and other clients of the AI SDK, under ``/ai-sdk/{agent_id}/chat``."""
