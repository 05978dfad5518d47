"""Bases and sizes of micro-batches → rows of a plan: tried here, or told from a card's data sheet."""

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from slam.bases import base_config, num_parameters, outline
from slam.cards import ASSUMED_MFU, USABLE, Card
from slam.flops import training_flops
from slam.plan_data import Row
from slam.probing import Measured, NoFit, Trial, probe_apart
from slam.progress import bar
from slam.training_memory import free_memory, training_memory

_LEAST_PROBE, _MOST_PROBE = 2.0, 6.0  # seconds of updates in a trial


def measured_rows(trials: Sequence[Trial], seconds: float) -> list[Row]:
    """Each trial tried while there is time; the others told from those that were.

    Args:
        trials: the smaller micro-batches first.
        seconds: after which no other trial is begun; the first is made in any case.
    """
    began = time.monotonic()
    each = min(_MOST_PROBE, max(_LEAST_PROBE, seconds / (3 * len(trials))))
    on_gpu = torch.cuda.is_available()
    memory = math.inf if on_gpu else free_memory()
    rows: list[Row] = []
    with bar("measuring", len(trials)) as progress:
        for trial in trials:
            row = _row(trial)
            if any(other.base == row.base and other.trouble for other in rows):
                rows.append(replace(row, trouble="does not fit: a smaller one does not"))
            elif _memory(trial, bf16=on_gpu) > memory:
                rows.append(replace(row, trouble="does not fit, by an estimate"))
            elif rows and time.monotonic() - began > seconds:
                rows.append(_from_others(row, trial, rows))
            else:
                rows.append(_with(row, probe_apart(replace(trial, seconds=each))))
            progress.advance()
    return rows


def estimated_rows(trials: Sequence[Trial], card: Card) -> list[Row]:
    """Each trial told from the card's data sheet and the share of its peak that is assumed."""
    rows = []
    for trial in trials:
        row, memory = _row(trial), _memory(trial, bf16=True)
        lm = outline(base_config(trial.base), trial.num_units + 2)
        each = training_flops(lm, trial.lengths) / sum(trial.lengths)
        row = replace(row, memory=memory)
        if memory > USABLE * card.memory_gib * 2**30:
            rows.append(replace(row, trouble="does not fit, by an estimate"))
        else:
            speed = ASSUMED_MFU * card.peak_flops / each
            rows.append(replace(row, tokens_per_second=speed, mfu=ASSUMED_MFU))
    return rows


def _row(trial: Trial) -> Row:
    config = trial.config
    parameters = num_parameters(outline(base_config(trial.base), trial.num_units + 2))
    accumulation = -(-config.batch_tokens // config.micro_batch_tokens)
    return Row(trial.name, parameters, config.micro_batch_tokens, accumulation)


def _with(row: Row, found: Measured | NoFit) -> Row:
    if isinstance(found, NoFit):
        return replace(row, trouble=found.reason)
    return replace(
        row, measured=True, memory=found.memory, tokens_per_second=found.tokens_per_second, mfu=found.mfu
    )


def _from_others(row: Row, trial: Trial, rows: Iterable[Row]) -> Row:
    """A row for which there was no time: as many FLOP a second as the others that were measured."""
    speeds = [r.tokens_per_second * r.parameters for r in rows if r.measured and r.tokens_per_second]
    if not speeds:
        return replace(row, trouble="not measured: there was no time; raise --seconds")
    memory = _memory(trial, bf16=torch.cuda.is_available())
    return replace(row, memory=memory, tokens_per_second=statistics.median(speeds) / row.parameters)


def _memory(trial: Trial, *, bf16: bool) -> float:
    """Bytes that a trial takes, before it is tried."""
    config = trial.config
    rows = min(config.micro_batch_tokens, config.batch_tokens)
    muon = config.optimizer == "muon"
    return training_memory(
        base_config(trial.base), trial.num_units + 2, row_tokens=rows, muon=muon, bf16=bf16
    ).total
