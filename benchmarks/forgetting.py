"""Measure replay against forgetting, and re-warming against a constant rate, with a tiny model on the CPU.

    python benchmarks/forgetting.py [--seeds 1 2 3] [--workers 2] [--output-dir output/forgetting]
    python benchmarks/forgetting.py --trials replay_00 lora_04 lora_16 lora_16_fast     all weights against adapters

For each seed a tiny Qwen3 is trained on English prose (general), and training is continued with the same number of
tokens
  - on source code with 0, 5 and 25 % of the prose replayed (re-warming and cosine decay),
  - on source code with adapters (LoRA) instead of all weights, at the same and at twice the rate, and
  - on the same prose, at the constant final rate of the base and re-warmed to its peak.
Each run is a `run_cpt.py` command; complete runs are reused, and interrupted ones are resumed. Writes results.json,
results.md and, with all kinds of runs, forgetting.png. Without adapters, it takes about 20 minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
BASE_CONFIG = "configs/qwen3/cpt_qwen3_tiny_base.yaml"
NEXT_CONFIG = "configs/qwen3/cpt_qwen3_tiny.yaml"
GENERAL = "data/sample/packed/general_train_text_document"
BASE_TOKENS, NEXT_TOKENS = 450_000, 150_000
PEAK_LR, BASE_FINAL_LR = 4e-3, 4e-4  # from the base's configuration
REPLAYS = (0.0, 0.05, 0.25)
ADAPTERS = {"lora_04": (4, 1.0), "lora_16": (16, 1.0), "lora_16_fast": (16, 2.0)}  # rank, factor of the rate
SETS = ("general", "code")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A kind of continuation, with its name and settings."""

    name: str
    settings: tuple[str, ...]


def list_trials() -> list[Trial]:
    """Return the continuations to compare."""
    rewarm = make_schedule(PEAK_LR / 2)
    trials = []
    for fraction in REPLAYS:
        settings = [rewarm]
        if fraction:
            settings.append(f"cpt.sources.general={{path: {GENERAL}}}")
            settings.append(f"cpt.replay={{source: general, fraction: {fraction}}}")
        trials.append(Trial(name=f"replay_{round(fraction * 100):02d}", settings=tuple(settings)))
    for name, (rank, factor) in ADAPTERS.items():
        adapters = f"cpt.lora={{rank: {rank}, alpha: {2 * rank}}}"
        trials.append(Trial(name=name, settings=(make_schedule(factor * PEAK_LR / 2), adapters)))
    same = ("--train_dataset_dir", GENERAL)
    constant = f"cpt.schedule={{kind: constant, peak_lr: {BASE_FINAL_LR}, final_lr: {BASE_FINAL_LR}, warmup_tokens: 0}}"
    again = f"cpt.schedule={{kind: cosine, peak_lr: {PEAK_LR}, final_lr: {BASE_FINAL_LR}, warmup_tokens: 10K}}"
    trials.append(Trial(name="same_constant", settings=(*same, constant)))
    trials.append(Trial(name="same_rewarmed", settings=(*same, again)))
    return trials


def make_schedule(peak_lr: float) -> str:
    """Return the setting of a warmup to `peak_lr` and a cosine decay to a tenth of it."""
    return f"cpt.schedule={{kind: cosine, peak_lr: {peak_lr}, final_lr: {peak_lr / 10}, warmup_tokens: 10K}}"


