"""Seconds of speech encoded a second: slam against the plain way, with HuBERT-base's architecture.

The plain way is the reference toolkit's: recordings read one after another, batches of a fixed count padded
to their longest without a mask, fp32, all twelve layers with every hidden state kept, centroids looked up by
scikit-learn on the CPU, one JSON line a recording. Ours is `slam encode`'s own path over the same files: 11
layers, recordings read ahead or beside each other, one matrix product for the centroids.

Weights are random (of the real sizes), so the speeds are real and the units mean nothing. The gate: ours in
fp32 has the units of each recording alone through transformers. Beside it: the share of frames whose unit
differs in bf16, in padded batches of ours, in windows of a long recording, and in the plain way's.

Recordings: a folder named by SLAM_RECORDINGS, or sounds of random lengths (2 to 16 s).
"""

import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from side_by_side import arguments, finish, interleaved
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from slam.audio import Audio as Sound
from slam.audio import read_audio, write_audio
from slam.devices import best_device
from slam.recordings import Recording, find_recordings
from slam.tokenizers.hubert import Hubert
from slam.tokenizers.speech_features import open_features
from slam.units import Units, write_shard
from slam.utterances import Encoder, windows

LAYER, NUM_UNITS, RATE, PLAIN_BATCH = 11, 500, 16_000, 8
DEVICE = best_device()
ON_CPU = DEVICE.type == "cpu"


def recordings(folder: Path, count: int) -> list[Recording]:
    """The user's, or made ones."""
    if named := os.environ.get("SLAM_RECORDINGS"):
        return find_recordings(Path(named))[:count]
    random = np.random.default_rng(0)
    for number in range(count):
        seconds = random.uniform(2, 16)
        samples = random.normal(0, 0.1, int(seconds * RATE)) * np.sin(np.arange(int(seconds * RATE)) / 3000)
        write_audio(folder / "sounds" / f"{number:04d}.flac", Sound(samples.astype(np.float32), RATE))
    return find_recordings(folder / "sounds")


def tokenizer(folder: Path, audio: list[Recording]) -> Hubert:
    """A model of the published size, with centroids fitted on frames of the recordings."""
    torch.manual_seed(0)
    HubertModel(HubertConfig()).save_pretrained(folder / "model")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder / "model")
    features = open_features(str(folder / "model"), layer=LAYER)
    frames = torch.cat([features(read_audio(each.path, RATE)) for each in audio[:8]]).cpu().numpy()
    kmeans = MiniBatchKMeans(NUM_UNITS, n_init=1, max_iter=10, random_state=0).fit(frames)
    return Hubert(features, np.ascontiguousarray(kmeans.cluster_centers_, dtype=np.float32))


def ours(units: Hubert, audio: list[Recording], out: Path, batch_seconds: float) -> dict[str, Units]:
    """`slam encode`'s path, from files to a shard."""
    with ThreadPoolExecutor(os.cpu_count()) as workers, threadpool_limits(1):
        encoder = Encoder(units, 60.0, None, batch_seconds, workers)
        outcomes = dict(encoder.outcomes(audio))
    utterances = [pair for number in range(len(audio)) for pair in outcomes[number].utterances]
    write_shard(out, 0, [found for _, found in utterances], [row for row, _ in utterances])
    return {row["id"]: found for row, found in utterances}


def plain(
    model: Any, kmeans: MiniBatchKMeans, audio: list[Recording], out: Path
) -> dict[str, npt.NDArray[np.int32]]:
    """The reference's path, from files to JSON lines; units a frame."""
    found = {}
    strides = [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]
    with (out / "plain.jsonl").open("w", encoding="utf-8") as handle:
        for start in range(0, len(audio), PLAIN_BATCH):
            group = audio[start : start + PLAIN_BATCH]
            samples = [torch.from_numpy(read_audio(each.path, RATE).samples) for each in group]
            padded = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True).to(DEVICE)
            with torch.inference_mode():
                hidden = model(padded, output_hidden_states=True).hidden_states[LAYER].cpu().numpy()
            for each, frames, sound in zip(group, hidden, samples, strict=True):
                length = len(sound)
                for kernel, stride in strides:
                    length = (length - kernel) // stride + 1
                labels = kmeans.predict(frames[:length])
                found[each.id] = labels
                starts = np.flatnonzero(np.concatenate(([True], labels[1:] != labels[:-1])))
                durations = np.diff(np.append(starts, len(labels)))
                row = {"file_name": each.id, "units": labels[starts].tolist(), "duration": durations.tolist()}
                handle.write(json.dumps(row) + "\n")
    return found


