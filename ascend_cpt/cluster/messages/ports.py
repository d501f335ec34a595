"""A job's ports besides MASTER_PORT, and timing constants for the launchers' connections."""

from __future__ import annotations

import socket

# The coordinator listens on MASTER_PORT plus this offset; MASTER_PORT + 1 is the workers' job channel.
LAUNCHER_PORT_OFFSET = 2
PORTS_OF_A_JOB = LAUNCHER_PORT_OFFSET + 1
LAUNCHER_PORT_VARIABLE = "ASCEND_CPT_LAUNCHER_PORT"
CHANNEL_PORT_VARIABLE = "ASCEND_CPT_AGREEMENT_PORT"
# Set by the launcher: the address where rank 0 listens for other workers, and the file with the workers' key.
CHANNEL_HOST_VARIABLE = "ASCEND_CPT_CHANNEL_HOST"
CHANNEL_KEY_VARIABLE = "ASCEND_CPT_CHANNEL_KEY_FILE"
HEARTBEAT_S = 2.0
# A peer that sends nothing for this long is considered lost. Shorter network outages are tolerated.
HEARTBEAT_TIMEOUT_S = 45.0


def are_ports_free(first: int) -> bool:
    """Return whether the ports that a job with this MASTER_PORT listens on are free."""
    return all(map(_is_free, range(first, first + PORTS_OF_A_JOB)))


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True
