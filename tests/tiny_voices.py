# ruff: noqa: RUF001 - the signs of the phonetic alphabet
"""Stand-ins for voices that are too large for tests: random weights, saved as published ones are.

`stand_in_packages` does the same for the package `kokoro`: as much of it as `slam.synthesizers` touches.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

VOICES = ("af_heart", "bm_george")
_MARKS = ' .,;:!?—…"()“”'
_SPANS = "abcdefghijklmnopqrstuvwxyzæðŋɐɑɒɔəɚɛɜɡɪɫɹɾʃʊʌʒʔˈˌːθᵊᵻʤʧAIOQTWY"
KOKORO_CONFIG: dict[str, Any] = {
    "istftnet": {
        "upsample_kernel_sizes": [20, 12],
        "upsample_rates": [10, 6],
        "gen_istft_hop_size": 5,
        "gen_istft_n_fft": 20,
        "resblock_dilation_sizes": [[1, 3, 5]],
        "resblock_kernel_sizes": [3],
        "upsample_initial_channel": 512,
    },
    "dim_in": 512,
    "dropout": 0.2,
    "hidden_dim": 512,
    "max_dur": 8,
    "n_layer": 1,
    "n_mels": 80,
    "n_token": len(_MARKS + _SPANS) + 1,
    "style_dim": 128,
    "text_encoder_kernel_size": 5,
    "plbert": {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 512,
        "num_hidden_layers": 1,
    },
    "vocab": {symbol: number for number, symbol in enumerate(_MARKS + _SPANS, 1)},
}


def save_kokoro(folder: Path, model: Any) -> Path:
    """A model's folder as published: config, weights under `module.` and voices, two of them English."""
    (folder / "voices").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(KOKORO_CONFIG))
    parts = {
        name: {f"module.{key}": weights.half() for key, weights in part.state_dict().items()}
        for name, part in model.named_children()
    }
    torch.save(parts, folder / "kokoro-v1_0.pth")
    for number, voice in enumerate((*VOICES, "jf_alpha")):
        style = torch.randn(510, 1, 256, generator=torch.Generator().manual_seed(number))
        torch.save(style, folder / "voices" / f"{voice}.pt")
    return folder


