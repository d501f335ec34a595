"""Trains proxies: one launch after another, each with several proxies where one process can train them."""

from __future__ import annotations

import functools
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ascend_cpt.errors import EXIT_FAILURE, CptError
from ascend_cpt.files import write_text
from ascend_cpt.mixture_search.proxies import RUN_NAME, Proxy, Setup, make_sections, to_blend
from ascend_cpt.mixture_search.results import Result, Results, read_value
from ascend_cpt.monitor.history import JUDGED_KINDS, METRICS_NAME, read_metrics
from ascend_cpt.monitor.sinks import format_duration
from ascend_cpt.processes import die_with_parent
from ascend_cpt.run.launch.reason import find_reason
from ascend_cpt.tune.trial import REPOSITORY, TrialSettings, make_command

POLL_S = 0.5
KILL_AFTER_S = 30.0
PROGRESS_EVERY_S = 30.0
MEASURED_KINDS = ("design", "given", "confirm", "anneal")


class SearchError(CptError):
    """No proxy can be trained. The exit code is 1: the command line is valid."""

    exit_code = EXIT_FAILURE


class Session:
    """Trains the proxies that have no result yet.

    Args:
        folder: The folder of the search; launches write to its subfolder `launches`.
        setup: What all proxies have in common.
        results: Where results are stored as soon as a proxy is done.
        launch: Command that starts a job on several nodes, or None.
        timeout_s: A launch without a new step for this time is ended.
        linear: Whether the learning rate decays linearly from the first step.
        report: Takes progress lines.
    """

    def __init__(
        self,
        folder: Path,
        setup: Setup,
        results: Results,
        *,
        launch: str | None,
        timeout_s: float,
        linear: bool,
        report: Callable[[str], None],
    ) -> None:
        self._folder, self._setup, self._results = folder.absolute(), setup, results
        self._launch_command, self._timeout_s, self._linear, self._report = launch, timeout_s, linear, report
        self._num_done = self._num_total = 0
        self._start_s, self._num_trained = time.monotonic(), 0

    def train(self, proxies: Sequence[Proxy]) -> list[Result]:
        """Train the missing proxies and return the results of all, in order.

        Raises:
            SearchError: a launch ends before its first step.
            KeyboardInterrupt: the launch was ended. The proxy in training has no result, but all others are kept.
        """
        self._num_total = len(proxies)
        while pending := [one for one in proxies if self._results.find(one) is None]:
            self._num_done = self._num_total - len(pending)
            seed = pending[0].seed
            group = [one for one in pending if one.seed == seed]
            self._train_group(group if self._setup.in_one_process else group[:1])
        found = [self._results.find(one) for one in proxies]
        return [result for result in found if result is not None]

    def _train_group(self, group: Sequence[Proxy]) -> None:
        folder = self._folder / "launches" / "now"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        steps, budget = self._setup.steps, self._setup.run.budget
        sections = make_sections(
            self._setup.config,
            [to_blend(self._setup.names, one.shares) for one in group],
            steps=steps,
            linear=self._linear,
            seed=group[0].seed,
            output_dir=folder / "output",
            tokens_per_step=budget.tokens_per_step,
        )
        config = folder / "proxies.yaml"
        write_text(config, yaml.safe_dump(sections, sort_keys=False))
        launch = _Launch(folder, self._make_command(config, folder, len(group) * steps))
        harvest = Harvest(
            folder / "output" / RUN_NAME / METRICS_NAME,
            group,
            self._results,
            steps=steps,
            measures=self._setup.measures,
        )
        try:
            reason = self._follow(launch, harvest)
        finally:
            launch.stop()
        self._collect(harvest)
        if harvest.num_done == len(group):
            return
        if not harvest.has_begun:
            console = self._folder / "launches" / "failed.txt"
            shutil.copy(launch.console, console)
            raise SearchError(f"the proxies cannot be trained: {reason}; see {console}")
        failed = group[harvest.num_done]
        self._results.add(Result(kind=failed.kind, shares=failed.shares, seed=failed.seed, error=reason))
        self._report(f"failed: {self._describe(failed)}: {reason}")

    def _make_command(self, config: Path, folder: Path, num_steps: int) -> list[str]:
        if self._setup.workers == 1 and self._launch_command is None:
            script = [sys.executable, str(REPOSITORY / "run_cpt.py"), "--config", str(config)]
            return [*script, "--resume_training", "never", "--no-verify"]
        settings = TrialSettings(
            base=config,
            workers=self._setup.workers,
            launch=self._launch_command,
            num_steps=num_steps,
            num_warmup_steps=0,
            timeout_s=self._timeout_s,
        )
        return make_command(config, folder, settings)

    def _follow(self, launch: _Launch, harvest: Harvest) -> str:
        """Wait for the end of a launch and store results meanwhile. Return why it ended, if it failed."""
        last_step, since_s, printed_s = 0, time.monotonic(), time.monotonic()
        while (code := launch.poll()) is None:
            time.sleep(POLL_S)
            self._collect(harvest)
            now_s = time.monotonic()
            if harvest.step != last_step:
                last_step, since_s = harvest.step, now_s
            elif now_s - since_s > self._timeout_s:
                return f"no new step for {self._timeout_s:.0f} s (--timeout)"
            if now_s - printed_s > PROGRESS_EVERY_S and harvest.step:
                self._report(f"step {harvest.step} of {harvest.total_steps}{self._estimate(harvest)}")
                printed_s = now_s
        return launch.find_reason(code) if code else "the launch ended early"

    def _collect(self, harvest: Harvest) -> None:
        for result in harvest.collect():
            self._num_done += 1
            changes = ", ".join(
                f"{name} {value:.4f} ({value - self._results.base[name]:+.4f})" for name, value in result.values.items()
            )
            proxy = Proxy(kind=result.kind, shares=result.shares, seed=result.seed)
            outcome = f"failed: {result.error}" if result.error else changes
            self._report(
                f"{self._num_done}/{self._num_total} {self._describe(proxy)}: {outcome}{self._estimate(harvest)}"
            )

    def _describe(self, proxy: Proxy) -> str:
        blend = to_blend(self._setup.names, proxy.shares)
        return f"{{{', '.join(f'{name}: {share:g}' for name, share in blend.items())}}} seed {proxy.seed}"

    def _estimate(self, harvest: Harvest) -> str:
        """Return the time left, from the speed of this launch."""
        left_steps = (self._num_total - self._num_done) * self._setup.steps - harvest.step % self._setup.steps
        if left_steps <= 0 or not harvest.step:
            return ""
        return f"; about {format_duration(left_steps * harvest.elapsed_s / harvest.step)} left"


