"""Chooses a run's starting point: its newest checkpoint, another run's or Hugging Face weights, or random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_cpt.checkpoint.fingerprint import describe_differences, hash_values
from ascend_cpt.checkpoint.locate import Checkpoint, find_newest_complete
from ascend_cpt.checkpoint.state import STATE_NAME, RunState, read_state
from ascend_cpt.cluster.job.channel import JobChannel
from ascend_cpt.cluster.job.checks import check_same
from ascend_cpt.config.values import format_count
from ascend_cpt.errors import CheckpointError, ConfigError
from ascend_cpt.model.rope import read_rope
from ascend_cpt.model.sizes import unify_value
from ascend_cpt.recipe.schedule import Schedule, learning_rate_at
from ascend_cpt.run.layout_change import check_common_step, check_layout
from ascend_cpt.run.lora.base import identify_base
from ascend_cpt.run.resolved_run import RANDOM_INIT, ResolvedRun, without_stage_layers
from ascend_cpt.run.verified import ALONE, Verifier
from ascend_cpt.strict_json import shorten
from ascend_cpt.weights.hf_folder import is_hf_folder, open_checked
from ascend_cpt.weights.lora.base import FOLDER, IDENTITY, BaseWeights

EXTENDABLE = ("total_steps", "schedule", "phases", "sources")
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")
ROPE_CHANGED = "rotary embeddings differ from those that the weights were trained with"
JUMP = 1.2  # a rise in the learning rate by more than this factor counts as re-warming


@dataclass(frozen=True, kw_only=True)
class Start:
    """A checkpoint to resume from exactly, a folder of initial weights, or neither (random weights).

    `notes` are lines to print; `warnings` list skipped checkpoints.
    """

    resume_from: Checkpoint | None = None
    init_from: Path | None = None
    base: BaseWeights | None = None
    """The weights under the adapters, also when a run with adapters is resumed."""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Number of steps already trained."""
        return self.resume_from.state.step if self.resume_from else 0


def choose_start(
    run: ResolvedRun,
    resume_training: str | None,
    *,
    extend: bool = False,
    reshard: bool = False,
    channel: JobChannel | None = None,
    dry: bool = False,
) -> Start:
    """Return the run's starting point. With a `channel`, all processes of the job choose the same one.

    With a channel, checkpoint files are verified unless `cpt.checkpoint.verify` is false. A damaged checkpoint is
    skipped like an incomplete one. Without a channel (in a dry run), only file sizes are compared.

    Args:
        run: The resolved run.
        resume_training: `auto`, `never`, the path of a checkpoint or run, or None to use the configuration's value.
        extend: Accept a run that is longer or has more phases than when its checkpoint was saved.
        reshard: Accept another parallel layout than when the checkpoint was saved.
        channel: The channel to the other processes, in a launched job.
        dry: Whether the initial weights may be missing on this machine. Another layout is then only noted.

    Raises:
        ConfigError: when no initial weights are configured.
        CheckpointError: when a checkpoint is damaged or from another run, or a new run would overwrite an old one.
        ClusterError: when the nodes' starting points differ, or a node failed.
    """
    storage = run.config.cpt.storage
    verifier = Verifier(
        channel=channel or ALONE,
        shared=storage.shared or channel is None,
        enabled=run.config.cpt.checkpoint.verify and channel is not None,
    )
    start = _choose(run, resume_training, extend, reshard, verifier, dry)
    if channel is not None:
        weights = start.resume_from.folder if start.resume_from else start.init_from
        facts = {"step": start.step, "weights": identify_weights(weights) if weights else RANDOM_INIT}
        if start.base is not None:
            facts["base"] = start.base.identity
        check_same(channel, "starting point", facts)
    return start


def identify_weights(folder: Path) -> str:
    """Return a string that identifies a checkpoint or Hugging Face folder, without reading tensors."""
    state = folder / STATE_NAME
    if state.is_file():
        saved = read_state(folder)
        # The files are left out: without shared storage, each node has only its own.
        return f"step {saved.step} of {hash_values(saved.fingerprint)}"
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    return f"{len(sizes)} files, {hash_values(sizes)}"


