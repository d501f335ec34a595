"""Checks of `cpt.validation`, `cpt.monitor` and `cpt.guards`."""

from __future__ import annotations

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.monitoring_schema import ON_INCREASE, OPTIONAL_SINKS
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.config.sections import nearest
from ascend_cpt.config.task_schema import ON_DROP
from ascend_cpt.monitor.trackers import PACKAGES, is_installed
from ascend_cpt.tasks.check import find_task_problems

GUARDED_WRAPPERS = ("MFTrainOneStepCell", "MFPipelineWithLossScaleCell")


def find_monitoring_problems(config: RunConfig, layout: ParallelLayout) -> list[str]:
    """Return a problem for every setting of validation, sinks and guards that cannot work."""
    return _check_alarms(config) + _check_tasks(config) + _check_sinks(config) + _check_guards(config, layout)


def _check_alarms(config: RunConfig) -> list[str]:
    problems: list[str] = []
    for name, entry in (config.cpt.validation.sets if config.cpt.validation else {}).items():
        keys = ("cpt", "validation", "sets", name)
        where = f"{config.locate(*keys)}: {'.'.join(keys)}"
        if entry.on_increase not in ON_INCREASE:
            problems.append(f"{where}.on_increase: {entry.on_increase!r} is unknown; choose warn or stop")
        elif entry.on_increase == "stop" and entry.max_increase is None:
            problems.append(f"{where}: on_increase stop needs max_increase (nats over the loss before the first step)")
        if entry.max_increase is not None and not entry.max_increase >= 0:
            problems.append(f"{where}.max_increase: must not be negative, got {entry.max_increase:g}")
        if entry.patience is not None:
            problems.extend(find_patience_problems(config, keys, "on_increase", entry.on_increase))
    return problems


def find_patience_problems(config: RunConfig, keys: tuple[str, ...], action_key: str, action: str) -> list[str]:
    """Return a problem for a `patience` without effect; `keys` lead to its section, `action_key` is warn or stop."""
    validation = config.cpt.validation
    assert validation is not None
    where = f"{config.locate(*keys, 'patience')}: {'.'.join(keys)}.patience"
    problems = []
    if action != "stop":
        problems.append(f"{where}: has no effect without {action_key}: stop; set it, or remove patience")
    if validation.every is None:
        problems.append(
            f"{where}: has no effect without cpt.validation.every, because the next validation is the last one; set "
            "every, or remove patience"
        )
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
        where = f"{config.locate(*keys)}: {'.'.join(keys)}"
        if task.on_drop not in ON_DROP:
            problems.append(f"{where}.on_drop: {task.on_drop!r} is unknown; choose warn or stop")
        elif task.on_drop == "stop" and task.max_drop is None:
            problems.append(f"{where}: on_drop stop needs max_drop (change of the score from before the first step)")
        if task.max_drop is not None and not task.max_drop >= 0:
            problems.append(f"{where}.max_drop: must not be negative, got {task.max_drop:g}")
        if task.patience is not None:
            problems.extend(find_patience_problems(config, keys, "on_drop", task.on_drop))
    return problems


def _check_sinks(config: RunConfig) -> list[str]:
    problems: list[str] = []
    where = f"{config.locate('cpt', 'monitor', 'sinks')}: cpt.monitor.sinks"
    for name in config.cpt.monitor.sinks:
        if name not in OPTIONAL_SINKS:
            hint = nearest(name, OPTIONAL_SINKS) or f"; choose from {', '.join(OPTIONAL_SINKS)}"
            problems.append(f"{where}: {name!r} is unknown{hint}")
        elif not is_installed(name):
            package = PACKAGES[name]
            problems.append(f"{where}: {name} needs the package {package}; pip install {package}, or remove {name}")
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
    if guards.loss_spike and layout.pipeline_parallel > 1:
        problems.append(
            f"{where}.loss_spike: with pipeline stages only the last one has the loss before the update; "
            "use grad_norm_spike"
        )
    return problems
