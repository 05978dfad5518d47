"""A loaded speech LM and examples → a page to hear it by, by Gradio: nothing in it comes from elsewhere.

Gradio's own streaming of sound calls ffmpeg, which many machines lack. So chunks go to a few lines of
JavaScript (`listening_player.js`) that queue them, and at the end the whole goes to an ordinary player.
"""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gradio as gr

from slam.audio import write_audio
from slam.errors import SlamError
from slam.listening import Examples, Heard, Limits, check_prompt, continue_prompt, pcm
from slam.listening_views import figures, find_likelihoods, likelihood_plot, said, units_line
from slam.sampling import Sampling
from slam.spoken_lm import SpokenLM
from slam.units import Units

_ONE_AT_A_TIME = "model"  # a listener waits for the one before
_FONTS = ("system-ui", "sans-serif")
_SEEDS = 1_000_000
_STEPS = """<ol class="slam-steps slam-box">
<li><b>Give a prompt</b>: some seconds of speech, uploaded, recorded or picked from the examples.</li>
<li><b>Press Continue.</b> The model goes on speaking; its sound begins before all of it is made.</li>
<li><b>Look.</b> You see how fast the sound came, the units that the model heard and said, and how likely it
held each of them.</li></ol>"""


@dataclass(frozen=True)
class Shelf:
    """What the page needs to know beside the model."""

    name: str  # of the model
    folder: Path  # for sound files, which Gradio may serve
    limits: Limits
    most_new_units: int
    examples: Examples


