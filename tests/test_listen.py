"""The page as a listener uses it, in a real browser; and what is said of bad sound, without one."""

import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
import torch

import slam
import toy_language
from browser import chromium
from conftest import sound, write_recordings
from slam.audio import write_audio
from slam.cli import main
from slam.errors import ConfigError, InputError, MismatchError
from slam.listen import ListenConfig
from slam.listening import Examples, Limits, check_prompt, continue_prompt, digest, spoken_examples, warm_up
from slam.listening_views import figures, find_likelihoods, likelihood_plot, units_line
from slam.tokenizers.logmel_kmeans import LogMelKMeans
from tiny_vocoders import SPEAKS_25_HZ, save_vocoder
from toy_recipe import ENVIRONMENT

LIMITS = Limits(seconds=5.0, num_bytes=2_000_000)
# `slam` in a process that may reach this machine alone
LOCAL_SLAM = """
import sys
from pytest_socket import socket_allow_hosts
from slam.cli import main
socket_allow_hosts(["127.0.0.1"])
main(sys.argv[1:])
"""


def write_lm(folder, context):
    """A model that never ends by itself: what all units share and nothing else has makes them likely."""
    lm = toy_language.new_toy_lm(context=context)
    with torch.no_grad():
        lm.get_input_embeddings().weight[toy_language.VOCABULARY.offset :] += 1
    return toy_language.write_lm(folder, lm)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, its tokenizer and recordings."""
    root = tmp_path_factory.mktemp("listen")
    write_lm(root / "lm", context=256)
    toy_language.tokenizer().save(root / "tokenizer")
    write_recordings(root / "recordings", 5)
    return root


@pytest.fixture(scope="module")
def slm(folder):
    return slam.load(folder / "lm", tokenizer=folder / "tokenizer")


@pytest.fixture(scope="module")
def forgetful(folder):
    """The same, of 40 tokens' context."""
    return slam.load(write_lm(folder / "forgetful", context=40), tokenizer=folder / "tokenizer")


def continued(slm, path, *, examples=None, **changes):
    settings = {"max_new_units": 8, "sampling": slam.Sampling(), "seed": 3} | changes
    return list(continue_prompt(slm, path, limits=LIMITS, examples=examples or Examples(), **settings))


def written(path, samples, rate=16_000, **how):
    soundfile.write(path, samples, rate, **how)
    return path


def test_a_continuation_is_that_of_the_python_api_and_grows_chunk_by_chunk(slm, tmp_path):
    path = written(tmp_path / "said.wav", sound(1.5, 1).samples)
    moments = continued(slm, path, max_new_units=40)
    whole = slm.continue_speech(path, max_new_units=40, seed=3)
    assert moments[-1].sound.seconds == whole.seconds
    prompt = slm.encode(path)
    assert moments[0].prompt.ids.tolist() == prompt.ids.tolist()
    assert [len(moment.chunks) for moment in moments] == [*range(len(moments) - 1), len(moments) - 2]
    assert len(moments) >= 4
    assert [moment.ended for moment in moments[:-1]] == [None] * (len(moments) - 1)
    assert moments[-1].seconds_to_first_sound > 0


def test_asking_for_more_than_the_context_holds_gives_what_it_holds(forgetful, tmp_path):
    path = written(tmp_path / "said.wav", sound(1.5, 1).samples)
    last = continued(forgetful, path, max_new_units=100)[-1]
    assert len(last.ids) == last.room == 40 - 1 - len(last.prompt)
    assert continued(forgetful, path, max_new_units=5)[-1].room is None


def test_a_prompt_that_fills_the_context_is_one_line(forgetful, tmp_path):
    path = written(tmp_path / "said.wav", sound(1.5, 1).samples)
    long = slam.Units(np.arange(39, dtype=np.uint16) % 12, None, toy_language.FRAME_RATE)
    with pytest.raises(InputError, match="is 39 units long and leaves no room in the model's context of 40 "):
        continued(forgetful, path, examples=Examples(units={digest(path): long}))


def cut(path):
    written(path, sound(1.0, 0).samples)
    path.write_bytes(path.read_bytes()[:9000])