def _choose(
    run: ResolvedRun, resume_training: str | None, extend: bool, reshard: bool, verifier: Verifier, dry: bool
) -> Start:
    chosen, skipped = _choose_checkpoint(run, resume_training, verifier)
    if chosen is None:
        if extend:
            raise CheckpointError(f"{run.run_dir}: no checkpoint to extend; remove --extend")
        if reshard and not verifier.shared:
            check_common_step(run, verifier.channel)
        start = _choose_weights(run, skipped, verifier, dry)
        return dataclasses.replace(start, base=_identify(start, verifier)) if run.lora else start
    differences = describe_differences(_ignore_stages(chosen.state.fingerprint), run.fingerprint())
    notes = verifier.note_unverified(chosen)
    if differences and extend:
        notes = (*notes, *_check_extension(run, chosen))
    elif differences:
        hint = ", or give --extend to make the run longer" if _is_longer(run, chosen.state) else ""
        raise CheckpointError(
            f"{chosen.folder}: saved by a run with different settings, so it cannot be continued exactly "
            f"({'; '.join(differences)}); restore them{hint}, or start another run with --set cpt.run_name=NAME"
        )
    if chosen.state.step < run.budget.total_steps:
        notes = (*notes, *check_layout(run, chosen, reshard=reshard, shared=verifier.shared, dry=dry))
    base, base_notes = _find_base(run, chosen, verifier, dry) if run.lora else (None, ())
    return Start(resume_from=chosen, base=base, notes=(*notes, *base_notes), warnings=skipped)


def _identify(start: Start, verifier: Verifier) -> BaseWeights | None:
    """Return the identity of the initial weights; None if a dry run did not find them."""
    folder = start.init_from
    return identify_base(folder, shared=verifier.shared) if folder is not None and folder.is_dir() else None


def _find_base(
    run: ResolvedRun, chosen: Checkpoint, verifier: Verifier, dry: bool
) -> tuple[BaseWeights | None, tuple[str, ...]]:
    """Return the weights under the adapters of a checkpoint, and lines about them.

    Raises:
        CheckpointError: `cpt.init_from` has other weights than those that the adapters were trained on.
    """
    found = _choose_weights(run, (), verifier, dry)
    base = _identify(found, verifier)
    recorded = chosen.state.base
    if base is not None and base.identity != recorded.get(IDENTITY):
        raise CheckpointError(
            f"{chosen.folder}: its adapters were trained on the weights of {recorded.get(FOLDER)}, but "
            f"{base.folder} (cpt.init_from) has other weights; set cpt.init_from to the former"
        )
    return base, tuple(note for note in found.notes if note.startswith("warning: these weights were not found"))


def _choose_checkpoint(
    run: ResolvedRun, resume_training: str | None, verifier: Verifier
) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """Return the checkpoint to resume from, or None for a new run, and a line for each skipped checkpoint."""
    requested = resume_training or str(run.config.mindformers.get("resume_training", "auto"))
    if requested.lower() in ("auto", "true", "none"):
        return verifier.choose_newest(run.checkpoint_root)
    newest, _ = find_newest_complete(run.checkpoint_root)
    if requested.lower() in ("never", "false"):
        if newest is not None:
            raise CheckpointError(
                f"{run.run_dir}: has checkpoints up to step {newest.state.step}; resume from it with "
                "--resume_training auto, or start another run with --set cpt.run_name=NAME"
            )
        return None, ()
    if Path(requested).resolve() in (run.run_dir.resolve(), run.checkpoint_root.resolve()):
        chosen, skipped = verifier.choose_newest(run.checkpoint_root)
        if chosen is not None:
            return chosen, skipped
    chosen, skipped = verifier.locate(Path(requested), own=not verifier.shared)
    if newest is not None and newest.state.step > chosen.state.step:
        raise CheckpointError(
            f"{run.run_dir}: has a newer checkpoint (step {newest.state.step}) than {chosen.folder}; move "
            "the newer ones away, or continue in another folder with --set cpt.run_name=NAME"
        )
    return chosen, skipped


