"""The readers of hostile input, with the number of cases of each in a whole run."""

from __future__ import annotations

from tests.attacks.fuzz.targets import configuration, data, messages, servers, state, weights

TARGETS = (
    *messages.TARGETS,
    *servers.TARGETS,
    *state.TARGETS,
    *weights.TARGETS,
    *data.TARGETS,
    *configuration.TARGETS,
)
