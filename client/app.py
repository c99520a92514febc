"""Fallback: a stock Flower ClientApp that carries the same bytes to the agent's socket.

For sites that cannot run `relay.py` (another Flower version, say). Flower starts a new process for each message
and puts the coordinator's bundle first on its import path, so this process is hostile by assumption: it holds
no data, no keys and no data code, and the agent treats it as it treats any caller. Start the SuperNode with
`--node-config 'agent-socket="/run/cytosae-relay/agent.sock"'`.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from .agent import call_agent
from .flower_blob import from_records, to_records

MAX_AGENT_S = 12 * 3600.0
app = ClientApp()


def query(message: Message, context: Context) -> Message:
    """Forward one message to the agent. Every failure becomes the same two words: no text leaves the site."""
    try:
        socket_path = Path(str(context.node_config["agent-socket"]))
        timeout_s = min(message.metadata.ttl, MAX_AGENT_S)
        data = call_agent(socket_path, from_records(message.content), timeout_s=timeout_s)
        return Message(to_records(data), reply_to=message)
    except Exception:
        return Message(Error(code=2, reason="relay error"), reply_to=message)


# A call and not a decorator: Flower's is untyped and would take the types off `query`.
app.query()(query)