def _is_longer(run: ResolvedRun, state: RunState) -> bool:
    return run.budget.total_steps > state.total_steps


def _check_extension(run: ResolvedRun, chosen: Checkpoint) -> tuple[str, ...]:
    """Return lines that describe what the extension changes.

    Raises:
        CheckpointError: when more than the length changed, or the rows trained so far would differ.
    """
    _check_fingerprint(chosen)
    state = chosen.state
    saved, current = _ignore_stages(state.fingerprint), run.fingerprint()
    others = describe_differences(
        {key: value for key, value in saved.items() if key not in EXTENDABLE},
        {key: value for key, value in current.items() if key not in EXTENDABLE},
    )
    if others:
        raise CheckpointError(
            f"{chosen.folder}: --extend only makes a run longer; restore the other settings ({'; '.join(others)})"
        )
    if not _is_longer(run, state):
        raise CheckpointError(
            f"{run.run_dir}: --extend needs a longer run, but it has {run.budget.total_steps} steps and had "
            f"{state.total_steps}; "
            "raise cpt.train_tokens or add a phase"
        )
    _check_same_rows(chosen, saved, current)
    notes = [
        f"extended at step {state.step}: {state.total_steps} → {run.budget.total_steps} steps "
        f"({format_count(run.budget.count_tokens(state.total_steps))} → {format_count(run.budget.total_tokens)} tokens)"
    ]
    if run.schedule is not None and saved.get("schedule"):
        before = learning_rate_at(Schedule.from_record(**saved["schedule"]), state.step - 1)
        after = learning_rate_at(run.schedule, state.step)
        notes.append(
            f"learning rate: {before:.3g} at step {state.step - 1}, {after:.3g} at step {state.step}, final "
            f"{run.schedule.final_lr:.3g}"
        )
        if after > JUMP * before:
            jump = f"by a factor of {after / before:.3g}" if before else "from 0"
            notes.append(
                f"warning: the learning rate jumps {jump}; a schedule with a stable part (wsd, infinite) can be "
                "extended without a jump (arXiv 2403.08763)"
            )
    return tuple(notes)


def _ignore_stages(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved fingerprint without the layers of pipeline stages, which earlier versions recorded."""
    model = saved.get("model")
    if isinstance(model, Mapping):
        return {**saved, "model": without_stage_layers(model)}
    return dict(saved)


def _check_fingerprint(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint's fingerprint has every field read here, since the checkpoint may be untrusted.

    Raises:
        CheckpointError: a field is missing or malformed.
    """
    saved = checkpoint.state.fingerprint
    try:
        select_model_identity(saved["model"])
        {digest: name for name, digest in saved["sources"]}
        _name_phases(_cut_phases(saved["phases"], checkpoint.state.step))
        if saved.get("schedule"):
            learning_rate_at(Schedule.from_record(**saved["schedule"]), max(checkpoint.state.step - 1, 0))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.folder / STATE_NAME}: its fingerprint does not describe a run ({type(error).__name__}: "
            f"{shorten(str(error))}); use an unmodified checkpoint"
        ) from error


