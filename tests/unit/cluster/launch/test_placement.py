"""Which launchers run the next attempt, decided without processes or clocks."""

from __future__ import annotations

import pytest

from ascend_cpt.cluster.launch.coordination.placement import FENCE_S, Placement

TIMEOUT_S = 120.0
HOSTS = {0: "a", 1: "b", 2: "c", 3: "d", 4: "e"}


def place(num_nodes: int, *, spares: int = 0, minimum: int = 0, started: bool = True) -> Placement:
    made = Placement(
        num_nodes=num_nodes, num_spares=spares, min_nodes=minimum, lost_timeout_s=TIMEOUT_S, now_s=0.0, hosts=HOSTS
    )
    if started:
        for number in range(num_nodes):
            made.arrive(number)
        assert made.choose(set(range(num_nodes + spares)), now_s=0.0) == tuple(range(num_nodes))
    return made


def test_the_first_attempt_runs_on_the_lowest_numbers_as_soon_as_they_have_joined() -> None:
    placement = place(2, spares=1, started=False)
    assert placement.choose({0, 2}, now_s=1.0) is None
    placement.arrive(1)
    assert placement.choose({0, 1, 2}, now_s=1.0) == (0, 1)
    assert placement.reason == ""


def test_a_spare_replaces_a_node_that_never_connects() -> None:
    placement = place(2, spares=1, started=False)
    placement.arrive(0)
    assert placement.choose({0, 2}, now_s=TIMEOUT_S - 1) is None
    assert placement.choose({0, 2}, now_s=TIMEOUT_S + 1) == (0, 2)
    assert placement.reason == "node 1 (b) did not connect within 120 s; node 2 (c), a spare, takes its place"


def test_no_job_starts_on_fewer_nodes_than_it_was_given() -> None:
    placement = place(2, minimum=1, started=False)
    placement.arrive(0)
    assert placement.choose({0}, now_s=10 * TIMEOUT_S) is None


def test_a_spare_takes_over_the_rank_of_a_lost_node_once_its_workers_must_have_ended() -> None:
    placement = place(3, spares=2)
    placement.lose(1, now_s=100.0, reason="disconnected")
    assert placement.choose({0, 2, 3, 4}, now_s=100.0 + FENCE_S - 1) is None
    assert placement.choose({0, 2, 3, 4}, now_s=100.0 + FENCE_S) == (0, 3, 2)
    assert placement.reason == "node 1 (b) was lost: disconnected; node 3 (d), a spare, takes its place"
    # The next restart keeps these nodes, without the reason of the one before.
    assert placement.choose({0, 2, 3, 4}, now_s=200.0) == (0, 3, 2)
    assert placement.reason == ""


def test_a_silent_node_is_given_more_time_to_end_its_workers() -> None:
    placement = place(2, spares=1)
    placement.lose(1, now_s=0.0, reason="sent no heartbeat", silent_s=45.0)
    assert placement.choose({0, 2}, now_s=FENCE_S + 1) is None
    assert placement.choose({0, 2}, now_s=FENCE_S + 45.0) == (0, 2)


def test_a_node_that_returns_at_once_keeps_its_rank() -> None:
    placement = place(2, spares=1)
    placement.lose(1, now_s=0.0, reason="disconnected")
    placement.arrive(1)
    assert placement.choose({0, 1, 2}, now_s=1.0) == (0, 1)
    assert placement.reason == ""


def test_a_node_that_returns_after_its_replacement_is_a_spare() -> None:
    placement = place(2, spares=1)
    placement.lose(1, now_s=0.0, reason="disconnected")
    assert placement.choose({0, 2}, now_s=FENCE_S) == (0, 2)
    placement.arrive(1)
    assert placement.choose({0, 1, 2}, now_s=50.0) == (0, 2)
    placement.lose(2, now_s=60.0, reason="disconnected")
    assert placement.choose({0, 1}, now_s=60.0 + FENCE_S) == (0, 1)


def test_members_that_still_end_their_workers_are_waited_for() -> None:
    placement = place(3, spares=1, minimum=1)
    placement.lose(1, now_s=0.0, reason="disconnected")
    assert placement.choose({0, 3}, now_s=1000.0) is None  # node 2 is connected but has not joined
    assert placement.choose({2, 3}, now_s=1000.0) is None  # neither has node 0