def in_windows(units: Hubert, audio: list[Recording]) -> dict[str, float]:
    """Shares of frames of a minute of speech whose unit differs in windows of 20 s."""
    samples = np.concatenate([read_audio(each.path, RATE).samples for each in audio])[: 60 * RATE]
    (whole,) = units.encode([Sound(samples, RATE)])
    found = list(windows(iter([samples]), units, 20.0))
    differ = np.concatenate([ids for _, ids, _ in found]) != whole.expand()
    away = np.ones(len(differ), bool)
    for start, *_ in found[1:]:
        middle = round(start / RATE * units.frame_rate)
        away[middle - round(units.frame_rate) : middle + round(units.frame_rate)] = False
    return {"all": float(differ.mean()), "away_from_seams": float(differ[away].mean())}


def differing(found: dict[str, Any], alone: dict[str, npt.NDArray[np.int64]]) -> float:
    """Share of frames whose unit is not the one that the recording has alone."""
    labels = {name: each.expand() if isinstance(each, Units) else each for name, each in found.items()}
    wrong = sum(int((labels[name] != expected).sum()) for name, expected in alone.items())
    return wrong / sum(map(len, alone.values()))


def main() -> None:
    options = arguments(__doc__ or "")
    count = (12 if options.quick else 24) if ON_CPU else (400 if options.quick else 2000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        audio = recordings(folder, count)
        seconds = sum(read_audio(each.path).seconds for each in audio)
        exact = tokenizer(folder, audio)
        model = HubertModel.from_pretrained(folder / "model").eval().to(DEVICE)
        kmeans = MiniBatchKMeans(NUM_UNITS)
        kmeans.cluster_centers_, kmeans._n_threads = exact.centroids, 1  # noqa: SLF001 - as a loaded one has

        alone = {}
        centroids = torch.from_numpy(exact.centroids).double()
        with exact.features.exact():  # the oracle: transformers, one recording unpadded
            for each in audio[:60]:
                sound = torch.from_numpy(read_audio(each.path, RATE).samples)[None].to(DEVICE)
                frames = model(sound, output_hidden_states=True).hidden_states[LAYER][0]
                alone[each.id] = torch.cdist(frames.double().cpu(), centroids).argmin(dim=1).numpy()
        batch = 0.0 if ON_CPU else 320.0
        half = exact.at_precision("bf16")
        fastest = exact if ON_CPU else half
        few = [each for each in audio if each.id in alone]
        gate = {
            "differing_fp32": differing(ours(exact, few, folder / "gate", batch), alone),
            "differing_fp32_padded": differing(ours(exact, few, folder / "gate", 60.0), alone),
            "differing_bf16": differing(ours(half, few, folder / "gate", 60.0), alone)
            if not ON_CPU or not options.quick
            else None,
            "differing_in_windows": None if options.quick else in_windows(exact, audio),
            "differing_plain": differing(plain(model, kmeans, few, folder), alone),
        }

        def speed(work: Any) -> float:
            begin = time.perf_counter()
            work()
            return seconds / (time.perf_counter() - begin)

        found = interleaved(
            lambda: speed(lambda: ours(fastest, audio, folder / "out", batch)),
            lambda: speed(lambda: plain(model, kmeans, audio, folder)),
        )
        if not ON_CPU:
            fp32 = [speed(lambda: ours(exact, audio, folder / "out", batch)) for _ in range(3)]
            found["ours_fp32"] = float(np.median(fp32))
    found |= {"seconds_of_speech": seconds, "precision": fastest.features.precision}
    gate["passed"] = gate["differing_fp32"] == gate["differing_fp32_padded"] == 0
    finish("encode_throughput", "seconds of speech / s", found, gate, options.json)


if __name__ == "__main__":
    main()
