"""AG-UI under ``/ag-ui``, and the routes of CopilotKit's runtime under ``/copilotkit``."""
