"""`cytosae site join`: from an invite to a home with keys, policy and protocol, and an enrolment that was sent."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cytosae_core.canonical import sha256_hex
from cytosae_core.errors import SetupError
from cytosae_core.invite import Invite, make_enrolment, read_invite
from cytosae_core.keys import SigningKey
from cytosae_core.policy import SitePolicy, demand, write_policy
from cytosae_core.policy.signatures import sign_policy
from cytosae_core.tensors import write_atomic

from .home import Home

POLICY_DAYS, ASK_S = 180, 30.0
PEM, OPENSSH = serialization.Encoding.PEM, serialization.Encoding.OpenSSH


def join(data: bytes, folder: Path, *, approval: str = "never") -> Home:
    """Make (or complete) the home for an invite; nothing is sent.

    Raises:
        VerificationError, StudyError: the invite is not good. SetupError: the folder is another study's home.
    """
    invite, home = read_invite(data), Home(folder.resolve())
    if (home.folder / "invite.json").exists():
        before = home.invite
        if (before.study_key, before.site, before.protocol) != (
            invite.study_key,
            invite.site,
            invite.protocol,
        ):
            raise SetupError(
                "Expected an empty folder: it is the home of another study.", hint="Choose --home."
            )
    home.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("keys", "agent", "logs"):
        (home.folder / name).mkdir(exist_ok=True, mode=0o700)
    write_atomic(home.folder / "invite.json", data)
    write_atomic(home.folder / "study.yaml", yaml.safe_dump(invite.protocol, sort_keys=False).encode())
    write_atomic(home.folder / "study-key.pub", f"{invite.study_key}\n".encode())
    write_atomic(home.folder / "ca.crt", invite.ca.encode())
    home.keep(study=invite.study, site=invite.site, endpoint=invite.endpoint)
    _keys(home)
    _policy(home, invite, approval)
    return home


def enrolment(home: Home) -> bytes:
    """What goes to the coordinator: public keys only."""
    invite = home.invite
    private = serialization.load_pem_private_key((home.keys / "tls.key").read_bytes(), password=None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise SetupError("Expected keys/tls.key as `site join` made it.")
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, invite.site)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(private, hashes.SHA256())
    node = (home.keys / "node.pub").read_text().strip()
    return make_enrolment(home.site_key, invite, node_key=node, csr=csr.public_bytes(PEM).decode())


def post_enrolment(home: Home, data: bytes) -> None:
    """Send it. Raises SetupError when the endpoint can't be reached or refuses."""
    status, _, _ = ask(home, "POST", "/enrol", data)
    if status != 202:
        raise SetupError(
            f"Expected the coordinator to take the enrolment, got {status}.",
            hint="Was the invite used or replaced? Ask for a new one.",
        )


def fetch_start(home: Home) -> None:
    """Download the study's public start file, unless it is there; its digest is the protocol's."""
    from cytosae_core.sae.checkpoint import save_checkpoint
    from cytosae_core.tensors import unpack_tensors

    wanted, path = home.invite.start_sha256, home.folder / "start.safetensors"
    if not wanted or (path.exists() and sha256_hex(path.read_bytes()) == wanted):
        return
    status, body, _ = ask(home, "GET", f"/files/{wanted}")
    if status != 200 or sha256_hex(body) != wanted:
        raise SetupError(
            "Expected the study's start file, of the digest in the protocol.", hint="Ask again later."
        )
    save_checkpoint(home.folder / "start", unpack_tensors(body), {"study": home.invite.config.digest})


def ask(home: Home, method: str, path: str, body: bytes = b"") -> tuple[int, bytes, str]:
    """One request to the study's front door: status, body, its Date header.

    Raises:
        SetupError: it can't be reached, or its certificate is not the study's.
    """
    host, _, port = str(home.facts["endpoint"]).rpartition(":")
    context = ssl.create_default_context(cafile=str(home.folder / "ca.crt"))
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=ASK_S)
    try:
        connection.request(method, path, body=body or None)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers.get("Date", "")
    except ssl.SSLError as error:
        raise SetupError(
            f"Expected the study's own certificate at {host}:{port}, got {error.reason}.",
            hint="A firewall that opens TLS must let this address through.",
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise SetupError(
            f"Expected the coordinator at {host}:{port}, got {type(error).__name__}.",
            hint=_why_not(error),
        ) from None
    finally:
        connection.close()


def _why_not(error: Exception) -> str:
    """What to do when the coordinator can't be reached."""
    if isinstance(error, ConnectionRefusedError):
        return "The machine is there, but nothing listens: ask the coordinator whether the study is started."
    if isinstance(error, socket.gaierror):
        return (
            "This machine does not know the name: ask IT about DNS, or the coordinator for the right address."
        )
    return "Outgoing TCP to this address must be open; see deploy/README.md."


def _keys(home: Home) -> None:
    """Keys of transport, made once: TLS for the tunnel, the SuperNode's, and one for loopback."""
    _private(home.keys / "tls.key", ec.SECP256R1(), serialization.PrivateFormat.TraditionalOpenSSL)
    node = _private(home.keys / "node", ec.SECP384R1(), serialization.PrivateFormat.OpenSSH)
    if node is not None:
        public = node.public_key().public_bytes(OPENSSH, serialization.PublicFormat.OpenSSH)
        write_atomic(home.keys / "node.pub", public)
    local = _private(home.keys / "local.key", ec.SECP256R1(), serialization.PrivateFormat.TraditionalOpenSSL)
    if local is not None:
        write_atomic(home.keys / "local.crt", _local_certificate(local))
    secret = home.keys / "supernode.secret"
    if not secret.exists():
        _write_private(secret, os.urandom(32))
    home.site_key  # noqa: B018 - made when missing


def _private(
    path: Path, curve: ec.EllipticCurve, form: serialization.PrivateFormat
) -> ec.EllipticCurvePrivateKey | None:
    if path.exists():
        return None
    made = ec.generate_private_key(curve)
    _write_private(path, made.private_bytes(PEM, form, serialization.NoEncryption()))
    return made


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)


def _local_certificate(key: ec.EllipticCurvePrivateKey) -> bytes:
    """For 127.0.0.1 of this machine, signed by itself."""
    import ipaddress

    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(PEM)


def _policy(home: Home, invite: Invite, approval: str) -> None:
    """The default policy of the study's profile with its budgets, signed by a key that the officer takes away."""
    path = home.folder / "site-policy.yaml"
    if path.exists():
        return
    officer = SigningKey.load_or_create(home.folder / "officer.key")
    epsilon, delta = _promise(invite)
    asked, today = demand(invite.config), datetime.now(UTC).date()
    policy = SitePolicy(
        name=invite.config.profile.replace("_", "-"), profile=invite.config.profile, site=invite.site,
        valid_from=today.isoformat(), valid_until=(today + timedelta(days=POLICY_DAYS)).isoformat(),
        officers=(officer.public_hex,), rounds=asked.rounds, messages_total=2 * asked.messages,
        bytes_total=2 * asked.bytes, max_message_bytes=asked.message_bytes, metrics_per_round=asked.numbers,
        approval=approval, epsilon_total=epsilon, delta_max=delta,
    )  # fmt: skip
    write_policy(path, policy)
    sign_policy(path, officer, home.agent)


def _promise(invite: Invite) -> tuple[str, str]:
    """Profile dp: what this one study may spend on a patient. What several may spend an officer decides."""
    terms = invite.config.privacy
    if not terms.promised:
        return ("", "")
    return format(Decimal(repr(terms.epsilon)), "f"), format(Decimal(repr(terms.delta)), "f")
