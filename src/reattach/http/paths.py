"""The path of a request, wherever the application is mounted."""

from starlette.types import Scope


def path_of(scope: Scope) -> str:
    """Return the path relative to the mount point of the application."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