def test_without_a_spare_the_job_continues_on_the_other_nodes_after_the_limit() -> None:
    placement = place(4, minimum=2)
    placement.lose(1, now_s=0.0, reason="disconnected")
    assert placement.choose({0, 2, 3}, now_s=TIMEOUT_S - 1) is None
    assert placement.choose({0, 2, 3}, now_s=TIMEOUT_S) == (0, 2, 3)
    assert placement.reason == "node 1 (b) was lost: disconnected; the job continues on 3 of 4 nodes"
    placement.lose(0, now_s=0.0, reason="x")  # node 0 runs the coordinator: it is waited for
    assert placement.choose({2, 3}, now_s=1000.0) is None


def test_spares_are_used_before_the_number_of_nodes_falls() -> None:
    placement = place(3, spares=1, minimum=1)
    for number in (1, 2):
        placement.lose(number, now_s=0.0, reason="disconnected")
    assert placement.choose({0, 3}, now_s=FENCE_S) is None
    assert placement.choose({0, 3}, now_s=TIMEOUT_S) == (0, 3)
    assert placement.reason == (
        "node 1 (b) was lost: disconnected; node 2 (c) was lost: disconnected; node 3 (d), a spare, takes the place of "
        "node 1; the job continues on 2 of 3 nodes"
    )


def test_the_number_of_nodes_must_fit_the_run() -> None:
    placement = place(4, minimum=1)
    placement.lose(2, now_s=0.0, reason="disconnected")
    assert placement.choose({0, 1, 3}, now_s=TIMEOUT_S, fitting=frozenset({1, 2})) == (0, 1)
    assert placement.reason == "node 2 (c) was lost: disconnected; the job continues on 2 of 4 nodes"
    # Node 3 waits until there are enough nodes for the full size.
    assert placement.choose({0, 1, 3}, now_s=TIMEOUT_S, fitting=frozenset({1, 2})) == (0, 1)
    assert placement.choose({0, 1, 2, 3}, now_s=TIMEOUT_S, fitting=frozenset({1, 2})) == (0, 1, 2, 3)
    assert placement.reason == "node 2 (c) and node 3 (d) join; the job continues on 4 of 4 nodes"


@pytest.mark.parametrize("fitting", [frozenset({1}), frozenset[int]()])
def test_fewer_nodes_than_the_minimum_never_run(fitting: frozenset[int]) -> None:
    placement = place(3, minimum=2)
    placement.lose(2, now_s=0.0, reason="disconnected")
    assert not placement.can_lose({2}, {0, 1}, fitting)
    assert placement.choose({0, 1}, now_s=1e6, fitting=fitting) is None
    assert (
        placement.explain_waiting({0, 1}, fitting) == "; the run does not fit on the remaining nodes (2; --min-nodes 2)"
    )


def test_which_losses_the_job_survives() -> None:
    placement = place(3, spares=1)
    assert placement.can_lose({1}, {0, 2, 3}, None)
    assert not placement.can_lose({1, 2}, {0, 3}, None)
    assert not placement.can_lose({1}, {0, 2}, None)  # the spare is not connected
    assert not placement.can_lose({0}, {1, 2, 3}, None)
    placement = place(3, spares=1, minimum=2)
    assert placement.can_lose({1, 2}, {0, 3}, None)
    assert placement.can_lose({1}, {0, 2}, None)
    assert placement.can_lose({1}, {0, 2}, frozenset({2}))
    assert not placement.can_lose({1}, {0, 2}, frozenset({1}))
    assert place(3, minimum=3).explain_waiting({0, 1}, None) == ""


def test_an_excluded_node_is_not_chosen_until_its_launcher_is_started_again() -> None:
    placement = place(2, spares=1)
    placement.exclude(1, now_s=0.0, reason="its workers failed twice in a row")
    assert placement.choose({0, 1, 2}, now_s=0.0) == (0, 2)
    assert placement.reason == (
        "node 1 (b) is no longer used: its workers failed twice in a row; node 2 (c), a spare, takes its place"
    )
    assert placement.choose({0, 1}, now_s=1.0) is None
    placement.lose(2, now_s=0.0, reason="disconnected")
    assert placement.choose({0, 1}, now_s=1000.0) is None
    placement.lose(1, now_s=1000.0, reason="disconnected")
    placement.arrive(1)
    assert placement.choose({0, 1}, now_s=1001.0) == (0, 1)


def test_an_excluded_node_is_left_out_without_a_spare_too() -> None:
    placement = place(3, minimum=2)
    placement.exclude(1, now_s=0.0, reason="its workers failed twice in a row")
    assert placement.choose({0, 1, 2}, now_s=0.0) == (0, 2)
