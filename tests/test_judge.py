import io
import json
from urllib.error import HTTPError, URLError

import pytest

from slam.errors import ConfigError, InputError
from slam.judge import Judge, JudgeConfig, read_rating

URL = "http://localhost:9/v1/chat/completions"


class Server:
    """Stands for a server: answers what it is told to, in turn, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def open(self, request, timeout):
        assert timeout > 0
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer if isinstance(answer, bytes) else json.dumps(answer).encode())


def said(text, sent=10, received=5):
    usage = {"prompt_tokens": sent, "completion_tokens": received}
    return {"choices": [{"message": {"content": text}}], "usage": usage}


def busy(code, *, headers=None, body=b"{}"):
    return HTTPError(URL, code, "busy", headers or {}, io.BytesIO(body))


def judge_of(server, **changes):
    waits = []
    config = JudgeConfig(model="m", url="http://localhost:9/v1", **changes)
    return Judge(config, "P {prompt} C {continuation}", server, waits.append), waits


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        (r"So: \boxed{4}", 4), (r"\boxed{2} or rather \boxed{ 5 }", 5), ("four", None), (r"\boxed{7}", None),
        (r"\boxed{0}", None), (r"\boxed{}", None),
    ],
)  # fmt: skip
def test_a_rating_is_the_last_boxed_number_from_1_to_5(text, rating):
    assert read_rating(text) == rating


def test_the_question_holds_both_texts_as_they_are():
    server = Server(said(r"\boxed{3}"))
    judge, _ = judge_of(server)
    answer = judge.ask("a {continuation} trap", "the end")
    assert (answer.rating, answer.prompt_tokens, answer.completion_tokens, answer.num_retries) == (
        3,
        10,
        5,
        0,
    )
    body = json.loads(server.asked[0].data)
    assert body["messages"] == [{"role": "user", "content": "P a {continuation} trap C the end"}]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.8, 512)
    assert server.asked[0].full_url == URL


def test_slams_own_rubric_asks_for_a_boxed_number():
    question = Judge.of(JudgeConfig(model="m")).question
    assert "{prompt}" in question
    assert "{continuation}" in question
    assert r"\boxed" in question


def test_a_busy_server_is_asked_again_after_the_time_it_names():
    server = Server(
        busy(429, headers={"Retry-After": "7"}), busy(503), URLError("refused"), said(r"\boxed{1}")
    )
    judge, waits = judge_of(server)
    answer = judge.ask("p", "c")
    assert (answer.rating, answer.num_retries) == (1, 3)
    assert waits == [7.0, 2.0, 4.0]


def test_one_that_never_answers_is_one_line_after_all_retries():
    judge, waits = judge_of(Server(*[URLError("refused")] * 3), num_retries=2)
    with pytest.raises(InputError, match=r"no answer after 2 retries .*goes on with the answers") as caught:
        judge.ask("p", "c")
    assert "\n" not in str(caught.value)
    assert len(waits) == 2


def test_a_refusal_of_the_server_is_not_asked_again_and_shows_no_key(monkeypatch):
    monkeypatch.setenv("SLAM_JUDGE_API_KEY", "sk-secret")
    body = json.dumps({"error": {"message": "bad key sk-secret"}}).encode()
    server = Server(busy(401, body=body))
    judge, waits = judge_of(server)
    with pytest.raises(InputError, match=r"HTTP 401.*SLAM_JUDGE_API_KEY") as caught:
        judge.ask("p", "c")
    assert "sk-secret" not in str(caught.value)
    assert server.asked[0].get_header("Authorization") == "Bearer sk-secret"
    assert not waits


@pytest.mark.parametrize("answer", [b"<html>", {"choices": []}, {"nothing": 1}, [1]])
def test_an_answer_that_is_none_is_one_line(answer):
    judge, _ = judge_of(Server(answer))
    with pytest.raises(InputError, match="is this the right url"):
        judge.ask("p", "c")


def test_costs_are_known_where_prices_are():
    assert JudgeConfig(model="m").cost(10, 10) is None
    assert JudgeConfig(model="m", input_price=2.0, output_price=8.0).cost(500_000, 250_000) == 3.0


def test_a_question_without_a_place_for_a_text_is_refused(tmp_path):
    (tmp_path / "q.txt").write_text("Rate {prompt}")
    with pytest.raises(InputError, match=r"holds \{continuation\}"):
        Judge.of(JudgeConfig(model="m"), tmp_path / "q.txt")


@pytest.mark.parametrize(
    "changes",
    [{"num_requests": 0}, {"temperature": -1.0}, {"url": "ftp://x"}, {"url": "https://user:pw@x/v1"}],
)
def test_settings_that_cannot_be_meant_are_refused(changes):
    with pytest.raises(ConfigError):
        JudgeConfig(model="m", **changes)