BAD_PROMPTS = {
    "silence.wav": (lambda path: written(path, np.zeros(16_000)), "is silent; "),
    "hum.wav": (lambda path: written(path, sound(1.0, 0).samples * 1e-3), "is silent; "),
    "three-hours.flac": (
        lambda path: written(path, np.zeros(3 * 3600 * 8000, np.int16), 8000),
        "lasts 10,800 s, more than the 5 s ",
    ),
    "big.wav": (lambda path: written(path, np.ones((199_000, 6))), "is larger than 2 MB; "),
    "text.mp3": (lambda path: path.write_bytes(b"this is no sound" * 100), "unreadable "),
    "empty.wav": (lambda path: path.write_bytes(b""), "unreadable "),
    "cut.wav": (cut, "is cut short; "),
    "gone.wav": (lambda _: None, "no such file"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_what_is_said_of_a_bad_prompt(name, tmp_path):
    make, expected = BAD_PROMPTS[name]
    make(tmp_path / name)
    with pytest.raises(InputError) as caught:
        check_prompt(tmp_path / name, LIMITS)
    said = str(caught.value)
    assert said.startswith(f"{name}: {expected}")
    assert "\n" not in said
    assert str(tmp_path) not in said


def test_no_prompt_is_one_line(slm):
    with pytest.raises(InputError, match=r"^no prompt yet; record or upload some speech"):
        continued(slm, None)


def test_a_prompt_shorter_than_a_frame_is_one_line(slm, tmp_path):
    path = written(tmp_path / "short.wav", sound(0.5, 0).samples[:300])
    with pytest.raises(InputError, match=r"^short.wav: lasts 0.019 s, less than a frame of 0.04 s$"):
        continued(slm, path)


def test_sound_of_six_channels_at_48_khz_is_heard_as_their_mean(slm, tmp_path):
    mono = sound(1.0, 4, rate=48_000).samples
    channels = np.stack([mono * weight for weight in (0.5, 1.5, 1.0, 0.2, 1.8, 1.0)], axis=1)
    many = continued(slm, written(tmp_path / "many.wav", channels, 48_000, subtype="FLOAT"))
    one = continued(slm, written(tmp_path / "one.wav", mono, 48_000, subtype="FLOAT"))
    assert many[-1].ids.tolist() == one[-1].ids.tolist()


def test_examples_are_spread_over_a_folder_and_cut(slm, tmp_path):
    for number in range(9):
        write_audio(tmp_path / "some" / f"{number}.flac", sound(1.0 + number, number))
    (tmp_path / "some" / "4.flac").write_bytes(b"broken")
    found = spoken_examples(tmp_path / "some", slm, tmp_path, limits=LIMITS, most=3)
    assert list(found.sounds) == ["0.flac", "8.flac"]
    assert [soundfile.info(path).duration for path in found.sounds.values()] == [1.0, 5.0]
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith("4.flac: ")


def test_units_as_examples_are_continued_as_they_were_encoded(slm, tmp_path):
    said = {f"said-{start}": toy_language.count(start, 1, 20).tolist() for start in range(3)}
    units = toy_language.write_units(tmp_path / "units", said)
    found = spoken_examples(units, slm, tmp_path, limits=LIMITS, most=8)
    assert list(found.sounds) == list(said)
    for name, path in found.sounds.items():
        last = continued(slm, path, examples=found)[-1]
        assert last.prompt.ids.tolist() == said[name]
        copied = tmp_path / "copied.wav"  # as a browser would send it back
        copied.write_bytes(path.read_bytes())
        assert continued(slm, copied, examples=found)[-1].ids.tolist() == last.ids.tolist()


def test_units_of_another_tokenizer_are_no_examples(slm, tmp_path):
    units = toy_language.write_units(tmp_path / "units", {"one": [1, 2]}, fingerprint="f" * 16)
    with pytest.raises(MismatchError, match="encode with the model's tokenizer"):
        spoken_examples(units, slm, tmp_path, limits=LIMITS, most=8)


def test_likelihoods_are_those_of_the_model_over_prompt_and_continuation(slm, tmp_path):
    path = written(tmp_path / "said.wav", sound(1.5, 1).samples)
    last = continued(slm, path)[-1]
    found = find_likelihoods(slm, last)
    begin = len(last.prompt)
    expected = slm.log_likelihoods(path)
    assert found.values[:begin] == pytest.approx(expected.values, abs=1e-4)
    assert found.starts[:begin] == pytest.approx(expected.starts)
    assert found.ids.tolist() == [*last.prompt.ids.tolist(), *last.ids.tolist()]
    assert found.ends[-1] - found.starts[begin] == pytest.approx(last.sound.seconds)


def test_units_and_figures_are_shown(slm, tmp_path):
    path = written(tmp_path / "said.wav", sound(1.5, 1).samples)
    last = continued(slm, path)[-1]
    line = units_line(last)
    prompt, rest = (re.findall(r"<span>(\d+)</span>", half) for half in line.split("slam-continuation"))
    assert [list(map(int, half)) for half in (prompt, rest)] == [last.prompt.ids.tolist(), last.ids.tolist()]
    found = find_likelihoods(slm, last)
    tiles = figures(last, found)
    for words in (
        "to the first sound",
        "real-time factor",
        f"{len(last.ids)} units",
        f"{last.sound.seconds:.1f} s",
    ):
        assert words in tiles
    mean = f"{found.values[len(last.prompt) :].mean():.2f}".replace("-", "\N{MINUS SIGN}")
    assert f"<b>{mean}</b><span>nats a unit</span>" in tiles
    assert "<svg" in likelihood_plot(found, len(last.prompt), 12)


def test_a_model_that_ends_at_once_is_shown_as_such(slm, tmp_path, monkeypatch):
    monkeypatch.setattr("slam.listening.stream_units", lambda *_, **__: iter(()))
    path = written(tmp_path / "said.wav", sound(1.5, 1).samples)
    last = continued(slm, path)[-1]
    assert (last.ended, len(last.ids), last.chunks) == (True, 0, ())
    found = find_likelihoods(slm, last)
    assert len(found.values) == len(last.prompt)
    assert "nats a unit" not in figures(last, found)
    assert "<svg" in likelihood_plot(found, len(last.prompt), 12)


def test_a_model_is_warmed_up(slm):
    warm_up(slm)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_examples", 0),
        ("max_new_units", 0),
        ("max_upload_bytes", 0),
        ("max_prompt_seconds", 61.0),
        ("max_prompt_seconds", 0.0),
        ("port", 70_000),
    ],
)
def test_settings_that_cannot_be_meant(setting, value):
    with pytest.raises(ConfigError, match=rf"^{setting} = {value}: must be "):
        ListenConfig(tokenizer_from=Path(), **{setting: value})


