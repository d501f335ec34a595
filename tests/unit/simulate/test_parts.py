"""Parts of the simulation that need neither MindSpore nor a compiler."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.backend.simulated_rank.messages import ParameterOnRank
from ascend_cpt.config.loader import load_config
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.errors import ConfigError
from ascend_cpt.model.sizes import read_sizes
from ascend_cpt.plan.activations import count_layer_bytes
from ascend_cpt.plan.case import GIGABYTE
from ascend_cpt.run.planning.plan_run import Cluster, plan_run
from ascend_cpt.run.starting_point import select_model_identity
from ascend_cpt.simulate import run_rank
from ascend_cpt.simulate.communication import name_group, read_exchanges
from ascend_cpt.simulate.compare_slices import select_model_parameters
from ascend_cpt.simulate.compile_ranks import simulate_run
from ascend_cpt.simulate.explain_error import explain_error
from ascend_cpt.simulate.run_rank import make_environment, make_sections
from ascend_cpt.softnpu.environment import find_cann
from ascend_cpt.weights.hf_config import make_config

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIG = REPOSITORY / "tests/even_layouts/cpt_llama3_70b.yaml"
CLUSTER = Cluster(num_nodes=None, devices_per_node=8, device="910B", device_bytes=64 * GIGABYTE)
LAYOUT = ParallelLayout(world_size=16, data_parallel=2, tensor_parallel=2, pipeline_parallel=2, context_parallel=2)


@pytest.mark.parametrize(
    ("ranks", "name"),
    [
        ((0, 1), "tensor"),
        ((0, 2), "context"),
        ((1, 5), "data"),
        ((0, 8), "pipeline"),
        ((0, 2, 4, 6), "data × context"),
        (tuple(range(8)), "data × context × tensor"),
    ],
)
def test_groups_are_named_by_the_dimensions_in_which_ranks_differ(ranks: tuple[int, ...], name: str) -> None:
    assert name_group(ranks, LAYOUT) == name


def test_exchanges_are_summed_by_kind_and_group(tmp_path: Path) -> None:
    folder = tmp_path / "execute_order"
    folder.mkdir()
    (folder / "comm_execute_order.csv").write_text(
        "index,group,comm_rank,primitive,input_size,output_size\n"
        + '"1","a","0 1","AllGather","8","16"\n' * 4
        + '"2","b","0 8","Send","8","8"\n' * 2
        + '"3","c","0","AllReduce","8","8"\n',
        encoding="utf-8",
    )
    gather, send = read_exchanges(tmp_path, LAYOUT, num_steps=2)
    assert (gather.kind, gather.group, gather.count, gather.output_bytes) == ("AllGather", "tensor", 2, 32)
    assert (send.kind, send.group, send.count, send.ranks) == ("Send", "pipeline", 1, (0, 8))
    assert read_exchanges(tmp_path / "none", LAYOUT, num_steps=1) == []


def test_error_is_explained_with_the_key() -> None:
    config = load_config(CONFIG)
    text = "RuntimeError: The strategy is not\n  divisible by 3\n" + "-" * 40 + "\n- C++ Call Stack: nothing for you"
    explanation = explain_error(text, ending="", log="", config=config)
    assert "Call Stack" not in explanation and "\n" not in explanation
    assert "parallel_config" in explanation and "cpt_llama3_70b.yaml:" in explanation
    assert "not divisible by one of its values" in explanation
    assert "no known configuration key" in explain_error("ValueError: odd", ending="", log="", config=config)
    died = explain_error("", ending="ended by signal SIGKILL", log="[WARNING] x\nlast words\n", config=config)
    assert "SIGKILL" in died and "last words" in died and "WARNING" not in died


def test_installed_cann_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ASCEND_TOOLKIT_HOME", raising=False)
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    assert find_cann(os.environ) is None
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / "libascendcl.so").touch()
    assert find_cann(os.environ) == tmp_path
    run, _ = plan_run(CONFIG, {}, CLUSTER)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    environment = make_environment(run, 48, None)
    assert "LD_LIBRARY_PATH" not in environment
    assert (environment["RANK_ID"], environment["RANK_SIZE"], environment["MS_SIMULATION_LEVEL"]) == ("48", "64", "1")


def test_simulated_yaml_needs_no_files(tmp_path: Path) -> None:
    run, _ = plan_run(CONFIG, {}, CLUSTER)
    sections = make_sections(run, 1, tmp_path)
    loader = sections["train_dataset"]["data_loader"]
    assert loader == sections["train_dataset_task"]["dataset_config"]["data_loader"]
    assert loader["num_rows"] == 2 * 256 and not sections["load_checkpoint"]
    assert [callback["type"] for callback in sections["callbacks"]] == ["SimulationCallback"]


def test_rank_outside_the_cluster_is_refused() -> None:
    run, _ = plan_run(CONFIG, {}, CLUSTER)
    with pytest.raises(ConfigError, match="--ranks 64: the cluster has ranks 0 to 63"):
        simulate_run(run, {}, ranks=[0, 64], layers_per_stage=1, num_steps=1, timeout_s=1, report=lambda line: None)


def test_parameters_added_by_the_training_step_are_excluded() -> None:
    names = ["decoder.final_layernorm.weight", "adam_m.decoder.final_layernorm.weight", "accu_grads.x", "global_step"]
    parameters = [ParameterOnRank(name=name, shape=[1], tensor_shape=[1], stored_shape=[1]) for name in names]
    assert [parameter.name for parameter in select_model_parameters(parameters)] == names[:1]


def test_child_that_hangs_after_its_result_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hanging_child.py").write_text(
        "import pathlib, time\npathlib.Path('result.json').write_text('{}')\ntime.sleep(600)\n"
    )
    monkeypatch.setattr(run_rank, "MODULE", "hanging_child")
    monkeypatch.setattr(run_rank, "EXIT_WAIT_S", 1)
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ending = run_rank._run_process(tmp_path, tmp_path / "log", environment, 40, lambda line: None)
    assert ending == "" and time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model.model_config.pp_interleave_num": "2"}, "pp_interleave_num: '2'; expected a number of parts"),
        ({"model.model_config.pp_interleave_num": True}, "pp_interleave_num: True; expected a number of parts"),
        ({"model.model_config.pp_interleave_num": 0}, "pp_interleave_num: 0; expected a number of parts"),
        (
            {
                "model.model_config.pp_interleave_num": 2,
                "parallel.pipeline_config": {"pipeline_scheduler": "zero_bubble_v"},
            },
            "pp_interleave_num 2 needs parallel.pipeline_config.pipeline_scheduler 1f1b, not zero_bubble_v",
        ),
        (
            {
                "model.model_config.pp_interleave_num": 2,
                "parallel_config": {"data_parallel": 8, "model_parallel": 8, "pipeline_stage": 1},
            },
            "pp_interleave_num 2 needs pipeline_stage above 1; remove it",
        ),
        (
            {"recompute_config.recompute": [[4, 4, 4, 4], [4, 4, 4, 4]]},
            "one entry .True, False or number of layers. per pipeline stage",
        ),
    ],
)
def test_interleaved_pipelines_that_are_not_supported_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        plan_run(CONFIG, change, CLUSTER)


def test_residuals_in_float32_count() -> None:
    change = {"recompute_config.recompute": False}
    plain = plan_run(CONFIG, change, CLUSTER)[1].case
    fp32 = plan_run(CONFIG, {**change, "model.model_config.fp32_residual_connection": True}, CLUSTER)[1].case
    # Two tensors of (tokens / tensor parallel) x hidden with two bytes more an element.
    more = 2 * 2 * (8192 // fp32.layout.tensor_parallel) * 8192
    assert fp32.sequence_parallel and fp32.tokens_per_rank == 8192
    assert count_layer_bytes(fp32) - count_layer_bytes(plain) == more


@pytest.mark.parametrize("name", ["swiglu", "fusedswiglu"])
def test_mindformers_names_of_the_gated_silu_are_accepted_and_exported_as_silu(name: str) -> None:
    run, _ = plan_run(CONFIG, {"model.model_config.hidden_act": name}, CLUSTER)
    assert run.model["hidden_act"] == name
    assert make_config(run.model)["hidden_act"] == "silu"
    silu = {**run.model, "hidden_act": "silu"}
    assert read_sizes(run.model) == read_sizes(silu)  # what a Hugging Face start compares
    assert select_model_identity(run.model) == select_model_identity(silu)
