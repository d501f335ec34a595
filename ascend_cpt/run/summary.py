"""Summary lines of a run, printed before it starts and after it ends."""

from __future__ import annotations

import math

from ascend_cpt.config.values import format_bytes, format_count, format_number, format_rows
from ascend_cpt.data.packed.packing import CONCAT
from ascend_cpt.model.frozen import list_first_rows
from ascend_cpt.model.lora import LoraSettings, count_adapter_parameters
from ascend_cpt.model.parameters import count_parameters, list_hf_shapes, list_mindformers_shapes
from ascend_cpt.model.sizes import ModelSizes, read_sizes
from ascend_cpt.recipe.schedule import learning_rate_at
from ascend_cpt.run.planning.training_case import count_checkpoints
from ascend_cpt.run.resolved_run import Dataset, ResolvedRun
from ascend_cpt.run.starting_point import Start
from ascend_cpt.weights.hf_folder import HfFolder, is_hf_folder


def describe(run: ResolvedRun) -> str:
    """Return the summary of a resolved run."""
    budget, layout = run.budget, run.layout
    model = run.model
    sizes = f"{model['num_hidden_layers']} layers, hidden {model['hidden_size']}, vocabulary {model['vocab_size']}"
    lines = [
        f"run      {run.run_dir}",
        f"model    {model['model_type']}: {sizes}",
        f"layout   {format_number(layout.world_size, 'device')} = data {layout.data_parallel} × "
        f"tensor {layout.tensor_parallel} × pipeline {layout.pipeline_parallel} × context {layout.context_parallel}"
        + (f", experts over {layout.expert_parallel}" if layout.expert_parallel > 1 else ""),
        *_describe_batch(run),
        f"budget   {budget.total_steps} steps = {format_count(budget.total_tokens)} tokens",
        f"rows     {budget.seq_length} tokens, attention {run.config.cpt.document_attention} documents",
        *describe_frozen(run),
        *describe_rate(run),
        *describe_data(run),
    ]
    if run.report_rank:
        lines.append(f"report   progress is printed by rank {run.report_rank}, on the last pipeline stage")
    if run.validation:
        lines.append(f"validate {', '.join(dataset.name for dataset in run.validation)}")
    lines.append(describe_disk(run))
    if export := run.config.cpt.export:
        lines.append(f"export   the {export.checkpoint} checkpoint to {export.to}, after the last step")
    lines += [f"note     {note}" for note in run.notes]
    return "\n".join(lines)


def _describe_batch(run: ResolvedRun) -> list[str]:
    """Return a line for each batch size of the run."""
    lines = []
    for stage in run.budget.ramp or (None,):
        budget = run.budget if stage is None else run.budget.at(stage.first_step)
        accumulation = f" × {budget.num_accumulation_steps} accumulation" if budget.num_accumulation_steps > 1 else ""
        since = "" if stage is None else f"{_at(run, stage.first_step)}: "
        lines.append(
            f"batch    {since}{format_rows(budget.global_batch_size)} × {budget.seq_length} tokens = "
            f"{format_count(budget.tokens_per_step)} tokens per step "
            f"({format_rows(budget.micro_batch_size)} × {format_number(run.layout.data_parallel, 'rank')}"
            f"{accumulation})"
        )
    return lines


def describe_frozen(run: ResolvedRun) -> list[str]:
    """Return lines with the number of weights that are not trained, and the weights trained by rows, if any."""
    sizes, trainable = read_sizes(run.model), run.config.cpt.trainable
    if run.lora is not None:
        return [_describe_adapters(sizes, run.lora)]
    frozen = run.frozen
    first_rows = list_first_rows(sizes, trainable)
    if not frozen and not first_rows:
        return []
    shapes = list_mindformers_shapes(sizes)
    held = sum(math.prod(shapes[name]) for name in frozen)
    held += sum(row * math.prod(shapes[name][1:]) for name, row in first_rows.items())
    total = count_parameters(sizes)
    return [
        f"frozen   {len(frozen)} of {len(shapes)} tensors, {format_count(held)} of {format_count(total)} parameters",
        *(f"frozen   rows 0 to {row - 1} of {name}" for name, row in first_rows.items()),
    ]


def _describe_adapters(sizes: ModelSizes, lora: LoraSettings) -> str:
    trained, total = count_adapter_parameters(sizes, lora), count_parameters(sizes)
    kind = "rsLoRA" if lora.rank_stabilized else "LoRA"
    return (
        f"adapters {kind}: rank {lora.rank}, scale {lora.scale:.4g}, on {', '.join(lora.targets)}: "
        f"{format_count(trained)} trained parameters, {100 * trained / total:.2g} % of {format_count(total)}"
    )


