"""Units spoken by a vocoder fitted in minutes, against Griffin-Lim: held-out speech, log-mel and unit errors.

Beside them stand two controls: copy-synthesis (the recording's own spectra through the fitted networks), and
the fitted spectra made into sound by a search for phases instead of the fitted network. The gate: held-out
recordings were not fitted on, and the fitted vocoder is better than Griffin-Lim in both measures.

`--audio` is a folder of recordings; units are fitted on it first. `ours` and `baseline` are unit error rates.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import finish

from slam.audio import Audio, read_audio
from slam.encode import EncodeConfig, encode
from slam.fit_vocoder import FitVocoderConfig, fit_vocoder
from slam.metrics.resynthesis import log_mel_distance, unit_errors
from slam.recordings import find_recordings
from slam.tokenizers import load_tokenizer
from slam.tokenizers.logmel_kmeans import mel_filters
from slam.units import read_units
from slam.vocoders.mel_networks import WINDOW
from slam.vocoders.unit_mel import UnitMel, places, within_full_scale

ROUNDS = 32


def searched(log_mels: torch.Tensor, hop: int) -> np.ndarray:
    """Log-mel `[M + 1, 80]` → samples: fast Griffin-Lim whose magnitudes are free within the bands."""
    filters = torch.from_numpy(mel_filters(WINDOW))  # [513, 80]
    share = (filters / filters.sum(dim=1, keepdim=True).clamp_min(1e-8)).T
    wanted, window = log_mels.exp(), torch.hann_window(WINDOW)

    def scaled(spectrum: torch.Tensor) -> torch.Tensor:
        bands = spectrum.abs().square().T @ filters
        return spectrum * ((wanted / bands.clamp_min(1e-8)) @ share).clamp(1e-4, 1e4).sqrt().T

    def sound(spectrum: torch.Tensor) -> torch.Tensor:
        return torch.istft(spectrum, WINDOW, hop, window=window, length=(len(log_mels) - 1) * hop)

    angles = (
        2 * np.pi * torch.rand(WINDOW // 2 + 1, len(log_mels), generator=torch.Generator().manual_seed(0))
    )
    spectrum = scaled(torch.polar(torch.ones_like(angles), angles))
    before = torch.zeros_like(spectrum)
    for _ in range(ROUNDS):
        after = torch.stft(
            sound(spectrum), WINDOW, hop, window=window, pad_mode="constant", return_complex=True
        )
        spectrum, before = scaled(after + 0.99 * (after - before)), after
    return within_full_scale(sound(spectrum).numpy())


def control(vocoder: UnitMel, config: FitVocoderConfig, held_out: list[str]) -> dict[str, float]:
    """Both measures of the fitted spectra with searched phases."""
    units = read_units(config.units)
    tokenizer = load_tokenizer(units.tokenizer_folder)
    paths = {recording.id: recording.path for recording in find_recordings(config.audio)}
    distances, errors, total = [], 0, 0
    for name in held_out:
        one = units.by_name()[name]
        networks = vocoder.networks
        with torch.inference_mode():
            ids = torch.from_numpy(one.expand().astype(np.int64))[None]
            spectra = networks.to_mel(ids, torch.from_numpy(places(one.known_durations))[None])[0]
            audio = Audio(searched(spectra * networks.scale + networks.mean, vocoder.about.hop), 16_000)
        distances.append(log_mel_distance(audio, read_audio(paths[name], 16_000)))
        errors += unit_errors(tokenizer, audio, one)
        total += len(one)
    return {
        "log_mel_distance": round(float(np.mean(distances)), 3),
        "unit_error_rate": round(errors / total, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audio", type=Path, required=True, help="a folder of recordings")
    parser.add_argument("--work", type=Path, required=True, help="where units and the vocoder are kept")
    parser.add_argument("--budget", default="1000 steps")
    parser.add_argument("--quick", action="store_true", help="60 steps: a look, no result")
    parser.add_argument("--json", type=Path, help="write the record here")
    options = parser.parse_args()
    encode(EncodeConfig(audio=options.audio, num_workers=1), options.work / "units")
    config = FitVocoderConfig(
        units=options.work / "units",
        audio=options.audio,
        budget="60 steps" if options.quick else options.budget,
    )
    out = options.work / ("quick-voice" if options.quick else "voice")
    run = fit_vocoder(config, out)
    tokenizer = load_tokenizer(config.units / "tokenizer")
    vocoder = UnitMel.for_tokenizer(tokenizer, folder=out)
    found: dict[str, Any] = run.results
    distance, errors = found["log_mel_distance"], found["unit_error_rate"]
    searching = control(vocoder, config, found["held_out"])
    better = [measure["unit-mel"] < measure["griffin-lim"] for measure in (distance, errors)]
    finish(
        "vocoder_quality",
        "unit error rate",
        {
            "ours": errors["unit-mel"],
            "baseline": errors["griffin-lim"],
            "ratio": round(errors["unit-mel"] / errors["griffin-lim"], 3),
            "log_mel_distance_db": distance | {"unit-mel, phases searched": searching["log_mel_distance"]},
            "unit_error_rate": errors | {"unit-mel, phases searched": searching["unit_error_rate"]},
            **{name: found[name] for name in ("length_ratio", "steps", "fitting_seconds", "num_parameters")},
            **{name: found[name] for name in ("num_recordings", "num_held_out", "seconds_of_speech")},
            "config": json.loads(json.dumps(run.config, default=str))["budget"],
        },
        {"passed": all(better), "better_distance": better[0], "fewer_unit_errors": better[1]},
        options.json,
    )


if __name__ == "__main__":
    main()
