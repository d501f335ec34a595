"""Checks `cpt.compile_cache` and `cpt.environment` (variables that libraries read in the training processes)."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.parallel_layout import ParallelLayout, uses_cpu
from ascend_cpt.config.sections import nearest
from ascend_cpt.errors import ConfigError

# Other variables are refused because they could change results, addresses or files; the config may be untrusted.
KNOWN = (
    "CPU_AFFINITY",  # MindFormers: bind each process to its share of the cores
    "HCCL_BUFFSIZE",  # HCCL: MB of communication buffer per group
    "HCCL_OP_EXPANSION_MODE",  # HCCL: where collectives are expanded (AI_CPU, AIV, HOST)
    "MS_ALLOC_CONF",  # MindSpore: options of the memory pool
)


def find_environment_problems(config: RunConfig, layout: ParallelLayout) -> list[str]:
    """Return a problem for each forbidden variable, each invalid value, and a cache that would not work."""
    problems = []
    if config.cpt.compile_cache and not uses_cpu(config) and layout.world_size > 1:
        problems.append(
            f"{config.locate('cpt', 'compile_cache')}: cpt.compile_cache: remove it; a graph that MindSpore 2.9 loads "
            "from its cache lacks the layouts of the parameters, which a job of several devices needs for checkpoints"
        )
    for name, value in config.cpt.environment.items():
        where = f"{config.locate('cpt', 'environment', name)}: cpt.environment.{name}"
        if name not in KNOWN:
            hint = nearest(name, KNOWN) or f"; choose from {', '.join(KNOWN)}, or set it in the shell"
            problems.append(f"{where}: not a variable that a configuration may set{hint}")
        elif isinstance(value, bool) or not isinstance(value, (str, int)):
            problems.append(f"{where}: expected text (in quotes) or a whole number, got {value!r}")
    return problems


def set_environment(variables: Mapping[str, Any], environ: MutableMapping[str, str]) -> None:
    """Set the variables from a checked configuration. Call this before MindSpore is imported.

    Raises:
        ConfigError: when the shell has already set one of the variables to a different value.
    """
    for name, value in variables.items():
        if environ.get(name, str(value)) != str(value):
            raise ConfigError(
                f"cpt.environment.{name} is {value}, but the environment has {name}={environ[name]}; unset one of them"
            )
    environ.update({name: str(value) for name, value in variables.items()})
