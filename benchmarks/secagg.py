"""What a secure sum costs: all sites and the coordinator in one process, and the plain sum of the same vectors.

    python -m benchmarks.secagg --sites 5 --parameters 10000000 [--drop 1] --json

`bytes_per_parameter` is what one site sends in all five stages (the site that sends most); `exact` compares with the
plain sum in int64. Floor: the same vectors as uint32, added up.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytosae_core.canonical import canonical_json
from cytosae_core.keys import SigningKey
from cytosae_core.privacy.secagg import Collector, Party, SecureSum, Words

BOUND = 10**6
Vectors = dict[str, NDArray[np.int64]]


class Sent:
    """Bytes that each site sent."""

    def __init__(self, sites: list[str]) -> None:
        self.bytes = dict.fromkeys(sites, 0)

    def message(self, site: str, message: dict[str, Any]) -> dict[str, Any]:
        """Count a JSON message."""
        self.bytes[site] += len(canonical_json(message))
        return message

    def words(self, site: str, words: Words) -> Words:
        """Count a masked vector."""
        self.bytes[site] += words.nbytes
        return words


def secure_sum(
    terms: SecureSum, keys: dict[str, SigningKey], vectors: Vectors, dropouts: set[str], sent: Sent
) -> NDArray[np.int64]:
    """All five stages; `dropouts` leave before they send a masked vector."""
    parties = {site: Party(terms, site, keys[site]) for site in keys}
    collector = Collector(terms)
    for site, party in parties.items():
        collector.add_keys(sent.message(site, party.keys()))
    announced = collector.close_keys()
    for site, party in parties.items():
        collector.add_shares(sent.message(site, party.shares(announced)))
    boxes = collector.close_shares()
    left = {site: party for site, party in parties.items() if site not in dropouts}
    for site, party in left.items():
        collector.add_masked(site, sent.words(site, party.masked(vectors[site], boxes[site])))
    survivors = collector.close_masked()
    for site, party in left.items():
        collector.add_confirmation(sent.message(site, party.confirm(survivors)))
    request = collector.close_confirm()
    for site, party in left.items():
        collector.add_unmasked(sent.message(site, party.unmask(request)))
    return collector.total()


def plain_sum(words: list[Words]) -> Words:
    """The floor: the same vectors without any protection."""
    total = np.zeros_like(words[0])
    for vector in words:
        np.add(total, vector, out=total)
    return total


def main() -> int:
    """Print seconds of the protocol and of the floor, bytes upwards and whether the sum is exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--drop", type=int, default=0, help="sites that drop out before their masked vector")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keys = {f"site-{index:03d}": SigningKey.generate() for index in range(options.sites)}
    roster = {site: key.public_hex for site, key in keys.items()}
    terms = SecureSum("benchmark", roster, options.parameters, BOUND)
    drawn = np.random.default_rng(1)
    vectors = {site: drawn.integers(-BOUND, BOUND + 1, options.parameters) for site in keys}
    dropouts, sent = set(list(keys)[: options.drop]), Sent(list(keys))
    survivors = [vector for site, vector in vectors.items() if site not in dropouts]
    wall, cpu = time.perf_counter(), time.process_time()
    total = secure_sum(terms, keys, vectors, dropouts, sent)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    words = [vector.astype(np.uint32) for vector in survivors]
    plain_sum(words)  # warm-up
    started = time.perf_counter()
    plain_sum(words)
    floor = time.perf_counter() - started
    result = {
        "sites": options.sites,
        "parameters": options.parameters,
        "threshold": terms.threshold,
        "dropouts": options.drop,
        "seconds": round(wall, 3),
        "cpu_seconds": round(cpu, 3),
        "floor_seconds": round(floor, 4),
        "bytes_per_parameter": round(max(sent.bytes.values()) / options.parameters, 4),
        "bytes_beside_the_vector": max(sent.bytes.values()) - 4 * options.parameters,
        "exact": bool((total == sum(survivors)).all()),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(result) if options.json else result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