class _Launch:
    """A running job."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self.console = folder / "console.txt"
        environment = {**os.environ, "ASCEND_CPT_PYTHON": sys.executable, "ASCEND_CPT_MAX_RESTARTS": "0"}
        with self.console.open("wb") as output:
            self._job = subprocess.Popen(
                list(command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )

    def poll(self) -> int | None:
        """Return the exit code, or None while the job is running."""
        return self._job.poll()

    def stop(self) -> None:
        """End a running job: SIGTERM, and SIGKILL after a while."""
        for number, wait_s in ((signal.SIGTERM, KILL_AFTER_S), (signal.SIGKILL, None)):
            if self._job.poll() is not None:
                return
            os.killpg(self._job.pid, number)
            try:
                self._job.wait(wait_s)
            except subprocess.TimeoutExpired:
                continue

    def find_reason(self, code: int) -> str:
        """Return the first error in the output."""
        return find_reason(self.console.read_text(encoding="utf-8", errors="replace"), code)


class Harvest:
    """Reads the results of a launch from its `metrics.jsonl`: the values at the end of each proxy.

    Args:
        path: The `metrics.jsonl`.
        group: The proxies of the launch.
        results: Where they are stored.
        steps: Number of steps of a proxy.
        measures: Names of the sets and tasks that a result needs.
    """

    def __init__(
        self, path: Path, group: Sequence[Proxy], results: Results, *, steps: int, measures: Sequence[str]
    ) -> None:
        self._path, self._group, self._results = path, group, results
        self._steps, self._measures = steps, measures
        self.num_done = 0
        """Number of proxies with a result."""
        self.step = 0
        """Last recorded step."""
        self.elapsed_s = 0.0
        """Time of the steps."""
        self._size = -1
        self._last_s = time.monotonic()

    @property
    def total_steps(self) -> int:
        return len(self._group) * self._steps

    @property
    def has_begun(self) -> bool:
        """Whether the proxy in training has finished a step, so that a failure is its own."""
        return self.step > self.num_done * self._steps

    def collect(self) -> list[Result]:
        """Store and return the results that are new."""
        size = self._path.stat().st_size if self._path.is_file() else 0
        if size == self._size:
            return []
        self._size = size
        records = list(read_metrics(self._path)) if size else []
        steps = [record for record in records if record["kind"] == "step"]
        if steps:
            self.step = int(steps[-1]["step"])
            self.elapsed_s = sum(float(record["step_time_s"]) for record in steps)
        judged = [record for record in records if record["kind"] in JUDGED_KINDS]
        self._store_base(judged)
        new = []
        while self.num_done < len(self._group):
            step = (self.num_done + 1) * self._steps
            values = {record["name"]: read_value(record) for record in judged if int(record["step"]) == step}
            if set(values) != set(self._measures):
                break
            new.append(self._add(values))
        return new

    def _store_base(self, judged: Sequence[dict[str, Any]]) -> None:
        first = [record for record in judged if int(record["step"]) == 0]
        if not self._results.base and {record["name"] for record in first} == set(self._measures):
            self._results.set_base(first)

    def _add(self, values: dict[str, float]) -> Result:
        proxy, now_s = self._group[self.num_done], time.monotonic()
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        result = Result(
            kind=proxy.kind,
            shares=proxy.shares,
            seed=proxy.seed,
            values={} if bad else {name: values[name] for name in self._measures},
            error=f"{bad[0]} is not finite" if bad else "",
            seconds=now_s - self._last_s,
        )
        self._results.add(result)
        self._last_s = now_s
        self.num_done += 1
        return result
