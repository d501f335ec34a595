"""Checks before training that all processes have the same software, recipe and data, and storage as configured."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from ascend_cpt.checkpoint.fingerprint import flatten
from ascend_cpt.cluster.job.channel import JobChannel
from ascend_cpt.cluster.job.checks import check_same, check_topology, wait_for_work
from ascend_cpt.data.packed.manifest import Manifest
from ascend_cpt.data.packed.verified import find_record, verify_once
from ascend_cpt.run.resolved_run import ResolvedRun

SHARED_PATHS = "SHARED_PATHS"  # read by MindFormers
PACKAGES = ("mindspore", "mindformers", "numpy", "safetensors")

NO_HAYSTACKS: Mapping[str, Manifest] = {}

logger = logging.getLogger(__name__)


def check_job(run: ResolvedRun, channel: JobChannel, haystacks: Mapping[str, Manifest] = NO_HAYSTACKS) -> None:
    """Check that the processes of a job are consistent. Each machine reads the data files once.

    Args:
        run: The resolved run.
        channel: The channel to the other processes.
        haystacks: The dataset of each needle task.

    Raises:
        ClusterError: when a node differs (the message says which and how), or another process failed.
        DataError: when a data file differs from its manifest.
    """
    check_same(channel, "software", list_software())
    facts = list_facts(run) | {f"data of task {name}": manifest.digest for name, manifest in haystacks.items()}
    check_same(channel, "recipe", facts)
    storage = run.config.cpt.storage
    check_topology(channel, run.run_dir, shared=storage.shared)
    if storage.shared:
        # MindFormers recognizes only some shared file systems; the check above showed that this one is shared.
        known = filter(None, [os.environ.get(SHARED_PATHS)])
        os.environ[SHARED_PATHS] = ",".join([*known, str(run.run_dir.absolute())])
    if storage.verify_data:
        verifies = channel.rank == 0 if storage.shared else channel.is_first_on_node
        manifests = [*(dataset.manifest for dataset in (*run.sources, *run.validation)), *haystacks.values()]
        verify_data(manifests if verifies else (), channel)


def verify_data(manifests: Iterable[Manifest], channel: JobChannel) -> None:
    """Compare dataset files with their checksums unless this machine already has. All processes call this.

    Args:
        manifests: The datasets that this process verifies. It waits while other processes verify theirs.
        channel: The channel to the other processes.

    Raises:
        ClusterError: when another process failed.
        DataError: when a data file differs from its manifest.
    """

    def verify() -> None:
        for manifest in manifests:
            num_bytes = verify_once(manifest, find_record())
            logger.info("verified %s: %d bytes read", manifest.path, num_bytes)

    wait_for_work(channel, "data verified", verify)


def list_software() -> dict[str, str]:
    """Return the versions of the software that training depends on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}


def list_facts(run: ResolvedRun) -> dict[str, Any]:
    """Return every value that must be the same on all nodes, keyed by a descriptive name."""
    fingerprint = run.fingerprint()
    del fingerprint["sources"]
    datasets = {f"data {dataset.name}": dataset.manifest.digest for dataset in (*run.sources, *run.validation)}
    tokenizers = {f"tokenizer of {dataset.name}": dataset.manifest.tokenizer.fingerprint for dataset in run.sources}
    layout = {f"layout {name}": value for name, value in vars(run.layout).items()}
    storage = {"storage.shared": run.config.cpt.storage.shared, "run folder": run.run_dir.name}
    return {**flatten(fingerprint), **datasets, **tokenizers, **layout, **storage}
