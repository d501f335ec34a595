"""Writes an exported model's card (README.md), stating only what the run has recorded."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from ascend_cpt.checkpoint.state import STATE_NAME, RunState, read_state
from ascend_cpt.config.values import format_count, format_number, format_rows
from ascend_cpt.errors import CheckpointError
from ascend_cpt.monitor.history import (
    JUDGED_KINDS,
    METRICS_NAME,
    add_evaluations,
    iter_heads,
    parse_line,
    read_run_info,
)
from ascend_cpt.monitor.summary import collect_by_name
from ascend_cpt.recipe.schedule import Schedule
from ascend_cpt.run.trained_model import TrainedModel
from ascend_cpt.strict_json import shorten
from ascend_cpt.weights.convert import Options
from ascend_cpt.weights.dtypes import DTYPES


@dataclass(kw_only=True)
class _Recorded:
    """A run's records up to a step: set and task records in step order, the last account, and the last step."""

    sets: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    tasks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    account: dict[str, Any] | None = None
    last: dict[str, Any] | None = None


def make_card(target: Path, trained: TrainedModel, options: Options) -> str:
    """Return the model card of an export of `trained` to `target`.

    The values are from the step at which the checkpoint was saved. Anything not recorded is left out.
    """
    origin = trained.origins[0]
    state = read_state(origin) if (origin / STATE_NAME).is_file() else None
    root = origin.absolute().parent
    run_dir = root.parent
    is_in_run = state is not None and root.name == "checkpoint" and (run_dir / METRICS_NAME).is_file()
    info = read_run_info(run_dir) if is_in_run else {}
    recorded = _read_recorded(run_dir / METRICS_NAME, state.step) if is_in_run and state is not None else _Recorded()
    base = info.get("base") or {}
    sections = [
        _render_front_matter(base),
        f"# {run_dir.resolve().name if is_in_run else target.resolve().name}\n",
        _render_summary(state, trained, options),
        _render_base(base),
        _render_recipe(state, info, recorded),
        _render_data(recorded, state),
        _render_evaluation(state, info, recorded, trained, options),
        _render_table("Software", ("package", "version"), (info.get("software") or {}).items()),
        _render_verification(target, trained, options),
    ]
    return "\n".join(section for section in sections if section)


def _read_recorded(path: Path, last_step: int) -> _Recorded:
    recorded = _Recorded()
    last_step_line: tuple[int, bytes] | None = None
    judged: list[dict[str, Any]] = []
    for number, kind, line in iter_heads(path, last_step):
        if kind == "step":
            last_step_line = number, line
        elif kind == "data":
            recorded.account = parse_line(path, number, line)
        elif kind in JUDGED_KINDS:
            judged.append(parse_line(path, number, line))
    upto = [record for record in add_evaluations(judged, path.parent) if record["step"] <= last_step]
    recorded.sets, recorded.tasks = collect_by_name(upto, "validation"), collect_by_name(upto, "task")
    recorded.last = parse_line(path, *last_step_line) if last_step_line else None
    return recorded


def _render_front_matter(base: Mapping[str, Any]) -> str:
    values: dict[str, Any] = {"library_name": "transformers"}
    if base.get("base_model"):
        values["base_model"] = base["base_model"]
    continues = base.get("kind") in ("hugging_face", "run")
    values["tags"] = ["ascend_cpt", *(["continued-pretraining"] if continues else [])]
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n"


def _render_summary(state: RunState | None, trained: TrainedModel, options: Options) -> str:
    config = trained.config
    lines = [
        f"A model of type {config['model_type']}: {config['num_hidden_layers']} layers, hidden size "
        f"{config['hidden_size']}, vocabulary {options.vocab_size or config['vocab_size']}. Exported by ascend_cpt."
    ]
    if len(trained.origins) > 1:
        steps = ", ".join(str(read_state(folder).step) for folder in trained.origins)
        lines.append(f"The weights are the mean of the checkpoints after steps {steps}.")
    elif state is not None:
        lines.append(f"The weights are those after step {state.step} of {state.total_steps}.")
    if _changes_dtype(trained, options):
        lines.append(f"They were converted to {options.dtype}.")
    return "\n".join(lines) + "\n"


