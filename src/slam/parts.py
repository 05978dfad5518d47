"""The name of a part → its class: a built-in by its short name, a stranger's as `package.module:Name`."""

import difflib
import pkgutil
from collections.abc import Mapping
from typing import Any

from slam.errors import ConfigError, MissingExtraError


def resolve(kind: str, name: str, built_in: Mapping[str, str]) -> Any:
    """Import the part called `name`.

    Args:
        kind: what is looked for, for the error ("tokenizer").
        name: a key of `built_in`, or `package.module:Name` of the user's own. Only names that the user
            wrote in a recipe or on the command line may come here, never one read from a data folder.
        built_in: short name → `module:Name`.

    Raises:
        ConfigError: there is no such part.
        MissingExtraError: the part needs a package that is not installed.
    """
    if name not in built_in and ":" not in name:
        near = difflib.get_close_matches(name, built_in, 1)
        known = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(built_in))}"
        raise ConfigError(f"no {kind} is called {name!r}; {known} (your own: package.module:Name)")
    try:
        return pkgutil.resolve_name(built_in.get(name, name))
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{kind} {name!r} needs the package {error.name!r}; install it first"
        ) from None
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{kind} {name!r} cannot be loaded: {error}") from None