def build_page(slm: SpokenLM, shelf: Shelf) -> gr.Blocks:
    """The page; its first half asks, its second answers."""
    page: gr.Blocks
    with gr.Blocks(title=f"Listen to {shelf.name}", analytics_enabled=False) as page:
        gr.HTML(_head(slm, shelf), padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                prompt, note = _prompt(shelf)
                settings = _settings(slm, shelf)
                with gr.Row():
                    go = gr.Button("Continue", variant="primary", elem_id="go", min_width=120, scale=3)
                    stop = gr.Button("Stop", elem_id="stop", min_width=80, scale=1)
            with gr.Column(scale=7, min_width=320):
                shown = _answer(slm)
        prompt.change(
            partial(_note, shelf.limits),
            prompt,
            note,
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )
        running = go.click(
            partial(_continue, slm, shelf),
            [prompt, *settings],
            shown,
            show_progress="hidden",
            concurrency_id=_ONE_AT_A_TIME,
            api_visibility="private",
        )
        stop.click(
            lambda: ({"rate": slm.vocoder.sample_rate, "id": "", "chunks": []}, said("Stopped.")),
            None,
            shown[:2],
            cancels=[running],
            queue=False,
            api_visibility="private",
        )
    return page


def options() -> dict[str, Any]:
    """How Gradio shows the page: fonts of the machine, no links to anywhere."""
    theme = gr.themes.Default(primary_hue="blue", font=_FONTS, font_mono=("ui-monospace", "monospace"))
    return {
        "theme": theme,
        "css": _beside("listening_page.css"),
        "footer_links": [],
        "run_history": False,
        "show_error": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "pwa": False,
        "mcp_server": False,
    }


def _beside(name: str) -> str:
    return (files("slam") / name).read_text(encoding="utf-8")


def _head(slm: SpokenLM, shelf: Shelf) -> str:
    lm = slm.speech_lm.lm
    about = (
        f"{_rounded(sum(one.numel() for one in lm.parameters()))} parameters, "
        f"{slm.speech_lm.vocabulary.num_units} units of "
        f"<code>{escape(slm.tokenizer.name)}</code>, spoken by <code>{escape(slm.vocoder.name)}</code>, "
        f"on {escape(lm.device.type)}"
    )
    return (
        f'<div class="slam-head"><h1>Listen to {escape(shelf.name)}</h1>'
        "<p>A speech language model: it hears the prompt as a row of units, and says what it holds likely to "
        f"follow. No text is inside. {about}.</p></div>"
    )


def _rounded(count: int) -> str:
    """A count in three digits."""
    scale, letter = next(
        pair for pair in ((1e9, " G"), (1e6, " M"), (1e3, " k"), (1, "")) if count >= pair[0]
    )
    return f"{count / scale:.3g}{letter}"


def _prompt(shelf: Shelf) -> tuple[gr.Audio, gr.HTML]:
    """The prompt, and a line about it."""
    prompt = gr.Audio(
        sources=["upload", "microphone"],
        type="filepath",
        label="Prompt: upload or record speech",
        elem_id="prompt",
        buttons=[],
    )
    note = gr.HTML(_limits(shelf.limits), padding=False, elem_id="note")
    if sounds := shelf.examples.sounds:
        gr.Examples(
            [[str(path)] for path in sounds.values()],
            [prompt],
            label="Or pick an example",
            example_labels=list(sounds),
            cache_examples=False,
            api_visibility="private",
        )
    return prompt, note


def _settings(slm: SpokenLM, shelf: Shelf) -> list[Any]:
    """Length, temperature, and what is rarely touched: in the order of `_continue`."""
    usual = Sampling()
    unit_seconds = slm.vocoder.durations(_every_unit(slm)).mean() / slm.tokenizer.frame_rate
    most = shelf.most_new_units
    length = gr.Slider(
        1,
        most,
        value=min(150, most),
        step=1,
        label="Length",
        info=f"most units of the continuation; 100 are about {100 * unit_seconds:.1f} s",
        elem_id="length",
    )
    temperature = gr.Slider(
        0,
        2,
        value=usual.temperature,
        step=0.05,
        label="Temperature",
        info="low: likely and dull; high: varied and wild; 0: always the likeliest unit",
    )
    with gr.Accordion("Advanced", open=False):
        num_units = slm.speech_lm.vocabulary.num_units
        top_k = gr.Slider(
            1,
            num_units,
            value=min(usual.top_k, num_units),
            step=1,
            label="Top-k",
            info="likeliest units among which one is drawn",
        )
        penalty = gr.Slider(
            1,
            2,
            value=usual.repetition_penalty,
            step=0.05,
            label="Repetition penalty",
            info="holds back units already said; 1: off",
        )
        seed = gr.Number(
            value=None,
            precision=0,
            minimum=0,
            label="Seed",
            info="empty: another one each time",
            elem_id="seed",
        )
    return [length, temperature, top_k, penalty, seed]


def _every_unit(slm: SpokenLM) -> Units:
    import numpy as np

    return Units(np.arange(slm.tokenizer.num_units, dtype=np.uint16), None, slm.tokenizer.frame_rate)


def _answer(slm: SpokenLM) -> list[Any]:
    """What `_continue` fills."""
    player = gr.HTML(
        value={"rate": slm.vocoder.sample_rate, "id": "", "chunks": []},
        html_template='<div class="slam-player slam-box"><canvas></canvas><span></span></div>',
        js_on_load=_beside("listening_player.js"),
        padding=False,
        elem_id="player",
    )
    line = gr.HTML(said("Here you hear the continuation while it is made."), padding=False, elem_id="line")
    tiles = gr.HTML(padding=False, elem_id="figures")
    whole = gr.Audio(
        label="The whole continuation",
        interactive=False,
        visible=False,
        elem_id="whole",
        buttons=["download"],
    )
    plot = gr.HTML(_STEPS, padding=False, elem_id="plot")
    units = gr.HTML(padding=False, elem_id="units")
    return [player, line, tiles, whole, plot, units]


def _limits(limits: Limits) -> str:
    return said(f"At most {limits}: wav, flac, ogg, mp3; any rate and number of channels.")


def _note(limits: Limits, prompt: str | None) -> str:
    """What is said below the prompt as soon as it is there."""
    if prompt is None:
        return _limits(limits)
    try:
        return said(f"{check_prompt(Path(prompt), limits):.1f} s of sound.")
    except SlamError as error:
        return said(str(error), wrong=True)


def _continue(  # noqa: PLR0917 - Gradio gives the values of components by their places
    slm: SpokenLM,
    shelf: Shelf,
    prompt: str | None,
    length: float,
    temperature: float,
    top_k: float,
    penalty: float,
    seed: float | None,
) -> Iterator[list[Any]]:
    """Fill the answer, again after each chunk; what the listener can put right becomes a line."""
    name = secrets.token_hex(4)
    player: dict[str, Any] = {"rate": slm.vocoder.sample_rate, "id": name, "chunks": []}
    unset = gr.Audio(value=None, visible=False)
    chunks: list[str] = []
    try:
        for heard in continue_prompt(
            slm,
            None if prompt is None else Path(prompt),
            limits=shelf.limits,
            examples=shelf.examples,
            max_new_units=round(length),
            sampling=Sampling(temperature=temperature, top_k=round(top_k), repetition_penalty=penalty),
            seed=secrets.randbelow(_SEEDS) if seed is None else int(seed),
        ):
            chunks += [pcm(one) for one in heard.chunks[len(chunks) :]]
            player = player | {"chunks": list(chunks)}
            if heard.ended is None:
                yield [player, said(_way(heard)), figures(heard), unset, "", units_line(heard)]
        found = find_likelihoods(slm, heard)
        yield [
            player,
            said(_way(heard)),
            figures(heard, found),
            _whole(shelf.folder, heard),
            likelihood_plot(found, len(heard.prompt), slm.speech_lm.vocabulary.num_units),
            units_line(heard),
        ]
    except SlamError as error:
        yield [player, said(str(error), wrong=True), "", unset, "", ""]


def _way(heard: Heard) -> str:
    """How far the continuation is."""
    if not heard.chunks:
        return "The model ended at once: nothing follows." if heard.ended else "Listening to the prompt …"
    seed = f"seed {heard.seed}"
    room = "" if heard.room is None else f"; the model's context had room for {heard.room} units"
    return f"{'Speaking' if heard.ended is None else 'Done'}: {seed}{room}."


def _whole(folder: Path, heard: Heard) -> gr.Audio:
    if not heard.chunks:
        return gr.Audio(value=None, visible=False)
    path = Path(mkdtemp(dir=folder)) / "continuation.wav"
    write_audio(path, heard.sound)
    return gr.Audio(value=str(path), visible=True)
