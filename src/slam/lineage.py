"""A training run → what `slam.json` keeps of it beside the weights; no paths, so that it may be published."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from slam import __version__
from slam.run import identity, named_sources


def training_record(stage: str, config: Any, results: Mapping[str, Any]) -> dict[str, Any]:
    """The run of `stage` with these settings, as its `run.json` will have it, but for paths.

    Args:
        stage: the command.
        config: its settings; of inputs the names of their folders are kept, and their fingerprints.
        results: what came out; numbers, words and what is unknown are kept.
    """
    fingerprint, settings, inputs = identity(stage, config)
    sources = [item.name for item in fields(config) if item.metadata.get("source")]
    efforts = [item.name for item in fields(config) if item.metadata.get("effort")]
    folders = {
        key: path.resolve().name
        for name in sources
        for key, path in named_sources(name, getattr(config, name))
    }
    return {
        "stage": stage,
        "fingerprint": fingerprint,
        "slam_version": __version__,
        "settings": {key: value for key, value in settings.items() if key not in (*sources, *efforts)},
        "inputs": {
            key: {"name": folders[key], "fingerprint": fingerprint} for key, fingerprint in inputs.items()
        },
        "results": {
            key: value for key, value in results.items() if isinstance(value, int | float | str | None)
        },
    }
