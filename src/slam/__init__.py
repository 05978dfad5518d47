"""Speech language models on one GPU in a day: speech → units → TWIST → DPO → scores and sound.

Importing this package costs nothing: torch and transformers are imported by the stage that needs them,
when it starts to work. The names below are imported when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slam.audio import Audio
    from slam.errors import SlamError
    from slam.sampling import Sampling
    from slam.spoken_lm import LogLikelihoods, SpokenLM, load
    from slam.streaming import Stream
    from slam.units import Units

__version__ = "0.1.0"
__all__ = ["Audio", "LogLikelihoods", "Sampling", "SlamError", "SpokenLM", "Stream", "Units", "load"]

_HOMES = {
    "Audio": "slam.audio",
    "LogLikelihoods": "slam.spoken_lm",
    "Sampling": "slam.sampling",
    "SlamError": "slam.errors",
    "SpokenLM": "slam.spoken_lm",
    "Stream": "slam.streaming",
    "Units": "slam.units",
    "load": "slam.spoken_lm",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'slam' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
