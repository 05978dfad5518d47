"""What was heard of a continuation → the HTML that shows it: figures, units, and likelihoods over time."""

from html import escape

import numpy as np
import numpy.typing as npt

from slam.listening import Heard
from slam.plots import COLOURS, figure, svg
from slam.spoken_lm import LogLikelihoods, SpokenLM, unit_log_likelihoods
from slam.units import Units

_SMOOTH_SECONDS = 0.5  # over which the plot's thick line is a mean
_GREY, _BLUE = COLOURS[4], COLOURS[0]


def said(line: str, *, wrong: bool = False) -> str:
    """A line for the listener."""
    kind, role = ("slam-wrong", "alert") if wrong else ("slam-note", "status")
    return f'<p class="{kind}" role="{role}">{escape(line)}</p>'


def figures(heard: Heard, likelihoods: LogLikelihoods | None = None) -> str:
    """How fast the sound comes, how long it is, and how likely the model holds it: a tile each."""
    tiles = []
    if heard.seconds_to_first_sound is not None and heard.real_time_factor is not None:
        speed = "made faster than heard" if heard.real_time_factor < 1 else "made slower than heard"
        tiles += [
            (f"{heard.seconds_to_first_sound:.2f} s", "to the first sound", "prompt heard, sound made"),
            (f"{heard.real_time_factor:.2f}", "real-time factor", speed),
        ]
    if heard.chunks:
        ends = {None: "so far", True: "ended by the model", False: "the length asked for"}[heard.ended]
        tiles.append((f"{heard.sound.seconds:.1f} s", f"{len(heard.ids)} units", ends))
    if likelihoods is not None and len(heard.ids):
        begin = len(heard.prompt)
        before, after = (float(part.mean()) for part in np.split(likelihoods.values, [begin]))
        tiles.append((_signed(after), "nats a unit", f"the prompt: {_signed(before)}"))
    cells = "".join(
        f'<div class="slam-box"><b>{value}</b><span>{what}</span><small>{more}</small></div>'
        for value, what, more in tiles
    )
    return f'<div class="slam-figures">{cells}</div>' if tiles else ""


def units_line(heard: Heard) -> str:
    """The prompt's units, then the continuation's."""
    prompt, rest = (
        " ".join(f"<span>{unit}</span>" for unit in ids.tolist()) for ids in (heard.prompt.ids, heard.ids)
    )
    return (
        f"{_caption('Units', 'of the prompt (grey) and its continuation (blue)')}"
        f'<div class="slam-units slam-box" tabindex="0"><span class="slam-prompt">{prompt}</span> '
        f'<span class="slam-continuation">{rest}</span></div>'
    )


def find_likelihoods(slm: SpokenLM, heard: Heard) -> LogLikelihoods:
    """How likely the model holds each unit of the prompt and of the continuation, and when it is heard."""
    ids = np.concatenate([heard.prompt.ids, heard.ids])
    frames = np.concatenate(
        [_durations(slm, heard.prompt), _durations(slm, Units(heard.ids, None, heard.prompt.frame_rate))]
    )
    ends = np.cumsum(frames) / heard.prompt.frame_rate
    return LogLikelihoods(
        ids, unit_log_likelihoods(slm.speech_lm, ids), np.concatenate(([0.0], ends[:-1])), ends
    )


def likelihood_plot(found: LogLikelihoods, num_prompt_units: int, num_units: int) -> str:
    """Each unit's log-likelihood over time, and the mean around it; the prompt grey, its continuation blue.

    Args:
        found: of the prompt and its continuation.
        num_prompt_units: how many are the prompt's.
        num_units: that there are, for the line of a model that knows nothing.
    """
    drawing, axes = figure(height=2.7)
    smooth = _smoothed(found)
    middles = (found.starts + found.ends) / 2
    for part, colour, name in (
        (slice(num_prompt_units), _GREY, "prompt"),
        (slice(num_prompt_units, None), _BLUE, "continuation"),
    ):
        if len(found.values[part]):
            axes.hlines(
                found.values[part],
                found.starts[part],
                found.ends[part],
                color=colour,
                alpha=0.45,
                linewidth=1.5,
            )
            axes.plot(middles[part], smooth[part], color=colour, linewidth=2, label=name)
    axes.axhline(-np.log(num_units), color="#4a5568", linewidth=1, linestyle="--", label="chance")
    if 0 < num_prompt_units < len(found.values):
        axes.axvline(found.starts[num_prompt_units], color="#1a202c", linewidth=1)
    axes.set_xlim(0, max(float(found.ends[-1]), 1e-3))
    axes.set_xlabel("seconds")
    axes.set_ylabel("nats a unit")
    drawing.legend(loc="outside upper center", ncols=3, frameon=False)
    caption = _caption(
        "Log-likelihood over time", "of each unit given those before it; thick: the mean of half a second"
    )
    return f'{caption}<div class="slam-plot slam-box">{svg(drawing)}</div>'


def _smoothed(found: LogLikelihoods) -> npt.NDArray[np.float64]:
    """The mean over the units that begin around each, weighted by nothing."""
    half = _SMOOTH_SECONDS / 2
    sums = np.concatenate(([0.0], np.cumsum(found.values, dtype=np.float64)))
    first = np.searchsorted(found.starts, found.starts - half)
    last = np.searchsorted(found.starts, found.starts + half, side="right")
    return np.asarray((sums[last] - sums[first]) / (last - first))


def _durations(slm: SpokenLM, units: Units) -> npt.NDArray[np.int64]:
    """Frames of each unit: its own, or as long as the vocoder speaks it."""
    frames = slm.vocoder.durations(units) if units.durations is None else units.durations
    return np.asarray(frames, np.int64)


def _caption(what: str, more: str) -> str:
    return f'<p class="slam-caption"><b>{what}</b> <small>{more}</small></p>'


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