def _check_same_rows(chosen: Checkpoint, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    digests = dict(current["sources"])
    for name, digest in saved["sources"]:
        if digests.get(name) != digest:
            raise CheckpointError(
                f"{chosen.folder}: --extend: source {name} is not the dataset that was trained on; restore it"
            )
    step = chosen.state.step
    trained, wanted = (_cut_phases(record["phases"], step) for record in (saved, current))
    shuffled_together = any(shares is None for *_, shares in saved["phases"])
    if trained != wanted or (shuffled_together and saved["sources"] != current["sources"]):
        raise CheckpointError(
            f"{chosen.folder}: --extend: the phases up to step {step} differ from those that were trained: "
            f"{_name_phases(trained)} → {_name_phases(wanted)}; keep their blends, and give their lengths in tokens"
        )


def _cut_phases(phases: list[Any], step: int) -> list[tuple[int, int, Any]]:
    """Return (first step, stop step, shares) of the phases up to `step`; names do not matter."""
    return [(first, min(stop, step), shares) for _, first, stop, shares in phases if first < step]


def _name_phases(phases: list[tuple[int, int, Any]]) -> str:
    return ", ".join(
        f"{first} to {stop}: {' + '.join(f'{name} {share}' for name, share in shares) if shares else 'all shuffled'}"
        for first, stop, shares in phases
    )


def _choose_weights(run: ResolvedRun, skipped: tuple[str, ...], verifier: Verifier, dry: bool) -> Start:
    config = run.config
    requested = config.initial_weights
    if not requested:
        raise ConfigError(
            f"{config.path}: no initial weights; set cpt.init_from to a Hugging Face folder, a run or "
            f"checkpoint folder, or `{RANDOM_INIT}` to train from scratch"
        )
    if requested == RANDOM_INIT:
        return Start(warnings=skipped)
    if dry and not Path(requested).exists():
        return Start(init_from=Path(requested), notes=("warning: these weights were not found",), warnings=skipped)
    if is_hf_folder(Path(requested)):
        folder = open_checked(Path(requested), run.model)
        is_extended = read_rope(run.model) != folder.sizes.rope
        added = (f"{ROPE_CHANGED}: YaRN is added",) if is_extended else ()
        return Start(init_from=Path(requested), notes=added, warnings=skipped)
    weights = dataclasses.replace(verifier, weights_only=True)
    checkpoint, damaged = weights.locate(Path(requested), own=not verifier.shared)
    skipped = (*skipped, *damaged)
    _check_fingerprint(checkpoint)
    if checkpoint.state.base:
        raise CheckpointError(
            f"{checkpoint.folder}: has only adapters; write the whole model with tools/convert_weights.py to-hf "
            "--merge, and start from it"
        )
    before, now = (select_model_identity(model) for model in (checkpoint.state.fingerprint["model"], run.model))
    rope_before, rope_now = (
        {key: fields.pop(key) for key in ROPE_KEYS if fields[key] is not None} for fields in (before, now)
    )
    differences = describe_differences(before, now)
    if differences:
        raise CheckpointError(
            f"{checkpoint.folder}: its model sizes differ from model.model_config ({'; '.join(differences)}); "
            "make them equal or choose another checkpoint"
        )
    notes = (*verifier.note_unverified(checkpoint), *_warn_of_rewarming(run, checkpoint.state))
    if rope_before != rope_now:
        # A long-context stage may change the rope scaling. This affects no weight shapes but is worth a note.
        changes = "; ".join(describe_differences(rope_before, rope_now))
        notes = (f"{ROPE_CHANGED}: {changes}", *notes)
    return Start(init_from=checkpoint.folder, notes=notes, warnings=skipped)


def _warn_of_rewarming(run: ResolvedRun, state: RunState) -> tuple[str, ...]:
    """Return a warning if the run re-warms the learning rate on data that the weights have already seen."""
    schedule = state.fingerprint.get("schedule")
    if not schedule or run.schedule is None:
        return ()
    seen = {digest: name for name, digest in state.fingerprint["sources"]}
    again = [source.name for source in run.sources if source.manifest.digest in seen]
    ended_with = learning_rate_at(Schedule.from_record(**schedule), state.step - 1)
    if not again or run.schedule.peak_lr <= JUMP * ended_with:
        return ()
    return (
        f"warning: re-warming on the same data: these weights were already trained on {', '.join(again)} with a final "
        f"learning rate of {ended_with:.3g}; the rate of this run rises to {run.schedule.peak_lr:.3g}. This is worse "
        "than continuing at a constant rate (arXiv 2308.04014); continue that run with --extend, or set "
        f"cpt.schedule.peak_lr to {ended_with:.3g}",
    )


MODEL_IDENTITY_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
)


def select_model_identity(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `model_config` that identify the model, with one name for SiLU."""
    return {key: unify_value(key, model.get(key)) for key in MODEL_IDENTITY_KEYS}