def _render_base(base: Mapping[str, Any]) -> str:
    texts = {
        "random": "Random weights.",
        "hugging_face": f"The weights of {base.get('name')}.",
        "run": f"The weights of run {base.get('name')} after step {base.get('step')}.",
    }
    text = texts.get(str(base.get("kind")))
    if text is None:
        return ""
    if base.get("kind") == "run" and base.get("base_model"):
        text += f" That run started from {base['base_model']}."
    return f"## Base\n\n{text}\n"


def _render_recipe(state: RunState | None, info: Mapping[str, Any], recorded: _Recorded) -> str:
    if state is None:
        return ""
    try:
        return _render_table("Recipe", ("", "value"), _list_recipe(state, info, recorded))
    # An altered state can have arbitrary values in its fingerprint and still have matching checksums.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{STATE_NAME}: its fingerprint is damaged ({shorten(str(error))}); export another step"
        ) from error


def _list_recipe(state: RunState, info: Mapping[str, Any], recorded: _Recorded) -> list[tuple[str, str]]:
    saved = state.fingerprint
    length, batch = saved["seq_length"], saved["global_batch_size"]
    rows = [
        ("tokens", f"{format_count(state.tokens)} in {state.step} of {state.total_steps} steps"),
        ("batch", f"{format_rows(batch)} × {length} tokens = {format_count(batch * length)} tokens per step"),
        *(("learning rate", line) for line in _describe_schedule(saved.get("schedule"))),
        *(("phase", line) for line in _describe_phases(saved.get("phases") or ())),
    ]
    if lora := saved.get("lora"):
        kind = "rsLoRA" if lora["rank_stabilized"] else "LoRA"
        rows.append(
            ("trained", f"{kind}: rank {lora['rank']}, alpha {lora['alpha']:g}, on {', '.join(lora['targets'])}")
        )
    if saved.get("document_attention"):
        rows.append(("attention", f"{saved['document_attention']} documents"))
    if optimizer := saved.get("optimizer"):
        rows.append(("optimizer", ", ".join(f"{key} {value}" for key, value in optimizer.items())))
    if saved.get("seed") is not None:
        rows.append(("seed", str(saved["seed"])))
    if info.get("num_devices") and info.get("device_name"):
        rows.append(("devices", f"{info['num_devices']} × {info['device_name']}"))
    if recorded.last and recorded.last.get("num_skipped"):
        rows.append(("skipped updates", f"{recorded.last['num_skipped']} of {recorded.last['step']}"))
    return rows


def _describe_schedule(record: Mapping[str, Any] | None) -> list[str]:
    if not record:
        return []
    lines = []
    for segment in Schedule.from_record(**record).segments:
        is_flat = segment.start_lr == segment.end_lr
        change = f"{segment.end_lr:g}" if is_flat else f"{segment.start_lr:g} → {segment.end_lr:g} ({segment.shape})"
        steps = format_number(segment.num_steps, "step")
        lines.append(f"{segment.name}: {change} over {steps}")
    return lines


def _describe_phases(phases: Iterable[Sequence[Any]]) -> list[str]:
    return [
        f"{name}: steps {first} to {stop}, "
        + (
            ", ".join(f"{source} {float(Fraction(share)):.3g}" for source, share in shares)
            if shares
            else "all rows shuffled together"
        )
        for name, first, stop, shares in phases
    ]


