"""What made imported units: a tokenizer that a folder holds, or one that the user names → its fingerprint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam.errors import ConfigError, InputError, MismatchError
from slam.run import digest, read_json
from slam.tokenizers import ABOUT_FILE
from slam.units import TOKENIZER_FOLDER, UNITS_FILE


@dataclass(frozen=True)
class Origin:
    """The tokenizer that made the units."""

    name: str
    fingerprint: str
    num_units: int
    frame_rate: float  # Hz


def check_named(folder: Path | None, named: Mapping[str, Any], why: str) -> None:
    """Hold the settings that say which tokenizer made the units: a folder, or all of `named`.

    Args:
        folder: `tokenizer_from`.
        named: `tokenizer`, `num_units` and `frame_rate`, or what stands for it.
        why: how the error begins, where something is missing.

    Raises:
        ConfigError: it is not said, or said twice, or cannot be meant.
    """
    given = [name for name, value in named.items() if value is not None]
    if folder is not None:
        if given:
            raise ConfigError(f"tokenizer_from brings its own {', '.join(given)}; leave out one or the other")
        return
    if lacking := sorted(named.keys() - given):
        raise ConfigError(
            f"{', '.join(lacking)}: {why}; give tokenizer_from, or all of "
            f"{', '.join(list(named)[:-1])} and {list(named)[-1]}"
        )
    if not named["tokenizer"]:
        raise ConfigError("tokenizer: is empty; name what made the units")
    if not 2 <= named["num_units"] <= 65_000:  # noqa: PLR2004 - tokens are uint16
        raise ConfigError(f"num_units = {named['num_units']}: must lie between 2 and 65,000")
    if not 0 < named.get("frame_rate", 1) < float("inf"):
        raise ConfigError(f"frame_rate = {named['frame_rate']}: must be more than 0 frames a second")


def named_origin(name: str, num_units: int, frame_rate: float) -> Origin:
    """The tokenizer that the user names; what has the same name, units and rate is of the same one."""
    rate = float(frame_rate)  # 25 and 25.0 are the same
    return Origin(name, digest(["import-units", name, num_units, rate]), num_units, rate)


def origin_in(folder: Path) -> Origin:
    """The tokenizer of a folder of units, or of one with a tokenizer in it.

    Raises:
        InputError: there is none.
        MismatchError: units and tokenizer in it do not belong together.
    """
    units, about = folder / UNITS_FILE, folder / TOKENIZER_FOLDER / ABOUT_FILE
    found = {}
    for path, name, fingerprint in (
        (units, "tokenizer", "tokenizer_fingerprint"),
        (about, "name", "fingerprint"),
    ):
        if not path.is_file():
            continue
        content = read_json(path)
        try:
            found[path] = Origin(
                content[name], content[fingerprint], int(content["num_units"]), float(content["frame_rate"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: does not describe a tokenizer ({error})") from None
    if not found:
        raise InputError(
            f"{folder}: holds neither units nor a tokenizer; give a folder that "
            "`slam encode` or `slam fit-units` wrote"
        )
    if len({origin.fingerprint for origin in found.values()}) > 1:
        raise MismatchError(
            f"{folder}: its units are of the tokenizer {found[units].fingerprint}, the "
            f"tokenizer in it is {found[about].fingerprint}; the folder was changed"
        )
    return next(iter(found.values()))
