"""A speech LM → a page on this machine to hear it by: record, upload or pick a prompt, hear what follows.

Nothing leaves the machine: the page loads nothing from elsewhere, tells nobody that it runs, is never shared,
and answers this machine alone unless another address is asked for. Recordings go when it stops.
"""

import os
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from slam.errors import ConfigError, MissingExtraError
from slam.long_audio import LONGEST_SECONDS
from slam.progress import console
from slam.run import source

if TYPE_CHECKING:
    from slam.listening_page import Shelf
    from slam.spoken_lm import SpokenLM

_LOCAL = ("127.0.0.1", "localhost", "::1")
_PORTS = 65_535


@dataclass(frozen=True, kw_only=True)
class ListenConfig:
    """Settings of `slam listen`."""

    tokenizer_from: Path = source(required=True)
    """Folder of the model's tokenizer, or a folder of units, which holds it."""
    tokenizer: str | None = None
    """The tokenizer's name, needed only for one that is not built in."""
    vocoder: str = "griffin-lim"
    """Who speaks the units: a built-in vocoder, or package.module:Name."""
    vocoder_from: Path | None = source()
    """Folder of its weights, for one that has any."""
    examples: Path | None = source()
    """Folder of recordings, or of units, to pick prompts from."""
    num_examples: int = 8
    """Prompts to pick from, spread evenly over the folder."""
    max_new_units: int = 500
    """Most units that a continuation may be asked to have."""
    max_prompt_seconds: float = 30.0
    """Longest prompt in seconds, at most 60; examples are cut to it."""
    max_upload_bytes: int = 20_000_000
    """Largest file in bytes that may be uploaded."""
    host: str = "127.0.0.1"
    """Address to answer at; anything but 127.0.0.1 lets others in."""
    port: int = 7860
    """Port to answer at; 0 takes any that is free."""

    def __post_init__(self) -> None:
        for name, fine, rule in (
            ("num_examples", self.num_examples >= 1, "must be at least 1"),
            ("max_new_units", self.max_new_units >= 1, "must be at least 1"),
            ("max_upload_bytes", self.max_upload_bytes >= 1, "must be at least 1"),
            (
                "max_prompt_seconds",
                0 < self.max_prompt_seconds <= LONGEST_SECONDS,
                f"must be more than 0 and at most {LONGEST_SECONDS:g}",
            ),
            ("port", 0 <= self.port <= _PORTS, f"must be between 0 and {_PORTS}"),
        ):
            if not fine:
                raise ConfigError(f"{name} = {getattr(self, name)}: {rule}")


def listen(model: Path, config: ListenConfig) -> None:
    """Serve the page until the process is told to stop.

    Args:
        model: folder of a speech LM.
        config: settings.

    Raises:
        MissingExtraError: Gradio is not installed.
        InputError: the model, its tokenizer or the examples cannot be read.
        MismatchError: tokenizer, vocoder or units of another model.
        ConfigError: there is no such vocoder, or the address is taken.
    """
    if find_spec("gradio") is None:
        raise MissingExtraError("slam listen needs the package 'gradio'; pip install 'slam[listen]'")
    from slam.listening import warm_up
    from slam.spoken_lm import load

    door = _door(config.host, config.port)
    with door, tempfile.TemporaryDirectory(prefix="slam-listen-") as folder:
        slm = load(
            model,
            tokenizer=config.tokenizer_from,
            tokenizer_name=config.tokenizer,
            vocoder=config.vocoder,
            vocoder_from=config.vocoder_from,
        )
        # before Gradio is imported: it reports nothing, and what listeners record goes with the folder
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
        shelf = _shelf(model, slm, config, Path(folder))
        warm_up(slm)
        _serve(slm, shelf, config, door)


def _door(host: str, port: int) -> socket.socket:
    """A socket that listens at an address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"port {port} of {host} cannot be listened at ({error.strerror}); give another --port or --host"
        ) from None


def _shelf(model: Path, slm: "SpokenLM", config: ListenConfig, folder: Path) -> "Shelf":
    from slam.listening import Examples, Limits, spoken_examples
    from slam.listening_page import Shelf

    limits = Limits(config.max_prompt_seconds, config.max_upload_bytes)
    examples = Examples()
    if config.examples is not None:
        examples = spoken_examples(config.examples, slm, folder, limits=limits, most=config.num_examples)
    for line in examples.left_out:
        console.print(
            f"left out, an example: {line}", style="yellow", highlight=False, markup=False, soft_wrap=True
        )
    return Shelf(
        name=model.resolve().name,
        folder=folder,
        limits=limits,
        most_new_units=config.max_new_units,
        examples=examples,
    )


def _serve(slm: "SpokenLM", shelf: "Shelf", config: ListenConfig, door: socket.socket) -> None:
    """Answer until told to stop; Gradio's own `launch` would look for itself by way of proxies."""
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from slam.listening_page import build_page, options

    # FastAPI's own pages load scripts from elsewhere
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if config.host in _LOCAL:  # a page elsewhere, whose name is made to mean this machine, is not answered
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(_LOCAL))
    else:
        console.print(
            f"{config.host}: whoever reaches this machine can use the page; browsers give it no microphone "
            "without https",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    port = door.getsockname()[1]
    gr.mount_gradio_app(
        app,
        build_page(slm, shelf),
        "/",
        server_name=config.host,
        server_port=port,
        app_kwargs={"docs_url": None, "redoc_url": None},
        max_file_size=config.max_upload_bytes,
        **options(),
    )
    print(f"http://{config.host}:{port}/", flush=True)  # noqa: T201 - what a script wants to read
    console.print("listening at this address; Ctrl-C stops", highlight=False)
    # whoever ends it: what listeners recorded goes, too
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    server.run(sockets=[door])