def describe_rate(run: ResolvedRun) -> list[str]:
    """Return a line for each segment of the learning-rate schedule, with its first step and token."""
    if run.schedule is None:
        return []
    lines, step = [], 0
    for segment in run.schedule.segments:
        is_flat = segment.start_lr == segment.end_lr
        change = f"{segment.end_lr:g}" if is_flat else f"{segment.start_lr:g} → {segment.end_lr:g}"
        shape = "" if is_flat or segment.name == segment.shape else f" ({segment.shape})"
        steps = format_number(segment.num_steps, "step")
        lines.append(f"rate     {_at(run, step)}: {segment.name}{shape} {change} over {steps}")
        step += segment.num_steps
    return lines


def describe_data(run: ResolvedRun) -> list[str]:
    """Return a line for each phase with its data, and a line for each source with its epochs."""
    lines, budget = [], run.budget
    for phase in run.phases:
        counts = run.count_source_rows(phase.first_step, phase.stop_step)
        total = sum(counts.values())
        parts = [
            f"{name} {rows / total:.3g} = {format_count(rows * run.budget.seq_length)}"
            for name, rows in counts.items()
            if rows
        ]
        rate = ""
        if run.schedule is not None:
            rate = f", rate {learning_rate_at(run.schedule, phase.first_step):.3g} at its start"
        tokens = format_count(budget.count_tokens(phase.stop_step) - budget.count_tokens(phase.first_step))
        lines.append(
            f"phase    {phase.name}: {_at(run, phase.first_step)} to {phase.stop_step}, {tokens} tokens{rate}: "
            f"{', '.join(parts)}"
        )
    drawn = run.count_source_rows(0, run.budget.total_steps)
    for source in run.sources:
        rows = drawn[source.name]
        epochs = f" = {rows / source.num_rows:.2f} epochs of {source.num_rows} rows{_describe_padding(source)}"
        if source.name in run.open_sources:
            epochs = ", its size is unknown"
        lines.append(f"source   {source.name}: {format_count(rows * run.budget.seq_length)} tokens{epochs}")
    return lines


def _describe_padding(source: Dataset) -> str:
    if source.manifest.packing == CONCAT:
        return ""
    return f", packed with {source.manifest.packing}, {100 * source.manifest.padding_share:.1f} % padding"


def describe_disk(run: ResolvedRun) -> str:
    """Return a line with the checkpoint size and the run's maximum disk usage."""
    if not run.config.cpt.checkpoint.save:
        return "disk     nothing is saved (cpt.checkpoint.save is False)"
    checkpoints = count_checkpoints(run, run.budget.total_steps)
    export = f" with an export of {format_bytes(checkpoints.export_bytes)}" if checkpoints.export_bytes else ""
    num, trained = checkpoints.num_parameters, checkpoints.num_trained
    states = "" if trained == num else f", {format_count(trained)} trained"
    return (
        f"disk     a checkpoint is {format_bytes(checkpoints.num_bytes)} ({format_count(num)} parameters{states}, with "
        f"the optimizer); {checkpoints.num_written} saved, at most {checkpoints.num_held} on disk at once: "
        f"{format_bytes(checkpoints.disk_bytes)}{export}"
    )


def _at(run: ResolvedRun, step: int) -> str:
    return f"from step {step} ({format_count(run.budget.count_tokens(step))})"


def describe_start(start: Start) -> str:
    """Return a line with the starting point, followed by its notes."""
    if start.resume_from is not None:
        line = f"start    continuing at step {start.step} from {start.resume_from.folder}"
    elif start.init_from is None:
        line = "start    random weights; compiling the graph first"
    else:
        folder = start.init_from
        details = f" ({describe_hf_folder(HfFolder(folder))})" if is_hf_folder(folder) else ""
        line = f"start    weights of {folder}{details}; compiling the graph first"
    return "\n".join([line, *(f"note     {note}" for note in start.notes)])


def describe_hf_folder(folder: HfFolder) -> str:
    """Describe what is loaded from a checked Hugging Face folder. The check has already rejected missing tensors."""
    used = list_hf_shapes(folder.sizes)
    num_parameters = sum(folder.tensors[name].num_elements for name in used)
    ignored = sorted(set(folder.tensors) - set(used))
    rest = f", ignored unexpected ones: {', '.join(ignored)}" if ignored else ", none unexpected"
    return f"{len(used)} tensors, {format_count(num_parameters)} parameters, none missing{rest}"


def describe_end(run: ResolvedRun, stop_at_step: int | None, *, continues: bool = False) -> str:
    """Return a line that says how the run ended, or with what it `continues`, and where its files are."""
    total = run.budget.total_steps
    if continues and stop_at_step is not None:
        rows = run.budget.at(stop_at_step).global_batch_size
        return f"batch    from step {stop_at_step} on {format_rows(rows)}: starting again from the checkpoint"
    files = f"checkpoints, metrics.jsonl and loss.png are in {run.run_dir}"
    if stop_at_step is not None and stop_at_step < total:
        return f"stopped  after step {stop_at_step} of {total}; run without --stop-at-step to continue; {files}"
    return f"done     {files}"
