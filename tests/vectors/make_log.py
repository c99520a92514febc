"""Makes `log.json`, the audit format as bytes: fixed keys, fixed clock. `python -m tests.vectors.make_log`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cytosae_core.audit.log import Log, Witness, origin_of, tile_files
from cytosae_core.audit.note import vkey
from cytosae_core.canonical import sha256_hex
from cytosae_core.keys import SigningKey

HERE = Path(__file__).parent
PROTOCOL = sha256_hex(b"protocol of the example")
PARTY = "site-1"


def key(number: int) -> SigningKey:
    """Ed25519 key whose seed is one byte 32 times."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


def make(folder: Path) -> dict[str, Any]:
    """The vector, with its working files below `folder`."""
    signing, log_key, cosign, new, witness_key = (key(number) for number in range(1, 6))
    origin, other = origin_of(PROTOCOL, PARTY), origin_of(PROTOCOL, "coordinator")
    digest = sha256_hex(b"x")
    job = {"kind": "round", "round": 1, "request_sha256": digest}
    sized = {"bytes": 4096, "sha256": digest}
    log = Log.open(
        folder / "log",
        origin=origin,
        party=PARTY,
        study="example",
        protocol=PROTOCOL,
        signing=signing,
        log_key=log_key,
        clock=lambda: 1_700_000_000,
    )
    keys = {
        "signing": signing.public_hex,
        "log": vkey(origin, "log", log_key.public_hex),
        "cosign": vkey(origin, "cosign", cosign.public_hex),
    }
    log.append("enrol", {"role": "site", "software": "0.1.0", "keys": keys})
    log.append("refused", {**job, "code": "expired"})
    egress = {
        **{**job, "job": digest, "status": "ok", "wire": sized, "payload": sized, "policy_sha256": digest},
        **{"profile": "masked", "min_units": 11, "dp": {"mechanism": "none"}, "approval": "automatic"},
        "tensors": [{"name": "delta", "dtype": "float16", "shape": [2, 3], "suppressed": 1}],
        "gate": [{"id": "sign reader", "value": "0.31", "limit": "0.7"}],
        "budget": {"rounds": 1, "messages": 2, "bytes": 4096},
        "repeats": -1,
    }
    log.append("egress", egress, [("wire", digest), ("payload", digest)])
    log.rotate("signing", signing, new)
    log.append("key_revoke", {"role": "signing", "key": signing.public_hex, "from_seq": 4})
    log.append("withdraw", {"scope": "patient", "payloads_deleted": 1})
    note = log.checkpoint()
    witness = Witness(folder / "witness", witness_key, other, clock=lambda: 1_700_000_001)
    line = witness.cosign(note, keys["log"], [], from_size=0)
    log.add_cosignature(line, vkey(other, "cosign", witness_key.public_hex))
    return {
        "protocol": PROTOCOL,
        "party": PARTY,
        "keys": keys,
        "witness": vkey(other, "cosign", witness_key.public_hex),
        "leaves": [leaf.decode() for leaf in log.leaves(0, log.size)],
        "signers": [signing.public_hex] * 4 + [new.public_hex] * 2,
        "checkpoint": log.cosigned_checkpoint().decode(),
        "inclusion_of_2": [item.hex() for item in log.inclusion(2, log.size)],
        "consistency_from_4": {
            "root": log.tree.root(4).hex(),
            "proof": [item.hex() for item in log.consistency(4, log.size)],
        },
        "files": {path: sha256_hex(data) for path, data in tile_files(log, note).items()},
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        text = json.dumps(make(Path(name)), indent=1, ensure_ascii=False, sort_keys=True)
    (HERE / "log.json").write_text(text + "\n")
