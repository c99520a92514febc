"""The study's certificate authority, and the tunnel that shows a site's certificate to the front door."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cytosae_client import tunnel
from cytosae_client.join import join
from cytosae_core.config import StudyConfig
from cytosae_core.errors import SetupError, VerificationError
from cytosae_core.invite import make_invite
from cytosae_core.keys import SigningKey
from cytosae_server import pki
from cytosae_server.pki import Authority
from tests.flower_processes import free_ports

PEM = serialization.Encoding.PEM


def request(key: ec.EllipticCurvePrivateKey, name: str = "whatever") -> str:
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(PEM).decode()


def test_server_certificates_live_for_weeks_and_are_made_again_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path, name="s")
    assert authority.server("server", ["study.example.org", "192.0.2.7"])
    assert not authority.server("server", ["study.example.org", "192.0.2.7"])
    assert pki.days_left(tmp_path / "server.crt") < pki.SERVER_DAYS
    assert authority.server("server", ["other.example.org"])  # other names
    monkeypatch.setattr(pki, "RENEW_DAYS", pki.SERVER_DAYS + 1)
    assert authority.server("server", ["other.example.org"])  # soon over
    assert Authority(tmp_path).certificate == authority.certificate


def test_a_sites_certificate_carries_its_name_whatever_it_asked_for(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    found = x509.load_pem_x509_certificate(
        authority.site(request(ec.generate_private_key(ec.SECP256R1()), "birch"), "alder").encode()
    )
    assert found.subject.rfc4514_string() == "CN=alder"
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    found.verify_directly_issued_by(authority.certificate)
    assert found.not_valid_after_utc - found.not_valid_before_utc < timedelta(days=pki.SITE_DAYS + 1)


@pytest.mark.parametrize(
    "text", ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----"]
)
def test_what_is_no_request_gets_no_certificate(tmp_path: Path, text: str) -> None:
    with pytest.raises(VerificationError):
        Authority(tmp_path).site(text, "alder")


def test_a_key_of_another_curve_gets_no_certificate(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="P-256"):
        Authority(tmp_path).site(request(ec.generate_private_key(ec.SECP384R1())), "alder")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    Authority(tmp_path)
    (tmp_path / "ca.key").chmod(0o644)
    with pytest.raises(SetupError, match="owner"):
        Authority(tmp_path)


def home_of(folder: Path, authority: Authority, site: str) -> Path:
    """A joined home with its certificate."""
    study = StudyConfig(name="tunnel", sites=("alder", "birch", "cedar"))
    data, _ = make_invite(
        SigningKey.generate(), study, site, endpoint="127.0.0.1:1", ca=authority.pem, start_sha256="", days=1
    )
    home = join(data, folder)
    key = serialization.load_pem_private_key((home.keys / "tls.key").read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    (home.keys / "client.crt").write_text(authority.site(request(key), site))
    return home.folder


@pytest.mark.parametrize("good", [True, False])
def test_the_tunnel_shows_the_certificate_and_passes_bytes_both_ways(tmp_path: Path, good: bool) -> None:
    """A door that wants a client certificate of the study's authority; a site of another authority gets nothing."""
    authority = Authority(tmp_path / "ca")
    authority.server("server", ["127.0.0.1"])
    mine = home_of(tmp_path / "home", authority if good else Authority(tmp_path / "other"), "alder")
    (mine / "ca.crt").write_text(authority.pem)
    assert asyncio.run(_through(tmp_path / "ca", mine)) == ((b"olleh", "alder") if good else (b"", ""))


async def _through(ca: Path, home: Path) -> tuple[bytes, str]:
    outside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    outside.load_cert_chain(ca / "server.crt", ca / "server.key")
    outside.load_verify_locations(ca / "ca.crt")
    outside.verify_mode = ssl.CERT_REQUIRED
    seen: list[str] = []

    async def door(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        subject = dict(pair[0] for pair in writer.get_extra_info("peercert")["subject"])
        seen.append(subject["commonName"])
        writer.write((await reader.readexactly(5))[::-1])
        await writer.drain()
        writer.close()

    far, near = free_ports(2)
    server = await asyncio.start_server(door, "127.0.0.1", far, ssl=outside)
    work = asyncio.create_task(tunnel.serve(home / "keys", home / "ca.crt", f"127.0.0.1:{far}", near))
    await asyncio.sleep(0.2)
    trust = ssl.create_default_context(cafile=str(home / "keys" / "local.crt"))
    got = b""
    with contextlib.suppress(OSError, ssl.SSLError):
        reader, writer = await asyncio.open_connection("127.0.0.1", near, ssl=trust)
        writer.write(b"hello")
        got = await reader.read(5)
        writer.close()
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work
    server.close()
    return got, "".join(seen)
