"""Checks of `cpt.environment`, variables that the libraries read in the training processes, and `cpt.compile_cache`."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from ascend_cpt.config.loader import RunConfig
from ascend_cpt.config.parallel_layout import ParallelLayout, uses_cpu
from ascend_cpt.config.sections import nearest
from ascend_cpt.errors import ConfigError

# Others are refused: they would change results, addresses or files, and a configuration may come from elsewhere.
KNOWN = (
    "CPU_AFFINITY",  # MindFormers: bind each process to its share of the cores
    "HCCL_BUFFSIZE",  # HCCL: MB of communication buffer per group
    "HCCL_OP_EXPANSION_MODE",  # HCCL: where collectives are expanded (AI_CPU, AIV, HOST)
    "MS_ALLOC_CONF",  # MindSpore: options of the memory pool
)


def find_environment_problems(config: RunConfig, layout: ParallelLayout) -> list[str]:
    """Return a problem for every variable that may not be set, every wrong value, and a cache that would not work."""
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
    """Set the variables of a checked configuration. Call it before MindSpore is imported.

    Raises:
        ConfigError: when the shell has set one of them to another value.
    """
    for name, value in variables.items():
        if environ.get(name, str(value)) != str(value):
            raise ConfigError(
                f"cpt.environment.{name} is {value}, but the environment has {name}={environ[name]}; unset one of them"
            )
    environ.update({name: str(value) for name, value in variables.items()})
