"""A TOML file of settings, one line per setting, named as in ``Settings``."""

import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, TomlConfigSettingsSource
from typing_extensions import override

from reattach.domain.errors import StartupError


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that ``name`` was probably meant to be, the likeliest first."""
    return get_close_matches(name, list(known), n=3)


class SettingsFile(TomlConfigSettingsSource):
    """The settings in a TOML file. Raises StartupError if the file cannot be used."""

    def __init__(self, settings: type[BaseSettings], path: Path) -> None:
        if not path.is_file():  # The base class would read a missing file as an empty one.
            found = "is not a file" if path.exists() else "does not exist"
            raise StartupError(
                f"The settings file {path} {found}.",
                remedy="Name another file with --config or REATTACH_CONFIG, or leave them out.",
            )
        super().__init__(settings, toml_file=path)
        self._refuse_unknown(path, sorted(settings.model_fields.keys() - {"config"}))

    def _refuse_unknown(self, path: Path, known: list[str]) -> None:
        unknown = [name for name in self.toml_data if name not in known]
        if not unknown:
            return
        listed = []
        for name in unknown:
            near = near_names(name.lower().removeprefix("reattach_"), known)
            listed.append(f"'{name}'" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
        raise StartupError(
            f"The settings file {path} has unknown settings: {', '.join(listed)}.",
            remedy=f"Use only: {', '.join(known)}.",
        )

    @override
    def _read_file(self, file_path: Any) -> dict[str, Any]:
        try:
            return super()._read_file(file_path)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise StartupError(
                f"The settings file {file_path} is not valid TOML: {error}.",
                remedy='Write one setting per line, such as port = 8283 or host = "127.0.0.1".',
            ) from error
        except OSError as error:
            raise StartupError(
                f"The settings file {file_path} cannot be read: {error.strerror}.",
                remedy="Allow the user that runs the server to read it, or name another file with "
                "--config.",
            ) from error
