"""Checks of `cpt.validation`, `cpt.monitor` and `cpt.guards`."""

from __future__ import annotations

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.monitoring_schema import OPTIONAL_SINKS
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.config.sections import find_section, nearest
from ascend_cpt.config.task_schema import ALARM_ACTIONS
from ascend_cpt.config.values import Patience
from ascend_cpt.model.sizes import MOE_FAMILIES
from ascend_cpt.monitor.trackers import PACKAGES, is_installed
from ascend_cpt.tasks.check import find_task_problems

GUARDED_WRAPPERS = ("MFTrainOneStepCell", "MFPipelineWithLossScaleCell")


def find_monitoring_problems(config: RunConfig, layout: ParallelLayout) -> list[str]:
    """Return a problem for every validation, sink or guard setting that cannot work."""
    return _check_sets(config) + _check_tasks(config) + _check_monitor(config) + _check_guards(config, layout)


def _check_sets(config: RunConfig) -> list[str]:
    problems: list[str] = []
    for name, entry in (config.cpt.validation.sets if config.cpt.validation else {}).items():
        limit = ("max_increase", entry.max_increase, "nats above the loss before the first step")
        keys = ("cpt", "validation", "sets", name)
        problems += _find_alarm_problems(config, keys, limit, ("on_increase", entry.on_increase), entry.patience)
    return problems


def _check_tasks(config: RunConfig) -> list[str]:
    validation = config.cpt.validation
    if validation is None:
        return []
    problems: list[str] = []
    if not validation.sets and not validation.tasks:
        where = f"{config.locate('cpt', 'validation')}: cpt.validation"
        problems.append(f"{where}: has neither sets nor tasks; add one, or remove the section")
    for name, task in validation.tasks.items():
        keys = ("cpt", "validation", "tasks", name)
        for problem in find_task_problems(task, config.cpt.seq_length):
            problems.append(f"{config.locate(*keys, problem.partition(':')[0])}: {'.'.join(keys)}.{problem}")
        limit = ("max_drop", task.max_drop, "drop of the score from its value before the first step")
        problems += _find_alarm_problems(config, keys, limit, ("on_drop", task.on_drop), task.patience)
    return problems


def _find_alarm_problems(
    config: RunConfig,
    keys: tuple[str, ...],
    limit: tuple[str, float | None, str],
    action: tuple[str, str],
    patience: Patience | None,
) -> list[str]:
    """Return a problem for each alarm setting that cannot work.

    Args:
        config: The configuration.
        keys: Path of keys to the set's or task's section.
        limit: Key and value of the largest allowed change, and the quantity that changes.
        action: Key and value of the alarm's action.
        patience: The value of `patience`.
    """
    (limit_key, value, meaning), (action_key, chosen) = limit, action
    where = f"{config.locate(*keys)}: {'.'.join(keys)}"
    problems: list[str] = []
    if chosen not in ALARM_ACTIONS:
        problems.append(f"{where}.{action_key}: {chosen!r} is unknown; choose warn or stop")
    elif chosen == "stop" and value is None:
        problems.append(f"{where}: {action_key} stop needs {limit_key} ({meaning})")
    if value is not None and not value >= 0:
        problems.append(f"{where}.{limit_key}: must not be negative, got {value:g}")
    if patience is None:
        return problems
    where = f"{config.locate(*keys, 'patience')}: {'.'.join(keys)}.patience"
    if chosen != "stop":
        problems.append(f"{where}: has no effect without {action_key}: stop; set it, or remove patience")
    assert config.cpt.validation is not None
    if config.cpt.validation.every is None:
        problems.append(
            f"{where}: has no effect without cpt.validation.every, because the next validation is the last one; set "
            "every, or remove patience"
        )
    return problems


def _check_monitor(config: RunConfig) -> list[str]:
    problems: list[str] = []
    where = f"{config.locate('cpt', 'monitor', 'sinks')}: cpt.monitor.sinks"
    for name in config.cpt.monitor.sinks:
        if name not in OPTIONAL_SINKS:
            hint = nearest(name, OPTIONAL_SINKS) or f"; choose from {', '.join(OPTIONAL_SINKS)}"
            problems.append(f"{where}: {name!r} is unknown{hint}")
        elif not is_installed(name):
            package = PACKAGES[name]
            problems.append(f"{where}: {name} needs the package {package}; pip install {package}, or remove {name}")
    excess = config.cpt.monitor.slow_rank_excess
    if not 0 < excess < float("inf"):
        key = "cpt.monitor.slow_rank_excess"
        problems.append(f"{config.locate(*key.split('.'))}: {key} {excess}: must be above 0; 0.1 is ten percent")
    return problems


def _check_guards(config: RunConfig, layout: ParallelLayout) -> list[str]:
    problems: list[str] = []
    guards = config.cpt.guards
    wrapper = config.mindformers.get("runner_wrapper") or {}
    where = f"{config.locate('cpt', 'guards')}: cpt.guards"
    for name, spike in (("loss_spike", guards.loss_spike), ("grad_norm_spike", guards.grad_norm_spike)):
        if spike is None:
            continue
        if not spike.sigmas > 0 or spike.window_steps < 4:
            problems.append(f"{where}.{name}: needs sigmas above 0 and window_steps of at least 4")
        if config.mindformers.get("use_skip_data_by_global_norm"):
            problems.append(
                f"{config.locate('use_skip_data_by_global_norm')}: use_skip_data_by_global_norm and cpt.guards.{name} "
                "are both set; keep one"
            )
        if wrapper.get("type") not in GUARDED_WRAPPERS:
            problems.append(f"{where}.{name}: needs runner_wrapper.type {GUARDED_WRAPPERS[0]}")
    if guards.grad_norm_spike and not wrapper.get("use_clip_grad"):
        problems.append(f"{where}.grad_norm_spike: needs the gradient norm; set runner_wrapper.use_clip_grad to True")
    if guards.max_expert_load is not None:
        if not guards.max_expert_load > 1:
            problems.append(f"{where}.max_expert_load {guards.max_expert_load:g}: must be above 1, the mean load")
        model = find_section(config.mindformers, "model.model_config") or {}
        if model.get("model_type") not in MOE_FAMILIES:
            problems.append(f"{where}.max_expert_load: the model has no experts; remove it")
    if guards.loss_spike and layout.pipeline_parallel > 1:
        problems.append(
            f"{where}.loss_spike: with pipeline stages only the last stage has the loss before the update; "
            "use grad_norm_spike"
        )
    return problems