def _render_data(recorded: _Recorded, state: RunState | None) -> str:
    account = recorded.account
    if account is None or state is None:
        return ""
    tokens: dict[str, int] = {}
    for by_source in account["tokens"].values():
        for source, count in by_source.items():
            tokens[source] = tokens.get(source, 0) + count
    rows = [
        (source, format_count(tokens.get(source, 0)), f"{epochs:.2f}") for source, epochs in account["epochs"].items()
    ]
    title = "Data" if account["step"] == state.step else f"Data up to step {account['step']}"
    return _render_table(title, ("source", "tokens", "epochs"), rows)


def _render_evaluation(
    state: RunState | None, info: Mapping[str, Any], recorded: _Recorded, trained: TrainedModel, options: Options
) -> str:
    if state is None:
        return ""
    parts = []
    losses = _compare(recorded.sets, "loss", state.step)
    if losses:
        sets = info.get("validation") or {}
        rows = [(name, _describe_rows(sets.get(name)), *values) for name, values in losses.items()]
        header = ("held-out set", "rows", "loss before", f"loss after step {state.step}", "difference")
        parts.append(_render_rows(header, rows))
    scores = _compare(recorded.tasks, "score", state.step)
    if scores:
        metrics = {name: str(records[-1].get("metric", "")) for name, records in recorded.tasks.items()}
        rows_of_tasks = [(name, metrics[name], *values) for name, values in scores.items()]
        parts.append(
            _render_rows(
                ("task", "metric", "score before", f"score after step {state.step}", "difference"), rows_of_tasks
            )
        )
    if not parts:
        return ""
    notes = []
    if losses:
        notes.append("Losses are in nats per token.")
    if len(trained.origins) > 1:
        notes.append(f"The values are those of the checkpoint after step {state.step}, not of the mean.")
    elif _changes_dtype(trained, options) or _resizes(trained, options):
        notes.append("The values were measured before the weights were converted.")
    return "\n".join(["## Evaluation\n", *parts, *([" ".join(notes) + "\n"] if notes else [])])


def _compare(groups: Mapping[str, Sequence[Mapping[str, Any]]], key: str, step: int) -> dict[str, tuple[str, str, str]]:
    """Return name → (first value, value at `step`, difference) for each name with a value at `step`."""
    found = {}
    for name, records in groups.items():
        at_step = [record for record in records if record["step"] == step]
        if not at_step:
            continue
        first, after = records[0], float(at_step[-1][key])
        if first["step"] == step:
            found[name] = ("", f"{after:.4f}", "")
        else:
            before = float(first[key])
            found[name] = (f"{before:.4f} (step {first['step']})", f"{after:.4f}", f"{after - before:+.4f}")
    return found


def _describe_rows(settings: Mapping[str, Any] | None) -> str:
    if not settings or "rows" not in settings:
        return ""
    rows, of_rows = settings["rows"], settings.get("of_rows", settings["rows"])
    return str(rows) if rows == of_rows else f"{rows} of {of_rows}"


def _render_verification(target: Path, trained: TrainedModel, options: Options) -> str:
    command = ["python", "tools/convert_weights.py", "verify", str(target)]
    # A folder with different dtypes or sizes is not identical to the checkpoint.
    if not (_changes_dtype(trained, options) or _resizes(trained, options)):
        command += ["--against", str(trained.origins[0])]
        if len(trained.origins) > 1:
            command += ["--average", str(len(trained.origins))]
    return f"## Verification\n\n    {shlex.join(command)}\n"


def _changes_dtype(trained: TrainedModel, options: Options) -> bool:
    wanted = DTYPES[options.dtype] if options.dtype else None
    return wanted is not None and any(info.dtype != wanted for info in trained.source.tensors.values())


def _resizes(trained: TrainedModel, options: Options) -> bool:
    return options.vocab_size not in (None, trained.config["vocab_size"])


def _render_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a section with a table, or an empty one if there are no rows."""
    rows = list(rows)
    return f"## {title}\n\n{_render_rows(header, rows)}" if rows else ""


def _render_rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return (
        "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"
    )
