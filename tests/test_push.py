import os
import subprocess
import sys

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from foreign_checkpoints import NUM_UNITS, stock, write_slamkit
from hub_stand_in import COMMIT, TOKEN, running_hub
from slam.errors import ConfigError, InputError
from slam.export import ExportConfig, export
from slam.model import SpeechLM
from slam.model_card import CardFacts
from slam.push import push
from slam.run import read_json, write_json
from slam.units import Vocabulary


@pytest.fixture
def hub(socket_enabled):  # noqa: ARG001 - pytest-socket's: this test may speak to 127.0.0.1
    with running_hub() as running:
        yield running


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "lm"
    SpeechLM(stock("qwen2"), Vocabulary(NUM_UNITS), "toy", "0123").save(folder)
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "model.safetensors").write_bytes(b"not to be sent")
    return folder


def slam(*words, endpoint, home, token=TOKEN):
    """The command in a process of its own, for the hub's place is read when its library is loaded."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DOWNLOAD_TIMEOUT": "5", "HF_HUB_ETAG_TIMEOUT": "5"}
    if token is not None:
        environment["HF_TOKEN"] = token
    command = [sys.executable, "-m", "slam", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_a_model_goes_to_the_hub_with_its_card_and_nothing_else(hub, model, tmp_path):
    told = slam(
        *("push", model, "--repo", "me/toy", "--private", "--licence", "mit"),
        endpoint=hub.url,
        home=tmp_path / "home",
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == f"{hub.url}/me/toy/commit/{COMMIT}"
    files = hub.repos["me/toy"]
    assert set(files) == {
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("slam.json", "tokenizer.json", "tokenizer_config.json"),
    }
    assert files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"
    assert "# toy\n" in card
    assert hub.private["me/toy"] is True
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not kept, "the token was written down"
    again = slam("push", model, "--repo", "me/toy", endpoint=hub.url, home=tmp_path / "home")
    assert again.returncode == 0, again.stderr


def test_an_exported_folder_brings_its_card(hub, model, tmp_path):
    export(ExportConfig(model=model, to="gguf", title="Named there"), tmp_path / "out")
    told = slam("push", tmp_path / "out", "--repo", "me/toy", endpoint=hub.url, home=tmp_path / "home")
    assert told.returncode == 0, told.stderr
    assert b"# Named there" in hub.repos["me/toy"]["README.md"]
    assert "model.gguf" in hub.repos["me/toy"]
    assert "run.json" not in hub.repos["me/toy"]
    with pytest.raises(ConfigError, match=r"README\.md is there; give scores, licence … to slam export"):
        push(tmp_path / "out", "me/toy", facts=CardFacts(title="x", licence="mit"))


@pytest.mark.parametrize("answer", ["HTTP 401, wrong token", "HTTP 401, no token", "HTTP 500"])
def test_a_hub_that_refuses_is_one_line(hub, model, tmp_path, answer):
    hub.refuses = 500 if answer == "HTTP 500" else None
    token = {"HTTP 401, wrong token": "hf_wrong", "HTTP 401, no token": None}.get(answer, TOKEN)
    told = slam("push", model, "--repo", "me/toy", endpoint=hub.url, home=tmp_path / "home", token=token)
    assert (told.returncode, told.stdout) == (2, "")
    said = told.stderr.strip()
    assert said.startswith(f"error: me/toy: the hub answers {answer[:8]}")
    assert ("is HF_TOKEN set" in said) == answer.startswith("HTTP 401")
    assert "\n" not in said
    assert str(token) not in said


def test_a_card_that_the_hub_does_not_take_is_one_line(hub, model, tmp_path):
    words = ("push", model, "--repo", "me/toy", "--licence", "nonsense")
    told = slam(*words, endpoint=hub.url, home=tmp_path / "home")
    assert told.returncode == 2
    assert told.stderr.startswith("error: me/toy: the hub does not take what is sent (")
    assert "no such license" in told.stderr
    assert hub.repos["me/toy"] == {}


def test_a_hub_that_is_not_there_is_one_line(tmp_path):
    words = ["--tokenizer", "t", "--num-units", NUM_UNITS, "--frame-rate", 25, "--out", tmp_path / "out"]
    told = slam(
        *("import", "--hub-model", "me/toy", *words), endpoint="http://127.0.0.1:9", home=tmp_path / "home"
    )
    assert told.returncode == 2
    assert told.stderr.startswith("error: me/toy: the hub cannot be reached")
    assert told.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", ["ConnectError", "OfflineModeIsEnabled"])
def test_no_network_while_sending_is_one_line(model, monkeypatch, error):
    import httpx2
    from huggingface_hub import HfApi, errors

    def cut_off(*_, **__):
        raise (httpx2.ConnectError("refused") if error == "ConnectError" else errors.OfflineModeIsEnabled())

    monkeypatch.setattr(HfApi, "create_repo", cut_off)
    with pytest.raises(InputError, match="me/toy: the hub cannot be reached"):
        push(model, "me/toy")


def test_a_model_is_imported_from_the_hub_its_code_left_there(hub, tmp_path):
    original = stock("qwen2")
    folder = write_slamkit(tmp_path / "theirs", original, auto_map={"AutoModel": "evil.Evil"})
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repos["slprl/slam"] = files | {"evil.py": b"raise SystemExit(7)", "pytorch_model.bin": b"pickle"}
    words = ["--tokenizer", "mhubert-25hz", "--num-units", NUM_UNITS, "--frame-rate", 25]
    told = slam(
        *("import", "--hub-model", "slprl/slam", *words, "--out", tmp_path / "ours"),
        endpoint=hub.url,
        home=tmp_path / "home",
    )
    assert told.returncode == 0, told.stderr
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    ids = torch.tensor([[1, 5, 19]])
    assert torch.equal(ours(ids).logits, original(ids).logits)
    results = read_json(tmp_path / "ours" / "run.json")["results"]
    assert (results["commit"], results["not_run"]) == (COMMIT, ["auto_map"])
    fetched = {path.rpartition("/")[2] for _, path, _ in hub.seen}
    assert not fetched & {"evil.py", "pytorch_model.bin"}
    none = slam(
        *("import", "--hub-model", "slprl/none", *words, "--out", tmp_path / "none"),
        endpoint=hub.url,
        home=tmp_path / "home",
    )
    assert none.returncode == 2
    assert "error: slprl/none: the hub has no such model" in none.stderr


def test_what_is_no_finished_speech_lm_is_refused(model, tmp_path):
    with pytest.raises(InputError, match="holds no speech language model"):
        push(tmp_path, "me/toy")
    write_json(model / "started.json", {"stage": "pretrain"})
    with pytest.raises(InputError, match="has not finished"):
        push(model, "me/toy")
    write_json(model / "slam.json", read_json(model / "slam.json") | {"tokenizer": "text-words"})
    with pytest.raises(InputError, match="language model of text"):
        push(model, "me/toy")


def test_a_name_that_the_hub_could_not_have_is_one_line(model):
    with pytest.raises(InputError, match="is no name on the hub, owner/name") as caught:
        push(model, "a/b/c d")
    assert "\n" not in str(caught.value)
