"""Job checks before training: all processes have the same software, recipe and data, and storage is as configured."""

from __future__ import annotations

import logging
import os
import platform
from importlib import metadata
from typing import Any

from ascend_cpt.checkpoint.fingerprint import flatten
from ascend_cpt.cluster.job.channel import JobChannel
from ascend_cpt.cluster.job.checks import check_same, check_topology
from ascend_cpt.data.packed.manifest import verify_once
from ascend_cpt.run.resolved_run import ResolvedRun

SHARED_PATHS = "SHARED_PATHS"  # read by MindFormers
VERIFIED_NAME = ".verified.json"
PACKAGES = ("mindspore", "mindformers", "numpy", "safetensors")

logger = logging.getLogger(__name__)


def check_job(run: ResolvedRun, channel: JobChannel) -> None:
    """Check that the processes of a job are consistent; data files are read once per node.

    Raises:
        ClusterError: naming the node that differs and in what, or when another process failed.
        DataError: when a data file of this node differs from its manifest (without shared storage).
    """
    check_same(channel, "software", list_software())
    check_same(channel, "recipe", list_facts(run))
    storage = run.config.cpt.storage
    check_topology(channel, run.run_dir, shared=storage.shared)
    if storage.shared:
        # MindFormers recognizes only some file systems; this one was just checked to be shared.
        known = filter(None, [os.environ.get(SHARED_PATHS)])
        os.environ[SHARED_PATHS] = ",".join([*known, str(run.run_dir.absolute())])
    if not storage.shared and storage.verify_data:
        if channel.is_first_on_node:
            for dataset in (*run.sources, *run.validation):
                num_bytes = verify_once(dataset.manifest, run.run_dir / VERIFIED_NAME)
                logger.info("verified %s: %d bytes read", dataset.name, num_bytes)
        channel.all_gather("data verified", True)


def list_software() -> dict[str, str]:
    """Return the versions of the software that training depends on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}


def list_facts(run: ResolvedRun) -> dict[str, Any]:
    """Return everything that must be equal on all nodes, by a descriptive name."""
    fingerprint = run.fingerprint()
    del fingerprint["sources"]
    datasets = {f"data {dataset.name}": dataset.manifest.digest for dataset in (*run.sources, *run.validation)}
    tokenizers = {f"tokenizer of {dataset.name}": dataset.manifest.tokenizer.fingerprint for dataset in run.sources}
    layout = {f"layout {name}": value for name, value in vars(run.layout).items()}
    storage = {"storage.shared": run.config.cpt.storage.shared, "run folder": run.run_dir.name}
    return {**flatten(fingerprint), **datasets, **tokenizers, **layout, **storage}
