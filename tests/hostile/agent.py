"""A site agent as a hospital runs it, for the hostile bundle: its own user, data and keys that only it can read.

python -m tests.hostile.agent SOCKET HOME AGENT_UID RELAY_UID     (started as root, which it gives up)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cytosae_client.agent import AgentServer, forbid_memory_reads
from tests.federation import Federation


def main(socket_path: Path, home: Path, agent: int, relay: int) -> None:
    """Make data, keys and a session as root, hand them to the agent's user, become that user, serve."""
    data = home / "data"
    data.mkdir(parents=True)
    (data / "patient-7.txt").write_text("smear of patient-7")
    federation = Federation(home / "site")
    for path in (home, *home.rglob("*")):
        os.chown(path, agent, agent)
        if path.is_dir():
            path.chmod(0o700)
    os.chown(socket_path.parent, agent, relay)
    socket_path.parent.chmod(0o2750)  # the socket gets the relay's group
    os.setgroups([])
    os.setresgid(agent, agent, agent)
    os.setresuid(agent, agent, agent)
    forbid_memory_reads()
    os.chdir("/")
    server = AgentServer(
        socket_path,
        federation.sessions["site-0"].handle,
        allowed_uids=frozenset({relay, 0}),  # 0: the stock relay of the test's other site runs as root
        max_request_bytes=1 << 30,
        request_deadline_s=20.0,
    )
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
