r"""A prompt's text and its continuation's → a rating from 1 to 5 by a language model, asked over HTTP.

Any server that speaks OpenAI's chat completions can be asked, one on this machine too. The rubric is
AlignSLM's (Lin et al., 2024) in our words; the answer ends in `\boxed{x}`. The key comes from the environment
and is written nowhere.
"""

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from slam.errors import ConfigError, InputError, reason_of
from slam.run import read_lines

KEY_VARIABLE = "SLAM_JUDGE_API_KEY"
_BOXED = re.compile(r"\\boxed\{\s*(\d+)\s*\}")
_RATINGS = range(1, 6)
_PLACES = ("{prompt}", "{continuation}")
_BUSY = (408, 429)  # and every 5xx: the same question may be answered later
_SERVER_ERROR = 500
_LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Whom to ask for ratings, and how; nobody is asked without a model."""

    model: str | None = None
    """The model's name on the server; nobody is asked without one."""
    url: str = "https://api.openai.com/v1"
    """Where the server is, without /chat/completions; its key is read from SLAM_JUDGE_API_KEY."""
    temperature: float = 0.8
    """Of the judge's sampling."""
    max_tokens: int = 512
    """Most tokens in an answer."""
    num_requests: int = 4
    """Questions that are under way at the same time."""
    timeout_seconds: float = 60.0
    """How long an answer is waited for."""
    num_retries: int = 5
    """How often a busy server is asked again, after 1, 2, 4 … seconds or as long as it says."""
    input_price: float | None = None
    """Price of a million tokens that are sent, for the cost in the results."""
    output_price: float | None = None
    """Price of a million tokens that come back."""

    def __post_init__(self) -> None:
        if self.num_requests < 1 or self.max_tokens < 1 or self.num_retries < 0:
            raise ConfigError(
                "judge: num_requests and max_tokens must be at least 1, num_retries not negative"
            )
        if not (isfinite(self.temperature) and self.temperature >= 0 and self.timeout_seconds > 0):
            raise ConfigError("judge: temperature must not be negative, timeout_seconds must be more than 0")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(f"judge.url = {self.url!r}: expected http:// or https:// and a server")
        if parts.username or parts.password:  # settings are kept in run.json
            raise ConfigError(f"judge.url: a password does not belong into settings; set {KEY_VARIABLE}")

    def cost(self, sent: int, received: int) -> float | None:
        """What so many tokens cost; None where a price is not known."""
        if self.input_price is None or self.output_price is None:
            return None
        return (sent * self.input_price + received * self.output_price) / 1e6


@dataclass(frozen=True)
class Answer:
    """What the judge said."""

    rating: int | None  # 1 to 5; None where the answer holds none
    text: str
    prompt_tokens: int
    completion_tokens: int
    num_retries: int  # that it took


class _NoRedirect(HTTPRedirectHandler):
    """A key is sent to the server that the user named, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        """Never."""


@dataclass(frozen=True)
class Judge:
    """Asks a server; may be used by several threads at once."""

    config: JudgeConfig
    question: str
    opener: OpenerDirector = field(default_factory=lambda: build_opener(_NoRedirect))
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def of(cls, config: JudgeConfig, question_from: Path | None = None) -> "Judge":
        """The judge of these settings.

        Args:
            config: whom to ask, and how.
            question_from: a text file with `{prompt}` and `{continuation}`; None for the rubric of slam.

        Raises:
            InputError: the question's file cannot be read, or lacks a place for a text.
        """
        if question_from is None:
            question = files("slam").joinpath("judge.txt").read_text(encoding="utf-8")
        else:
            question = "\n".join(read_lines(question_from))
        if absent := next((place for place in _PLACES if place not in question), None):
            raise InputError(f"{question_from}: a judge's question holds {absent}, for the text to judge")
        return cls(config, question)

    def ask(self, prompt: str, continuation: str) -> Answer:
        """Have a continuation rated.

        Raises:
            InputError: the server cannot be reached, refuses, or is busy after every retry.
        """
        texts = dict(zip(_PLACES, (prompt, continuation), strict=True))
        asked = re.sub("|".join(map(re.escape, _PLACES)), lambda found: texts[found[0]], self.question)
        content, num_retries = self._posted(
            {
                "model": self.config.model,
                "messages": [{"role": "user", "content": asked}],
                "temperature": self.config.temperature,
                "max_tokens": self.config.max_tokens,
            }
        )
        try:
            text = content["choices"][0]["message"].get("content") or ""
            used = content.get("usage") or {}
            counts = [int(used.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
            return Answer(read_rating(text), text, counts[0], counts[1], num_retries)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise InputError(
                f"{self._url}: its answer is no chat completion; is this the right url?"
            ) from None

    @property
    def _url(self) -> str:
        return f"{self.config.url.rstrip('/')}/chat/completions"

    def _posted(self, body: dict[str, Any]) -> tuple[Any, int]:
        """Send `body`, again while the server is busy; `(its answer, retries)`."""
        headers, key = {"Content-Type": "application/json"}, _key()
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = Request(self._url, json.dumps(body).encode(), headers)  # noqa: S310 - http or https
        for attempt in range(self.config.num_retries + 1):
            try:
                with self.opener.open(request, timeout=self.config.timeout_seconds) as response:
                    return _read(response.read(), self._url), attempt
            except HTTPError as error:
                reason, wait = _said(error, key), error.headers.get("Retry-After")
                if error.code not in _BUSY and error.code < _SERVER_ERROR:
                    raise InputError(f"{self._url}: {reason}{_hint(error.code)}") from None
            except (URLError, HTTPException, OSError) as error:
                reason, wait = reason_of(error), None
            if attempt < self.config.num_retries:
                self.sleep(_seconds(wait, 2.0**attempt))
        raise InputError(
            f"{self._url}: no answer after {self.config.num_retries} retries ({reason}); the same command "
            "goes on with the answers that are stored"
        )


def _key() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{KEY_VARIABLE}: holds signs that no key has")
    return key


def _read(content: bytes, url: str) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        raise InputError(f"{url}: its answer is not JSON; is this the right url?") from None


def read_rating(text: str) -> int | None:
    r"""The number in the last `\boxed{x}` of an answer; None where there is none from 1 to 5."""
    found = _BOXED.findall(text)
    return int(found[-1]) if found and int(found[-1]) in _RATINGS else None


def _said(error: HTTPError, key: str) -> str:
    """A server's error in a line, without the key that it may repeat."""
    try:
        message = json.loads(error.read())["error"]["message"]
    except (ValueError, LookupError, TypeError, OSError):
        message = error.reason
    line = " ".join(str(message).split())
    return f"HTTP {error.code}, {(line.replace(key, '…') if key else line)[:200]}"


def _hint(code: int) -> str:
    return f"; put a valid key into {KEY_VARIABLE}" if code in (401, 403) else ""


def _seconds(said: str | None, otherwise: float) -> float:
    """How long to wait: as long as the server says, if it does in seconds."""
    wait = float(said) if said is not None and said.strip().isdecimal() else otherwise
    return min(wait, _LONGEST_WAIT_SECONDS)