def refused(capsys, *words):
    """The one line of a command that ends at once."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["listen", *map(str, words), "--port", "0"])
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.enable_socket
def test_what_does_not_belong_together_is_one_line(capsys, folder, tmp_path):
    other = LogMelKMeans.fit([sound(2.0, 0)], num_units=toy_language.NUM_UNITS, seed=0)
    other.save(tmp_path / "other")
    lm, tokenizer = folder / "lm", ("--tokenizer-from", folder / "tokenizer")
    assert "the model speaks" in refused(capsys, lm, "--tokenizer-from", tmp_path / "other")
    vocoder = save_vocoder(tmp_path / "vocoder", SPEAKS_25_HZ | {"num_embeddings": 7})
    said = refused(capsys, lm, *tokenizer, "--vocoder", "unit-hifigan", "--vocoder-from", vocoder)
    assert "7" in said
    assert "no vocoder is called 'grifin'" in refused(capsys, lm, *tokenizer, "--vocoder", "grifin")
    assert "slam.json is missing" in refused(capsys, folder / "recordings", *tokenizer)
    assert "no such folder" in refused(capsys, lm, *tokenizer, "--examples", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "holds no recordings" in refused(capsys, lm, *tokenizer, "--examples", tmp_path / "empty")
    assert "--tokenizer-from" in refused(capsys, lm)


@pytest.mark.enable_socket
def test_an_address_that_cannot_be_had_is_one_line(capsys, folder):
    words = ["listen", str(folder / "lm"), "--tokenizer-from", str(folder / "tokenizer")]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as caught:
            main([*words, "--port", port])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: port {port} of 127.0.0.1 cannot be listened at (")
    assert said.endswith("; give another --port or --host\n")
    assert said.count("\n") == 1


def test_a_missing_extra_is_one_line(capsys, folder, monkeypatch):
    monkeypatch.setattr("slam.listen.find_spec", lambda _: None)
    said = refused(capsys, folder / "lm", "--tokenizer-from", folder / "tokenizer")
    assert "pip install 'slam[listen]'" in said


def test_the_command_line_knows_the_page_without_its_library():
    code = "import sys, slam.cli; assert not {'gradio', 'torch', 'uvicorn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@contextmanager
def served(kept, *words):
    """The address of a page and its process, which keeps what it must in the folder `kept`."""
    kept.mkdir()
    # Gradio leaves an event loop behind, and speaks to pandas in ways that are about to go
    known = (
        "unclosed event loop:ResourceWarning",
        "'future.no_silent_downcasting':DeprecationWarning",
        "The copy keyword is deprecated:DeprecationWarning",
    )
    warned = ["-W", "error", *(word for one in known for word in ("-W", f"ignore:{one}"))]
    with subprocess.Popen(
        [sys.executable, *warned, "-c", LOCAL_SLAM, "listen", *map(str, words), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"TMPDIR": str(kept)},
    ) as process:
        address = process.stdout.readline().strip()
        try:
            assert address, process.stderr.read()
            yield address, process
        finally:
            process.kill()


def test_a_listener_hears_a_continuation_in_a_browser(folder, tmp_path):
    """From upload to sound; and nobody else hears of it."""
    pytest.importorskip("gradio")
    said = written(tmp_path / "said.wav", sound(1.5, 1).samples)
    text = tmp_path / "text.wav"
    text.write_bytes(b"this is no sound" * 100)
    words = ("--max-prompt-seconds", 7, "--max-upload-bytes", 500_000, "--max-new-units", 48)
    words = (
        *words,
        folder / "lm",
        "--tokenizer-from",
        folder / "tokenizer",
        "--examples",
        folder / "recordings",
    )
    with (
        chromium(tmp_path / "profile") as page,
        served(tmp_path / "kept", *words) as (address, process),
    ):
        page.open(address, 1280, 1000)
        page.wait("document.querySelector('#go') != null")
        assert "At most 7 seconds and 0.5 MB" in page.evaluate("document.querySelector('#note').innerText")

        page.click("#go")  # without a prompt
        page.wait("document.querySelector('#line .slam-wrong')?.innerText.startsWith('no prompt yet')")

        page.upload("#prompt input[type=file]", said)
        page.wait("document.querySelector('#note').innerText == '1.5 s of sound.'")
        page.click("#go")
        page.wait("document.querySelector('#plot svg') != null && !window.slamPlayer.playing")
        heard = page.evaluate("window.slamPlayer")
        units = page.evaluate("document.querySelectorAll('.slam-continuation span').length")
        figures = page.evaluate("document.querySelector('#figures').innerText")
        seconds = page.wait(
            """(async () => {
                const link = document.querySelector('#whole a[download]');
                const bytes = link && await (await fetch(link.href)).arrayBuffer();
                return bytes && (await new AudioContext().decodeAudioData(bytes)).duration;
            })()"""
        )
        assert heard["chunks"] >= 2
        assert heard["seconds"] == pytest.approx(seconds, abs=1e-3)
        assert units == 48
        assert f"{units} units" in figures
        assert f"{seconds:.1f} s" in figures
        assert "real-time factor" in figures
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.screenshot().startswith(b"\x89PNG")
        # Gradio says so when a stream of events ends
        ends = [one for one in page.complaints if "Method not implemented" not in str(one)]
        assert ends == []
        assert {urlsplit(url).hostname for url in page.requests if url.startswith("http")} == {"127.0.0.1"}
        assert all(url.startswith(("http", "data:", "blob:")) for url in page.requests)

        page.open(address, 390, 1500)
        page.upload("#prompt input[type=file]", text)
        page.wait("document.querySelector('#note .slam-wrong')?.innerText.startsWith('text.wav: unreadable')")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

        assert list((tmp_path / "kept").rglob("said.wav"))
        process.send_signal(signal.SIGINT)
        _, ending = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in ending
        assert not list((tmp_path / "kept").rglob("*.wav"))
