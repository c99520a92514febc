"""`cytosae site`: the hospital's commands. Nothing here sends anything by itself."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from . import door_cli, home_cli, policy_cli


def register(parser: argparse.ArgumentParser) -> None:
    """Add the commands."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    home_cli.register(commands)
    door_cli.register(commands)
    policy_cli.register(commands)
    agent = commands.add_parser("agent", help="serve one study from the token store, on a Unix socket")
    agent.add_argument("--data", type=Path, required=True, help="folder of images")
    agent.add_argument("--name", required=True, help="this site's name in the study")
    agent.add_argument("--study", type=Path, required=True, help="protocol (study.yaml)")
    agent.add_argument(
        "--study-key", required=True, help="the study's public key, 64 hex digits, or a file with it"
    )
    agent.add_argument("--weights", type=Path, help="the encoder's weights (not for dinov2-s-demo)")
    agent.add_argument("--preset", help="folder layout of a public data set: see `cytosae data presets`")
    agent.add_argument(
        "--start", type=Path, help="the study's public start file: the first dictionary must match it"
    )
    agent.add_argument("--home", type=Path, required=True, help="folder for key, state and token store")
    agent.add_argument("--ledger", type=Path, help="folder of the ledger of all studies (default: in --home)")
    agent.add_argument("--socket", type=Path, required=True)
    agent.add_argument(
        "--policy", default="masked", help="signed policy file (built-in names: simulations only)"
    )
    agent.add_argument(
        "--relay-uid", type=int, default=None, help="user id of the relay (default: this user)"
    )
    agent.add_argument(
        "--simulation", action="store_true", help="this is a simulation on public or synthetic cells"
    )
    agent.set_defaults(run=_agent)
    relay = commands.add_parser("relay", help="carry sealed bytes between Flower's SuperNode and the agent")
    relay.add_argument("address", help="runtime address of the SuperNode, host:port")
    relay.add_argument("socket", type=Path)
    relay.add_argument("--secret-file", type=Path)
    relay.set_defaults(run=_relay)


def _agent(options: argparse.Namespace) -> int:
    from .serve import serve_agent

    uid = os.getuid() if options.relay_uid is None else options.relay_uid
    return serve_agent(options, uid)


def _relay(options: argparse.Namespace) -> int:
    from cytosae_core.errors import SetupError

    from .relay import main

    host, _, port = options.address.rpartition(":")
    if not host or not port.isdigit():
        raise SetupError(
            f"Expected an address host:port, got {options.address!r}.", hint="For example 127.0.0.1:9094."
        )
    secret = ["--secret-file", str(options.secret_file)] if options.secret_file else []
    return main([options.address, str(options.socket), *secret])