def main() -> int:
    """Run all missing trials, and print and write the results. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--workers", type=int, default=2, help="number of concurrent runs")
    parser.add_argument("--output-dir", type=Path, default=Path("output/forgetting"))
    names = [trial.name for trial in list_trials()]
    parser.add_argument("--trials", nargs="+", choices=names, default=names, metavar="NAME", help=f"{', '.join(names)}")
    parser.add_argument("--base-tokens", type=int, default=BASE_TOKENS, metavar="N", help="[%(default)s]")
    parser.add_argument("--next-tokens", type=int, default=NEXT_TOKENS, metavar="N", help="[%(default)s]")
    args = parser.parse_args()
    subprocess.run(["bash", str(REPOSITORY / "scripts/prepare_sample.sh")], cwd=REPOSITORY, check=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    output_dir = args.output_dir.resolve()
    trials = [trial for trial in list_trials() if trial.name in args.trials]
    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(lambda seed: train_base(output_dir, seed, args.base_tokens), args.seeds))
        jobs = [(seed, trial) for seed in args.seeds for trial in trials]
        list(pool.map(lambda job: train_trial(output_dir, *job, args.next_tokens), jobs))
    results = {
        trial.name: [read_changes(output_dir / f"{trial.name}_{seed}") for seed in args.seeds] for trial in trials
    }
    (output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = render_table(results)
    (output_dir / "results.md").write_text(table, encoding="utf-8")
    if args.trials == names:
        draw(results, output_dir / "forgetting.png")
    print(f"{table}\n{output_dir}/results.json and results.md")
    return 0


def train_base(output_dir: Path, seed: int, num_tokens: int) -> None:
    """Train the base model for a seed."""
    train(BASE_CONFIG, output_dir, f"base_{seed}", seed, "random", (f"cpt.train_tokens={num_tokens}",))


def train_trial(output_dir: Path, seed: int, trial: Trial, num_tokens: int) -> None:
    """Train one continuation of a seed's base."""
    settings = (f"cpt.train_tokens={num_tokens}", *trial.settings)
    train(NEXT_CONFIG, output_dir, f"{trial.name}_{seed}", seed, str(output_dir / f"base_{seed}"), settings)


def train(config: str, output_dir: Path, name: str, seed: int, init_from: str, settings: tuple[str, ...]) -> None:
    """Run `run_cpt.py` to the end. A complete run exits immediately."""
    assignments = (
        f"seed={seed}",
        f"cpt.run_name={name}",
        f"cpt.init_from={init_from}",
        "cpt.checkpoint={keep_last: 1}",
    )
    command = [sys.executable, "run_cpt.py", "--config", config, "--output_dir", str(output_dir)]
    for setting in (*assignments, *settings):
        command += [setting] if setting in ("--train_dataset_dir", GENERAL) else ["--set", setting]
    print(f"{name} ...", flush=True)
    with (output_dir / f"{name}.log").open("w", encoding="utf-8") as log:
        subprocess.run(command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT, check=True)


def read_changes(run_dir: Path) -> dict[str, float]:
    """Return the change in each validation set's loss over the run, in nats per token."""
    losses: dict[str, list[float]] = {name: [] for name in SETS}
    for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record: dict[str, Any] = json.loads(line)
        if record["kind"] == "validation":
            losses[record["name"]].append(record["loss"])
    return {name: values[-1] - values[0] for name, values in losses.items()}


def render_table(results: dict[str, list[dict[str, float]]]) -> str:
    """Return mean ± standard deviation over the seeds as a Markdown table."""
    lines = ["| continuation | general loss | code loss |", "| --- | --- | --- |"]
    for name, changes in results.items():
        cells = []
        for domain in SETS:
            values = [change[domain] for change in changes]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):+.3f} ± {spread:.3f}")
        lines.append(f"| {name.replace('_', ' ')} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Plot all seeds and the mean, with forgetting against gain and re-warming against the constant rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (replay_axes, same_axes) = plt.subplots(1, 2, figsize=(10, 4.5), constrained_layout=True)
    for index, (name, changes) in enumerate((n, c) for n, c in results.items() if n.startswith("replay")):
        xs, ys = [-change["code"] for change in changes], [change["general"] for change in changes]
        replay_axes.scatter(xs, ys, color=f"C{index}", alpha=0.4)
        replay_axes.errorbar(
            statistics.mean(xs),
            statistics.mean(ys),
            xerr=statistics.stdev(xs) if len(xs) > 1 else 0,
            yerr=statistics.stdev(ys) if len(ys) > 1 else 0,
            fmt="o",
            color=f"C{index}",
            label=f"{int(name[-2:])} % replay",
        )
    replay_axes.set_xlabel("gain: decrease of the code loss (nats)")
    replay_axes.set_ylabel("forgetting: increase of the general loss (nats)")
    replay_axes.set_title("general → code")
    replay_axes.legend()
    replay_axes.grid(alpha=0.3)
    for index, name in enumerate(("same_constant", "same_rewarmed")):
        values = [change["general"] for change in results[name]]
        same_axes.bar(index, statistics.mean(values), color=f"C{index}", alpha=0.5)
        same_axes.scatter([index] * len(values), values, color="black", zorder=3)
    same_axes.set_xticks([0, 1], ["constant rate", "re-warmed"])
    same_axes.set_ylabel("change of the general loss (nats)")
    same_axes.set_title("continuing with the same data")
    same_axes.axhline(0, color="black", lw=0.8)
    same_axes.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
