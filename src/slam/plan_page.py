"""A plan → its table and words, and a recipe that trains what it recommends."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from slam.amounts import count, duration
from slam.plan import CPU_SIZES, Plan
from slam.plan_data import Row


def table(plan: Plan) -> Table:
    """A row for each base and size of micro-batch; what is known of none is left out."""
    rows = [_cells(row, plan) for row in plan.rows]
    found = Table(title=f"{plan.settings.budget} on {plan.machine}", title_justify="left", title_style="")
    shown = [name for name in rows[0] if any(row[name] for row in rows)]
    for name in shown:
        words = name in ("base", "")
        found.add_column(name, justify="left" if words else "right", no_wrap=name == "base")
    for row in rows:
        found.add_row(*(row[name] for name in shown))
    return found


def _cells(row: Row, plan: Plan) -> dict[str, str]:
    """A row's cells by their headings."""
    said = row.trouble.split(";")[0] or ("recommended" if row == plan.best else "")
    if row.tokens_per_second and not row.measured and not plan.estimated:
        said = f"{said} (not measured: no time)".strip()
    return {
        "base": row.base,
        "parameters": count(row.parameters),
        "micro-batch": f"{row.micro_batch_tokens:,} x {row.accumulation}",
        "memory": f"{row.memory / 2**30:.2f} GiB" if row.memory else "",
        "tokens/s": f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else "",
        "MFU": f"{row.mfu:.0%}" if row.mfu else "",
        "updates": f"{row.updates:,.0f}" if row.updates else "",
        "tokens": count(row.tokens),
        "time": duration(row.tokens / row.tokens_per_second) if row.tokens and row.tokens_per_second else "",
        "epochs": f"{row.epochs:.2f}" if row.epochs else "",
        "loss (published law)": _loss(row.published_loss),
        "loss (your law)": _loss(row.own_loss),
        "": said,
    }


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def lines(plan: Plan) -> Iterator[str]:
    """What is to be said below the table."""
    best = plan.best
    if plan.estimated:
        yield "estimates: no such GPU is here, so nothing was measured (docs/stages/plan.md says from what)"
    sizes = f"micro-batches of {best.micro_batch_tokens:,} tokens, {best.accumulation} to an update"
    yield f"recommended: {best.base}, {sizes}: {plan.reason}"
    yield from plan.remarks


def recipe_text(plan: Plan, name: str) -> str:
    """A recipe of the plan's best row, in TOML, for data that were given."""
    settings, best = plan.settings, plan.best
    data = [str(path) for path in settings.data]
    command = shlex.join(["slam", "plan", "--budget", settings.budget, "--data", *data])
    speed = f"{best.tokens_per_second:,.0f} tokens/s {'measured' if best.measured else 'estimated'}"
    top = f"""\
# {command}
# {best.base}: {plan.reason}.
# {speed}: about {best.tokens:,.0f} tokens.

folder = {json.dumps(f"work/{name}")}
"""
    pack = f"""
[steps.tokens]
stage = "pack"
train = {json.dumps(data)}
"""
    lm = f"""
[steps.lm]
stage = "pretrain"
shards = {json.dumps(data[0] if plan.corpus.packed else "tokens")}
{_base_line(best.base)}
context = {settings.context}
batch_tokens = {plan.batch_tokens}
micro_batch_tokens = {best.micro_batch_tokens}
optimizer = {json.dumps(plan.optimizer)}
budget = {json.dumps(settings.budget)}
"""
    return top + ("" if plan.corpus.packed else pack) + lm


def _base_line(name: str) -> str:
    if name not in CPU_SIZES:
        return f"{'base' if Path(name).is_dir() else 'hub_base'} = {json.dumps(name)}"
    sizes = asdict(CPU_SIZES[name])
    return f"architecture = {{ {', '.join(f'{key} = {size}' for key, size in sizes.items())} }}"
