"""The API of OpenAI under ``/openai/v1``, in which agents are the models."""
