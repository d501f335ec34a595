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
