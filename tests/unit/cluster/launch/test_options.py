from __future__ import annotations

import pytest

from ascend_cpt.cluster.launch.arguments import REPO_ROOT, USAGE, UsageError, parse_launch
from ascend_cpt.cluster.launch.options import OPTIONS, split_options
from ascend_cpt.errors import ClusterError

CMD = "run_cpt.py --config x.yaml --max-restarts 9"


def test_options_are_accepted_at_any_position() -> None:
    arguments = ["--max-restarts", "3", CMD, "2", "--stop-grace=60"]
    positional, values = split_options(arguments, {})
    assert positional == [CMD, "2"]
    defaults = {"--restart-delay": 5, "--rejoin-timeout": 600, "--hang-timeout": 1800, "--lost-node-timeout": 120}
    assert values == {**defaults, "--spare-nodes": 0, "--min-nodes": 0, "--max-restarts": 3, "--stop-grace": 60}


def test_options_default_to_the_environment() -> None:
    environ = {"ASCEND_CPT_MAX_RESTARTS": "4", "ASCEND_CPT_REJOIN_TIMEOUT_S": "30"}
    assert split_options([CMD], environ)[1] | {"--max-restarts": 4} == split_options([CMD], environ)[1]
    settings = parse_launch([CMD, "2", "--max-restarts", "0"], environ, REPO_ROOT)
    assert (settings.max_restarts, settings.rejoin_timeout_s, settings.num_workers) == (0, 30, 2)
    assert settings.script_arguments[-1] == "9"


@pytest.mark.parametrize("text", ["x", "-1", "", "1.5", "1234567890"])
def test_a_value_that_is_not_a_number_is_refused(text: str) -> None:
    with pytest.raises(ClusterError, match="--max-restarts must be a whole number"):
        split_options([CMD, f"--max-restarts={text}"], {})
    with pytest.raises(ClusterError, match="--max-restarts must be"):
        split_options([CMD, "--max-restarts"], {})


def test_an_invalid_variable_is_named() -> None:
    with pytest.raises(ClusterError, match="ASCEND_CPT_STOP_GRACE_S must be a whole number"):
        split_options([CMD], {"ASCEND_CPT_STOP_GRACE_S": "long"})


@pytest.mark.parametrize("word", ["never", "False", "output/run"])
def test_restarts_of_a_command_that_does_not_resume_are_refused(word: str) -> None:
    for command in (f"run_cpt.py --resume_training {word}", f"run_cpt.py --resume_training={word} --x"):
        with pytest.raises(ClusterError, match=f"the command has --resume_training {word}"):
            parse_launch([command, "2", "--max-restarts", "1"], {}, REPO_ROOT)
        parse_launch([command, "2"], {}, REPO_ROOT)
    parse_launch(["run_cpt.py --resume_training auto", "2", "--max-restarts", "1"], {}, REPO_ROOT)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(UsageError):
        parse_launch([CMD, "2", "--restarts", "3"], {}, REPO_ROOT)


def test_the_usage_names_every_option() -> None:
    assert all(option.name in USAGE and option.variable in USAGE for option in OPTIONS)


def test_the_launcher_port_is_next_to_the_master_port() -> None:
    six = [CMD, "4", "2", "10.0.0.1", "8118", "1"]
    assert parse_launch(six, {}, REPO_ROOT).launcher_port == 8120
    assert parse_launch(six, {"ASCEND_CPT_LAUNCHER_PORT": "9000"}, REPO_ROOT).launcher_port == 9000
    with pytest.raises(ClusterError, match="MASTER_PORT 65535 is too high"):
        parse_launch([CMD, "4", "2", "10.0.0.1", "65535", "1"], {}, REPO_ROOT)


SIX = (CMD, "16", "8", "10.0.0.1", "8118")


def test_spare_nodes_have_the_highest_ranks() -> None:
    settings = parse_launch([*SIX, "2", "--spare-nodes", "1"], {}, REPO_ROOT)
    assert (settings.num_nodes, settings.num_launchers, settings.is_spare) == (2, 3, True)
    assert settings.can_lose_nodes
    settings = parse_launch([*SIX, "1"], {"ASCEND_CPT_SPARE_NODES": "1"}, REPO_ROOT)
    assert (settings.is_spare, settings.place, settings.first_rank) == (False, 1, 8)
    with pytest.raises(ClusterError, match=r"NODE_RANK 3 is out of range: .* the job has 2 \(16 .*\) and 1 spare"):
        parse_launch([*SIX, "3", "--spare-nodes=1"], {}, REPO_ROOT)


@pytest.mark.parametrize("words", [["16"], ["16", "8", "10.0.0.1", "8118", "2"], []])
def test_the_number_of_nodes_from_a_scheduler_includes_the_spare_nodes(words: list[str]) -> None:
    slurm = {"SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_NODELIST": "gpu[1-3]", "SLURM_NODEID": "2"}
    settings = parse_launch([CMD, *words, "--spare-nodes", "1"], slurm, REPO_ROOT)
    assert (settings.num_workers, settings.num_local_workers, settings.node_rank) == (16, 8, 2)
    assert settings.is_spare


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CMD, "8", "--spare-nodes", "1"], "--spare-nodes 1: the job has one node, node 0, and no spare can take"),
        ([*SIX, "0", "--min-nodes", "3"], "--min-nodes 3 is more than the 2 nodes of the job"),
        ([*SIX, "0", "--spare-nodes", "-1"], "--spare-nodes must be a whole number of at least 0"),
        (
            [f"{CMD} --resume_training never", *SIX[1:], "0", "--min-nodes", "1"],
            "--min-nodes resumes from the newest checkpoint, but the command has --resume_training never",
        ),
    ],
)
def test_options_about_lost_nodes_that_do_not_fit_the_job(arguments: list[str], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        parse_launch(arguments, {}, REPO_ROOT)
    with pytest.raises(ClusterError, match="--spare-nodes 2 leaves none of NNODES=2"):
        parse_launch([CMD, "--spare-nodes", "2"], {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "a"}, REPO_ROOT)