class KModel(torch.nn.Module):
    """A tone and noise for each phoneme, as long as its style and speed say."""

    def __init__(self, *, repo_id: str, config: dict[str, Any], model: str | None = None) -> None:  # noqa: ARG002
        super().__init__()
        self.vocab = config["vocab"]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.bert = torch.nn.Embedding(config["n_token"], 4)
            for name in ("bert_encoder", "predictor", "text_encoder", "decoder"):
                setattr(self, name, torch.nn.Linear(4, 4))
        for name, weights in torch.load(model, weights_only=True).items() if model else ():
            stripped = {key.removeprefix("module."): value for key, value in weights.items()}
            getattr(self, name).load_state_dict(stripped, strict=False)

    def speak(self, phonemes: str, style: torch.Tensor, speed: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples `[600 · frames]`, and the frames of each phoneme between two silences of 15 and 20."""
        known = [self.vocab[phoneme] for phoneme in phonemes if phoneme in self.vocab]
        ids = torch.tensor(known, dtype=torch.long)
        assert len(ids) <= 510
        said = 4 + 4 * torch.sigmoid(self.bert(ids).sum(dim=1) + style[0, 0])
        durations = torch.tensor([15, *torch.round(said / speed).long().clamp(min=1).tolist(), 20])
        sounding = torch.where(ids == self.vocab[" "], 0, 10.0 + ids)
        pitches = torch.cat([torch.zeros(1), sounding, torch.zeros(1)]).repeat_interleave(durations * 600)
        wave = 0.3 * torch.sin(torch.cumsum(pitches, 0) * math.pi / 600) * (pitches > 0)
        return wave + 0.001 * torch.randn(len(wave)), durations


@dataclass
class Token:
    """As misaki has it."""

    text: str
    whitespace: str
    phonemes: str | None


@dataclass
class KPipeline:
    """Letters are phonemes; pieces of at most 510."""

    lang_code: str
    repo_id: str
    model: KModel
    g2p: Any = field(default_factory=lambda: SimpleNamespace(fallback=print))

    def __call__(
        self, text: str, *, voice: torch.Tensor, speed: float, split_pattern: None
    ) -> Iterator[SimpleNamespace]:
        assert split_pattern is None
        assert "](" not in text  # misaki would take it for a command
        pieces: list[list[Token]] = [[]]
        for match in re.finditer(r"([\w']+|[^\w\s])(\s?)", text):
            token = Token(match[1], match[2], match[1].lower())
            if sum(len(each.phonemes + each.whitespace) for each in [*pieces[-1], token]) > 510:
                pieces.append([])
            pieces[-1].append(token)
        for tokens in pieces:
            phonemes = "".join(token.phonemes + token.whitespace for token in tokens).strip()
            audio, durations = self.model.speak(phonemes[:510], voice[len(phonemes[:510]) - 1], speed)
            yield SimpleNamespace(audio=audio, pred_dur=durations, tokens=tokens)


def stand_in_packages() -> dict[str, ModuleType]:
    """Names and modules to be found in place of `kokoro` and of the spaCy that it reads with."""
    kokoro, spacy = ModuleType("kokoro"), ModuleType("spacy")
    kokoro.KModel, kokoro.KPipeline = KModel, KPipeline
    spacy.util = SimpleNamespace(is_package=lambda name: name == "en_core_web_sm")
    return {"kokoro": kokoro, "spacy": spacy}


# one frame for padding, two and more for a sign, as many more as `length` says; spaces are silent; with noise
PIPER_GRAPH = """
<ir_version: 8, opset_import: ["": 15]>
voice (int64[1, T] input, int64[1] input_lengths, float[3] scales SID_INPUT) => (float[1, 1, S] output)
{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    two = Constant <value_int = 2> ()
    three = Constant <value_int = 3> ()
    axis = Constant <value_ints = [0]> ()
    column = Constant <value_ints = [1]> ()
    noise_scale = Gather (scales, zero)
    length_scale = Gather (scales, one)
    width_scale = Gather (scales, two)
    ids = Squeeze (input, axis)
    five = Constant <value_int = 5> ()
    rest = Mod (ids, five)
    rest_plus = Add (rest, two)
    is_pad = Equal (ids, zero)
    frames_exact = Where (is_pad, one, rest_plus)
    frames_float = Cast <to = 1> (frames_exact)
    wide = RandomNormalLike (frames_float)
    wide_size = Abs (wide)
    wide_scaled = Mul (wide_size, width_scale)
    frames_noisy = Add (frames_float, wide_scaled)
    frames_scaled = Mul (frames_noisy, length_scale)
    durations = DURATION (frames_scaled)
    counts = Cast <to = 7> (durations)
    ends = CumSum (counts, zero)
    total = ReduceSum <keepdims = 0> (counts)
    frame = Range (zero, total, one)
    frame_column = Unsqueeze (frame, column)
    behind = GreaterOrEqual (frame_column, ends)
    behind_int = Cast <to = 7> (behind)
    which = ReduceSum <keepdims = 0> (behind_int, column)
    said = Gather (ids, which)
    pitch = Cast <to = 1> (said)
    SPEAKER
    step = Constant <value_float = 0.01> ()
    angle = Mul (voiced, step)
    ramp_end = Constant <value_float = 256.0> ()
    ramp_start = Constant <value_float = 0.0> ()
    ramp_step = Constant <value_float = 1.0> ()
    ramp = Range (ramp_start, ramp_end, ramp_step)
    angle_column = Unsqueeze (angle, column)
    phase = Mul (angle_column, ramp)
    wave = Sin (phase)
    is_space = Equal (said, three)
    silent = Constant <value_float = 0.0> ()
    loud = Constant <value_float = 0.5> ()
    gain = Where (is_space, silent, loud)
    gain_column = Unsqueeze (gain, column)
    tone = Mul (wave, gain_column)
    hiss = RandomNormalLike (tone)
    hiss_small = Constant <value_float = 0.01> ()
    hiss_scaled = Mul (hiss, hiss_small)
    hiss_wanted = Mul (hiss_scaled, noise_scale)
    sound = Add (tone, hiss_wanted)
    shape = Constant <value_ints = [1, 1, -1]> ()
    output = Reshape (sound, shape)
}
"""
_ALONE = """
    base = Constant <value_float = 20.0> ()
    voiced = Add (pitch, base)
"""
_OF_MANY = """
    base = Constant <value_float = 20.0> ()
    pitched = Add (pitch, base)
    sid_float = Cast <to = 1> (sid)
    higher = Constant <value_float = 40.0> ()
    raised = Mul (sid_float, higher)
    voiced = Add (pitched, raised)
"""


def save_piper(
    folder: Path,
    name: str = "en_US-tiny",
    *,
    speakers: dict[str, int] | None = None,
    rounding: str = "Ceil",
    **changes: Any,
) -> Path:
    """A voice's ONNX file and config as published; `changes` to the config."""
    import onnx
    from piper.phoneme_ids import DEFAULT_PHONEME_ID_MAP

    text = PIPER_GRAPH.replace("DURATION", rounding)
    text = text.replace("SID_INPUT", ", int64[1] sid" if speakers else "")
    model = onnx.parser.parse_model(text.replace("SPEAKER", _OF_MANY if speakers else _ALONE))
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / f"{name}.onnx")
    config = {
        "audio": {"sample_rate": 22_050, "quality": "tiny"},
        "espeak": {"voice": "en-us"},
        "phoneme_type": "espeak",
        "inference": {"noise_scale": 0.667, "length_scale": 1, "noise_w": 0.8},
        "phoneme_id_map": DEFAULT_PHONEME_ID_MAP,
        "num_symbols": 256,
        "num_speakers": len(speakers or {}) or 1,
        "speaker_id_map": speakers or {},
    }
    (folder / f"{name}.onnx.json").write_text(json.dumps(config | changes))
    return folder
