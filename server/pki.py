"""The study's own certificate authority: server certificates for weeks, client certificates for sites.

net/ca.key ca.crt            made once; the invite carries ca.crt
net/server.key server.crt    of the endpoint (30 days, made again when fewer than 10 are left)
net/superlink.key .crt       of the SuperLink on loopback
"""

from __future__ import annotations

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cytosae_core.errors import SetupError, VerificationError
from cytosae_core.tensors import write_atomic

CA_DAYS, SERVER_DAYS, SITE_DAYS, RENEW_DAYS = 730, 30, 365, 10
PEM = serialization.Encoding.PEM


class Authority:
    """The authority in a folder, made when missing.

    Raises:
        SetupError: keys that others can read, or files of another form.
    """

    def __init__(self, folder: Path, *, name: str = "study") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key = _key(folder / "ca.key")
        path = folder / "ca.crt"
        if not path.exists():
            subject = _name(f"CytoSAE {name}"[:64])
            made = (
                _builder(subject, subject, self._key.public_key(), CA_DAYS)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_usage(sign=True), critical=True)
                .sign(self._key, hashes.SHA256())
            )
            write_atomic(path, made.public_bytes(PEM))
        self.certificate = x509.load_pem_x509_certificate(path.read_bytes())

    @property
    def pem(self) -> str:
        """ca.crt."""
        return self.certificate.public_bytes(PEM).decode()

    def server(self, stem: str, hosts: list[str]) -> bool:
        """Make `stem`.crt and `stem`.key for these names or addresses unless they are good for RENEW_DAYS more;
        whether they were made."""
        path, key = self.folder / f"{stem}.crt", _key(self.folder / f"{stem}.key")
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        if path.exists() and days_left(path) > RENEW_DAYS and _names(path) == names:
            return False
        made = (
            _builder(_name(hosts[0][:64]), self.certificate.subject, key.public_key(), SERVER_DAYS)
            .add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        write_atomic(path, made.public_bytes(PEM))
        return True

    def site(self, request: str, site: str) -> str:
        """A site's client certificate (PEM) from its request; only the request's public key is taken.

        Raises:
            VerificationError: not a certificate request, not signed by its own key, or not P-256.
        """
        try:
            csr = x509.load_pem_x509_csr(request.encode())
            public = csr.public_key()
            good = csr.is_signature_valid and isinstance(public, ec.EllipticCurvePublicKey)
        except ValueError:
            good = False
        if not good or not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp256r1":
            raise VerificationError("Expected a certificate request with a P-256 key, signed by it.")
        made = (
            _builder(_name(site), self.certificate.subject, public, SITE_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(PEM).decode()


def days_left(path: Path) -> float:
    """Days until a certificate ends; negative when it has."""
    return pem_days_left(path.read_text())


def pem_days_left(pem: str) -> float:
    """The same of a certificate's text."""
    found = x509.load_pem_x509_certificate(pem.encode())
    return (found.not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86400


def _names(path: Path) -> x509.SubjectAlternativeName:
    found = x509.load_pem_x509_certificate(path.read_bytes())
    return found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A P-256 key in PEM, mode 0600, made when missing."""
    if not path.exists():
        made = ec.generate_private_key(ec.SECP256R1())
        data = made.private_bytes(
            PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
    if path.stat().st_mode & 0o077:
        raise SetupError("Expected a private key that only its owner can read.", hint="chmod 600 the key.")
    found = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise SetupError("Expected an elliptic-curve private key.", hint="Remove it: a new one is made.")
    return found


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=sign, crl_sign=sign, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks of hospitals differ
        .not_valid_after(now + timedelta(days=days))
    )
