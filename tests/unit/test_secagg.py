"""Secure sums: exact, of the sum only, and refused whenever something does not fit (guarantees S1 to S9)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy.stats import chisquare

from cytosae_core.canonical import canonical_json, parse_json
from cytosae_core.errors import CytosaeError, MessageError, StudyError, VerificationError
from cytosae_core.keys import SigningKey
from cytosae_core.privacy import secagg, secagg_parts
from cytosae_core.privacy.secagg import (
    Collector,
    Party,
    SecureSum,
    default_threshold,
    require_room,
    tolerated,
)
from cytosae_core.privacy.secagg_parts import (
    BLOCK_WORDS,
    PRIME,
    SHARE_BYTES,
    blend,
    derive,
    join_shares,
    pair_key,
    public_of,
    split_secret,
)

SIZE, BOUND = 300, 10**6
KEYS = {f"site-{letter}": SigningKey.generate() for letter in "abcdefg"}
STAGES = ("keys", "shares", "masked", "confirm", "unmask")


def terms_for(sites: int, context: str = "round 1", **changes: Any) -> SecureSum:
    roster = {site: key.public_hex for site, key in list(KEYS.items())[:sites]}
    return SecureSum(**{"context": context, "roster": roster, "size": SIZE, "bound": BOUND, **changes})


def parties_of(terms: SecureSum) -> dict[str, Party]:
    return {site: Party(terms, site, KEYS[site]) for site in terms.roster}


def vectors_of(terms: SecureSum, seed: int = 1) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(seed)
    return {site: drawn.integers(-terms.bound, terms.bound + 1, terms.size) for site in terms.roster}


def wire(message: Any) -> Any:
    """Every message is JSON."""
    return parse_json(canonical_json(message))


class Sum:
    """One sum in this process. `leaves` names, for a site, the first stage that it does not answer."""

    def __init__(self, terms: SecureSum, leaves: Mapping[str, str] | None = None, seed: int = 1) -> None:
        self.terms, self.leaves = terms, leaves or {}
        self.parties, self.vectors = parties_of(terms), vectors_of(terms, seed)
        self.collector = Collector(terms)
        self.keys: list[dict[str, Any]] = []
        self.boxes: dict[str, dict[str, str]] = {}
        self.words: dict[str, np.ndarray] = {}
        self.announcement: dict[str, Any] = {}
        self.request: dict[str, Any] = {}

    def there(self, stage: str) -> list[Party]:
        gone = {site for site, left in self.leaves.items() if STAGES.index(left) <= STAGES.index(stage)}
        return [party for site, party in self.parties.items() if site not in gone]

    def to(self, stage: str) -> Sum:
        """Run all stages up to and with this one."""
        for name in STAGES[: STAGES.index(stage) + 1]:
            getattr(self, f"_{name}")()
        return self

    def _keys(self) -> None:
        for party in self.there("keys"):
            self.collector.add_keys(wire(party.keys()))
        self.keys = wire(self.collector.close_keys())

    def _shares(self) -> None:
        for party in self.there("shares"):
            self.collector.add_shares(wire(party.shares(self.keys)))
        self.boxes = wire(self.collector.close_shares())

    def _masked(self) -> None:
        for party in self.there("masked"):
            self.words[party.site] = party.masked(self.vectors[party.site], self.boxes[party.site])
            self.collector.add_masked(party.site, self.words[party.site])
        self.announcement = wire(self.collector.close_masked())

    def _confirm(self) -> None:
        for party in self.there("confirm"):
            self.collector.add_confirmation(wire(party.confirm(self.announcement)))
        self.request = wire(self.collector.close_confirm())

    def _unmask(self) -> None:
        for party in self.there("unmask"):
            self.collector.add_unmasked(wire(party.unmask(self.request)))

    def total(self) -> np.ndarray:
        return self.to("unmask").collector.total()


def refused(reason: str, call: Callable[[], object], kind: type[CytosaeError] = MessageError) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind and caught.value.reason == reason
    assert str(caught.value).startswith("Expected ")


# S1


@pytest.mark.parametrize("sites", [3, 4, 5, 7])
def test_s1_the_sum_is_exact(sites: int) -> None:
    run = Sum(terms_for(sites))
    total = run.total()
    assert total.dtype == np.int64 and (total == sum(run.vectors.values())).all()
    assert (run.collector.total() == total).all()  # asked twice


@pytest.mark.parametrize("size", [1, BLOCK_WORDS - 1, BLOCK_WORDS, BLOCK_WORDS + 1, 3 * BLOCK_WORDS + 7])
def test_s1_any_length_in_blocks(size: int) -> None:
    run = Sum(terms_for(3, size=size))
    assert (run.total() == sum(run.vectors.values())).all()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("site", ["site-a", "site-c", "site-e"])
def test_s1_a_site_drops_out_at_any_stage(stage: str, site: str) -> None:
    run = Sum(terms_for(5), {site: stage})
    total = run.total()
    counted = STAGES.index(stage) > STAGES.index("masked")  # its vector was there
    assert (total == sum(v for name, v in run.vectors.items() if counted or name != site)).all()
    assert run.announcement["dropouts"] == ([site] if stage == "masked" else [])


@pytest.mark.parametrize("stages", list(itertools.combinations_with_replacement(STAGES, 2)))
def test_s1_two_sites_drop_out_at_any_two_stages(stages: tuple[str, str]) -> None:
    run = Sum(terms_for(5, threshold=3), {"site-b": stages[0], "site-d": stages[1]})
    total = run.total()
    gone = {site for site, left in run.leaves.items() if STAGES.index(left) <= STAGES.index("masked")}
    assert (total == sum(v for name, v in run.vectors.items() if name not in gone)).all()


@pytest.mark.parametrize("stage", STAGES)
def test_s1_with_fewer_than_the_threshold_there_is_no_sum(stage: str) -> None:
    run = Sum(terms_for(5), {"site-b": stage, "site-d": stage})
    with pytest.raises(StudyError, match="no sum"):
        run.total()
    with pytest.raises(CytosaeError):
        run.collector.total()


@pytest.mark.parametrize("sites", [3, 5, 7])
@pytest.mark.parametrize("sign", [-1, 1])
def test_s1_no_overflow_at_the_largest_numbers(sites: int, sign: int) -> None:
    bound = (2**31 - 1) // sites
    run = Sum(terms_for(sites, bound=bound))
    run.vectors = {site: np.full(SIZE, sign * bound) for site in run.vectors}
    assert (run.total() == sign * bound * sites).all()


def test_s1_the_mask_is_what_the_paper_says() -> None:
    """By the other formula: ChaCha20 in one piece, Python integers, secrets read before they are gone."""
    run = Sum(terms_for(3)).to("shares")
    own = {site: party._secrets for site, party in run.parties.items()}
    run._masked()

    def stream(key: bytes) -> np.ndarray:
        cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()
        return np.frombuffer(cipher.update(bytes(4 * SIZE)), "<u4").astype(object)

    for site, words in run.words.items():
        expected = run.vectors[site].astype(object) + stream(derive(own[site].seed, run.terms, "self"))
        for peer in run.parties.keys() - {site}:
            key = pair_key(own[peer].mask, public_of(own[site].mask), run.terms, site, peer)
            expected += stream(key) * (1 if peer > site else -1)
        assert (words == (expected % 2**32).astype(np.uint32)).all()


# S2


def test_s2_a_forged_or_foreign_signature_is_refused() -> None:
    run = Sum(terms_for(3)).to("keys")
    for index, name in itertools.product(range(3), ("mask_key", "box_key")):
        changed = [dict(message) for message in run.keys]
        changed[index][name] = public_of(X25519PrivateKey.generate())  # a coordinator in the middle
        refused("SIG", lambda: run.parties["site-a"].shares(changed), VerificationError)  # noqa: B023
        refused("SIG", lambda: Collector(run.terms).add_keys(changed[index]), VerificationError)  # noqa: B023
    other = SigningKey.generate()
    forged = Party(
        replace(run.terms, roster={**run.terms.roster, "site-b": other.public_hex}), "site-b", other
    )
    refused("CONTEXT", lambda: run.parties["site-a"].shares([run.keys[0], forged.keys(), run.keys[2]]))
    body = {**forged.keys(), "context": run.terms.digest}
    body["signature"] = other.sign(
        secagg_parts.KEYS, canonical_json({k: v for k, v in body.items() if k != "signature"})
    ).hex()
    refused("SIG", lambda: run.parties["site-a"].shares([run.keys[0], body, run.keys[2]]), VerificationError)


def test_s2_unknown_sites_and_duplicates_are_refused() -> None:
    run = Sum(terms_for(3)).to("keys")
    party = run.parties["site-a"]
    refused("SITES", lambda: party.shares([*run.keys, {**run.keys[0], "site": "site-x"}]))
    refused("SITES", lambda: party.shares([*run.keys, {**run.keys[0], "site": 3}]))
    refused("DUPLICATE", lambda: party.shares([*run.keys, run.keys[1]]))
    refused("ORDER", lambda: run.collector.add_keys(run.keys[0]))
    collector = Collector(run.terms)
    collector.add_keys(run.keys[0])
    refused("DUPLICATE", lambda: collector.add_keys(run.keys[0]))
    with pytest.raises(StudyError, match="roster pins"):
        Party(run.terms, "site-a", KEYS["site-b"])
    with pytest.raises(StudyError, match="roster pins"):
        Party(run.terms, "site-x", KEYS["site-b"])


def test_s2_keys_of_another_context_or_other_terms_are_refused() -> None:
    run = Sum(terms_for(4)).to("keys")
    for change in ({"context": "round 2"}, {"threshold": 4}, {"size": 9}, {"bound": 9}):
        other = Party(replace(run.terms, **change), "site-b", KEYS["site-b"])
        keys = [run.keys[0], other.keys(), *run.keys[2:]]
        refused("CONTEXT", lambda: run.parties["site-a"].shares(keys))  # noqa: B023


def test_s2_too_few_keys_are_refused() -> None:
    run = Sum(terms_for(5)).to("keys")
    with pytest.raises(StudyError, match="keys of at least threshold=4"):
        run.parties["site-a"].shares(run.keys[:3])


def signed(terms: SecureSum, site: str, mask: str, box: str) -> dict[str, Any]:
    """Keys as a dishonest site would sign them."""
    body = {"site": site, "context": terms.digest, "mask_key": mask, "box_key": box}
    return {**body, "signature": KEYS[site].sign(secagg_parts.KEYS, canonical_json(body)).hex()}


def test_s2_equal_keys_are_refused() -> None:
    run = Sum(terms_for(3)).to("keys")
    first, fresh = run.keys[0], public_of(X25519PrivateKey.generate())
    for mask, box in (
        (fresh, fresh),
        (first["mask_key"], fresh),
        (first["box_key"], fresh),
        (fresh, first["mask_key"]),
    ):
        keys = [first, signed(run.terms, "site-b", mask, box), run.keys[2]]
        refused("KEYS", lambda: run.parties["site-a"].shares(keys))  # noqa: B023


def test_s2_a_site_takes_part_with_its_own_keys_only() -> None:
    run = Sum(terms_for(4)).to("keys")
    other = Party(run.terms, "site-a", KEYS["site-a"])  # an earlier process of the same site
    refused("KEYS", lambda: run.parties["site-a"].shares([other.keys(), *run.keys[1:]]))
    refused("KEYS", lambda: run.parties["site-a"].shares(run.keys[1:]))


@pytest.mark.parametrize("public", ["00" * 32, "01" + "00" * 31])
def test_s2_points_of_small_order_are_refused(public: str) -> None:
    run = Sum(terms_for(3)).to("keys")
    fresh = public_of(X25519PrivateKey.generate())
    keys = [run.keys[0], signed(run.terms, "site-b", fresh, public), run.keys[2]]
    refused("KEYS", lambda: run.parties["site-a"].shares(keys))
    run = Sum(terms_for(3))
    party = run.parties["site-b"]
    party._message = signed(run.terms, "site-b", public, party.keys()["box_key"])
    run.to("shares")
    refused("KEYS", lambda: run.parties["site-a"].masked(run.vectors["site-a"], run.boxes["site-a"]))


# S3


def test_s3_both_kinds_of_shares_of_one_site_are_refused() -> None:
    run = Sum(terms_for(5)).to("masked")
    both = {**run.announcement, "dropouts": ["site-b"]}
    refused("SURVIVORS", lambda: run.parties["site-a"].confirm(both))
    run._confirm()
    refused("SURVIVORS", lambda: run.parties["site-a"].unmask({**run.request, "dropouts": ["site-b"]}))


def test_s3_a_second_set_of_survivors_is_refused() -> None:
    run = Sum(terms_for(5)).to("confirm")
    party = run.parties["site-a"]
    assert party.confirm(run.announcement) == party.confirm(wire(run.announcement))
    fewer = {"survivors": ["site-a", "site-b", "site-c", "site-d"], "dropouts": ["site-e"]}
    refused("SURVIVORS", lambda: party.confirm(fewer))
    reply = party.unmask(run.request)
    assert reply == party.unmask(run.request)  # the answer was lost on its way
    refused("SURVIVORS", lambda: party.confirm(fewer))
    refused("SURVIVORS", lambda: party.unmask({**run.request, **fewer}))
    assert set(reply["seeds"]) == set(run.parties) and reply["masks"] == {}


def test_s3_replies_hold_one_share_of_each_site() -> None:
    run = Sum(terms_for(5), {"site-c": "masked"}).to("confirm")
    for party in run.there("unmask"):
        reply = party.unmask(run.request)
        assert set(reply["masks"]) == {"site-c"} and set(reply["seeds"]) == set(run.parties) - {"site-c"}


@pytest.mark.parametrize(
    "change",
    [
        {"dropouts": []},  # one site of stage 2 is in no list
        {"survivors": ["site-b", "site-c", "site-d", "site-e"], "dropouts": ["site-a"]},  # itself
        {"dropouts": ["site-e", "site-x"]},
        {"survivors": ["site-d", "site-c", "site-b", "site-a"]},
        {"survivors": ["site-a", "site-a", "site-b", "site-c", "site-d"]},
    ],
    ids=["missing", "not itself", "unknown", "order", "twice"],
)
def test_s3_lists_that_are_not_the_sites_of_stage_two_are_refused(change: dict[str, Any]) -> None:
    run = Sum(terms_for(5), {"site-e": "masked"}).to("masked")
    refused("SURVIVORS", lambda: run.parties["site-a"].confirm({**run.announcement, **change}))


def test_s3_fewer_survivors_than_the_threshold_are_refused() -> None:
    run = Sum(terms_for(5)).to("masked")
    few = {"survivors": ["site-a", "site-b", "site-c"], "dropouts": ["site-d", "site-e"]}
    with pytest.raises(StudyError, match="threshold=4"):
        run.parties["site-a"].confirm(few)


# S4


def test_s4_different_survivors_told_to_different_sites_give_no_shares() -> None:
    run = Sum(terms_for(5)).to("masked")
    lie = {"survivors": ["site-b", "site-c", "site-d", "site-e"], "dropouts": ["site-a"]}
    told = {site: run.announcement if site in ("site-a", "site-b") else lie for site in run.parties}
    said = {site: wire(party.confirm(told[site]))["signature"] for site, party in run.parties.items()}
    for site, party in run.parties.items():
        for signers in (set(said), {"site-a", "site-b"}, {"site-c", "site-d", "site-e"}, set()):
            signatures = {name: said[name] for name in signers if name in told[site]["survivors"]}
            with pytest.raises((VerificationError, StudyError)):
                party.unmask({**told[site], "signatures": signatures})
    refused(
        "SIG",
        lambda: run.collector.add_confirmation({"site": "site-c", "signature": said["site-c"]}),
        VerificationError,
    )


def test_s4_too_few_forged_or_foreign_signatures_give_no_shares() -> None:
    run = Sum(terms_for(5), {"site-e": "masked"}).to("confirm")
    party, good = run.parties["site-a"], run.request["signatures"]
    with pytest.raises(StudyError, match="signatures"):
        party.unmask({**run.request, "signatures": dict(list(good.items())[:3])})
    forged = {**good, "site-b": good["site-c"]}
    refused("SIG", lambda: party.unmask({**run.request, "signatures": forged}), VerificationError)
    for stranger in ("site-e", "site-x"):
        foreign = {**good, stranger: good["site-b"]}
        refused("SITES", lambda: party.unmask({**run.request, "signatures": foreign}))  # noqa: B023


def test_s4_sites_that_saw_other_keys_give_no_shares() -> None:
    """The coordinator hides site-e from site-a only."""
    run = Sum(terms_for(5)).to("keys")
    for site, party in run.parties.items():
        seen = [m for m in run.keys if "site-e" not in (site, m["site"])] if site == "site-a" else run.keys
        message = party.shares(seen)
        if site == "site-a":
            refused("SITES", lambda: run.collector.add_shares(message))  # noqa: B023
            message["boxes"]["site-e"] = "00" * secagg.BOX_BYTES
        run.collector.add_shares(message)
    run.boxes = run.collector.close_shares()
    refused("SITES", lambda: run.parties["site-a"].masked(run.vectors["site-a"], run.boxes["site-a"]))
    del run.boxes["site-a"]["site-e"]
    run.leaves = {"site-e": "masked"}
    run._masked()
    refused("SURVIVORS", lambda: run.parties["site-a"].confirm(run.announcement))


def test_s4_sites_that_saw_two_pairs_of_keys_of_one_site_give_no_shares() -> None:
    """site-d colludes and signs two pairs; site-a sees one, the others see the other one. Survivors are the same."""
    run = Sum(terms_for(4)).to("keys")
    second = Party(run.terms, "site-d", KEYS["site-d"])
    told = {site: [*run.keys[:3], second.keys()] if site == "site-a" else run.keys for site in run.parties}
    sent = {site: party.shares(told[site])["boxes"] for site, party in run.parties.items()}
    sent["site-d"]["site-a"] = second.shares(told["site-a"])["boxes"]["site-a"]
    for site, party in run.parties.items():
        boxes = {sender: boxes[site] for sender, boxes in sent.items() if sender != site}
        if site == "site-d":
            boxes["site-a"] = sent["site-a"]["site-d"]
            refused("SEAL", lambda: party.masked(run.vectors["site-d"], boxes), VerificationError)  # noqa: B023
        else:
            party.masked(run.vectors[site], boxes)
    announcement = {"survivors": list(run.parties), "dropouts": []}
    said = {
        site: run.parties[site].confirm(announcement)["signature"] for site in ("site-a", "site-b", "site-c")
    }
    for site in said:
        request = {**announcement, "signatures": said}
        refused("SIG", lambda: run.parties[site].unmask(request), VerificationError)  # noqa: B023


def test_s4_shares_are_not_given_before_the_survivors_are_signed() -> None:
    run = Sum(terms_for(3)).to("masked")
    request = {**run.announcement, "signatures": {}}
    refused("SURVIVORS", lambda: run.parties["site-a"].unmask(request))


# S5


def test_s5_a_changed_box_is_refused() -> None:
    run = Sum(terms_for(3)).to("shares")
    party, boxes = run.parties["site-a"], run.boxes["site-a"]
    for place in range(0, 2 * secagg.BOX_BYTES, 3):
        digit = format(int(boxes["site-b"][place], 16) ^ 4, "x")
        changed = {**boxes, "site-b": boxes["site-b"][:place] + digit + boxes["site-b"][place + 1 :]}
        refused("SEAL", lambda: party.masked(run.vectors["site-a"], changed), VerificationError)  # noqa: B023
    party.masked(run.vectors["site-a"], boxes)  # nothing was given away: the right boxes are still taken


def test_s5_a_moved_or_replayed_box_is_refused() -> None:
    run, again = Sum(terms_for(3)).to("shares"), Sum(terms_for(3)).to("shares")
    vector, boxes = run.vectors["site-a"], run.boxes["site-a"]
    for box in (run.boxes["site-c"]["site-b"], run.boxes["site-b"]["site-a"], boxes["site-c"]):
        moved = {**boxes, "site-b": box}
        refused("SEAL", lambda: run.parties["site-a"].masked(vector, moved), VerificationError)  # noqa: B023
    replayed = {**boxes, "site-b": again.boxes["site-a"]["site-b"]}
    refused("SEAL", lambda: run.parties["site-a"].masked(vector, replayed), VerificationError)
    refused("SITES", lambda: run.parties["site-a"].masked(vector, {**boxes, "site-a": boxes["site-b"]}))
    refused("SITES", lambda: run.parties["site-a"].masked(vector, {**boxes, "site-x": boxes["site-b"]}))


def test_s5_too_few_boxes_are_refused() -> None:
    run = Sum(terms_for(5)).to("shares")
    few = dict(list(run.boxes["site-a"].items())[:2])
    with pytest.raises(StudyError, match="shares of at least threshold=4"):
        run.parties["site-a"].masked(run.vectors["site-a"], few)


def test_s5_shares_of_another_site_in_a_sealed_box_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Sum(terms_for(3)).to("keys")
    turned = {1: 2, 2: 3, 3: 1}

    def split(secret: bytes, threshold: int, indices: list[int]) -> dict[int, bytes]:
        right = split_secret(secret, threshold, indices)
        return {index: right[turned[index]] for index in indices}

    with monkeypatch.context() as patched:
        patched.setattr(secagg, "split_secret", split)
        run.collector.add_shares(run.parties["site-b"].shares(run.keys))
    for site in ("site-a", "site-c"):
        run.collector.add_shares(run.parties[site].shares(run.keys))
    boxes = run.collector.close_shares()
    refused("SHARE", lambda: run.parties["site-a"].masked(run.vectors["site-a"], boxes["site-a"]))


@pytest.mark.parametrize(("gone", "field"), [(None, "seeds"), ("site-c", "masks")])
def test_s5_a_wrong_share_gives_no_sum(gone: str | None, field: str) -> None:
    run = Sum(terms_for(4), {gone: "masked"} if gone else {}).to("confirm")
    for party in run.there("unmask"):
        reply = party.unmask(run.request)
        if party.site == "site-a":
            share = reply[field]["site-c"]
            reply[field]["site-c"] = share[:-1] + format(int(share[-1], 16) ^ 1, "x")
        run.collector.add_unmasked(reply)
    refused("SHARE", run.collector.total, VerificationError)


@pytest.mark.parametrize("gone", [None, "site-b"])
def test_s5_shares_of_a_secret_that_was_not_used_give_no_sum(
    monkeypatch: pytest.MonkeyPatch, gone: str | None
) -> None:
    run = Sum(terms_for(4), {gone: "masked"} if gone else {}).to("keys")
    with monkeypatch.context() as patched:
        patched.setattr(secagg, "split_secret", lambda secret, t, places: split_secret(bytes(32), t, places))
        run.collector.add_shares(run.parties["site-b"].shares(run.keys))
    for site in ("site-a", "site-c", "site-d"):
        run.collector.add_shares(run.parties[site].shares(run.keys))
    run.boxes = run.collector.close_shares()
    for stage in ("masked", "confirm", "unmask"):
        getattr(run, f"_{stage}")()
    refused("SHARE", run.collector.total, VerificationError)


def test_s5_a_masked_vector_that_is_not_its_site_s_gives_no_sum() -> None:
    run = Sum(terms_for(3)).to("shares")
    for party in run.parties.values():
        words = party.masked(run.vectors[party.site], run.boxes[party.site])
        run.collector.add_masked(party.site, words[::-1].copy() if party.site == "site-b" else words)
    run.announcement = run.collector.close_masked()
    run._confirm()
    run._unmask()
    refused("RANGE", run.collector.total, VerificationError)


# S6, S7: what colluding sites and the coordinator can compute. They hold all messages and their own secrets.


def without_known_masks(
    run: Sum, secrets: Mapping[str, Any], honest: str, colluding: list[str]
) -> np.ndarray:
    """The masked vector of `honest` less all masks that the collusion knows: b (survivors' seeds are told) and the
    pairwise masks with its own members."""
    terms, words = run.terms, run.words[honest].copy()
    shares = [bytes.fromhex(party.unmask(run.request)["seeds"][honest]) for party in run.parties.values()]
    seed = join_shares(shares, terms.threshold, len(terms.roster))
    blend(words, derive(seed, terms, "self"), -1)
    public = {message["site"]: message["mask_key"] for message in run.keys}
    for mallory in colluding:
        key = pair_key(secrets[mallory].mask, public[honest], terms, mallory, honest)
        blend(words, key, -1 if mallory > honest else 1)
    return words


def colluded(sites: int, honest: tuple[str, ...], **changes: Any) -> tuple[Sum, dict[str, np.ndarray]]:
    run = Sum(terms_for(sites, **changes)).to("shares")
    run.vectors |= {site: np.full(run.terms.size, 7) for site in honest[:1]}  # far from uniform
    secrets = {site: party._secrets for site, party in run.parties.items()}
    for stage in ("masked", "confirm"):
        getattr(run, f"_{stage}")()
    colluding = [site for site in run.parties if site not in honest]
    return run, {site: without_known_masks(run, secrets, site, colluding) for site in honest}


@pytest.mark.parametrize("sites", [3, 4, 5, 6])
def test_s6_all_but_two_colluding_sites_learn_the_sum_of_the_two_only(sites: int) -> None:
    assert tolerated(sites, default_threshold(sites))[1] == sites - 2
    run, left = colluded(sites, ("site-a", "site-b"))
    first, second = (run.vectors[site].astype(np.uint32) for site in ("site-a", "site-b"))
    assert (left["site-a"] + left["site-b"] == first + second).all()  # the sum is known
    # Any other pair of vectors with this sum explains all that was seen: only the mask between the two, which the
    # collusion does not know, is another one. Both sites' words ask for the same one.
    shift = np.random.default_rng(3).integers(0, 2**32, SIZE, dtype=np.uint32)
    for other in (np.zeros(SIZE, np.uint32), shift, first - shift):
        assert (left["site-a"] - (first - other) == (second + other) - left["site-b"]).all()
    # A pair with another sum explains nothing.
    assert (left["site-a"] - first != (second + np.uint32(1)) - left["site-b"]).all()


def test_s6_what_is_left_of_one_site_looks_uniform() -> None:
    run, left = colluded(5, ("site-a", "site-b"), size=200_000)
    for words in (run.words["site-a"], run.words["site-b"], left["site-a"], left["site-b"]):
        for place in range(4):  # each byte of the words
            counts = np.bincount(words.view(np.uint8)[place::4], minlength=256)
            assert chisquare(counts).pvalue > 1e-9
    plain = np.bincount(run.vectors["site-a"].astype(np.uint32).view(np.uint8), minlength=256)
    assert chisquare(plain).pvalue < 1e-12  # the test would see the vector itself


def test_s6_fewer_shares_than_the_threshold_fit_every_secret() -> None:
    shares = split_secret(b"\x07" * 32, 4, range(1, 6))
    known = [shares[index] for index in (1, 3, 5)]
    points = {secagg_parts.point(share, 5)[0]: secagg_parts.point(share, 5)[1] for share in known}
    for secret in (0, 1, 2**256 - 1, int.from_bytes(b"\x07" * 32, "big")):
        # The polynomial of degree 3 through the three shares and (0, secret): its share 2 is as good as any.
        value = 0
        for index, known_value in {**points, 0: secret}.items():
            up = down = 1
            for other in {**points, 0: secret}:
                if other != index:
                    up, down = up * (2 - other) % PRIME, down * (index - other) % PRIME
            value = (value + known_value * up * pow(down, -1, PRIME)) % PRIME
        fourth = (2).to_bytes(2, "big") + value.to_bytes(33, "big")
        assert join_shares([*known, fourth], 4, 5) == secret.to_bytes(32, "big")


def test_s6_shares_are_random_up_to_the_threshold() -> None:
    """No polynomial of a smaller degree goes through the shares, and a single share is a uniform number."""
    secret = b"\x07" * 32
    shares = list(split_secret(secret, 4, range(1, 6)).values())
    for count in (1, 2, 3):
        for chosen in itertools.combinations(shares, count):
            assert secagg_parts._at_zero(
                dict(secagg_parts.point(share, 5) for share in chosen)
            ) != int.from_bytes(secret, "big")
    first = np.frombuffer(b"".join(split_secret(secret, 4, [1])[1][3:] for _ in range(3000)), np.uint8)
    assert chisquare(np.bincount(first, minlength=256)).pvalue > 1e-9


def test_s6_boxes_do_not_open_for_others() -> None:
    run = Sum(terms_for(3)).to("keys")
    own = run.parties["site-c"]._secrets
    for party in run.parties.values():
        run.collector.add_shares(party.shares(run.keys))
    boxes, mallory = run.collector.close_shares(), run.parties["site-c"]
    refused(
        "SEAL",
        lambda: mallory._open(own, "site-a", bytes.fromhex(boxes["site-b"]["site-a"])),
        VerificationError,
    )


def lie(run: Sum) -> tuple[bytes, bytes]:
    """Coordinator, site-c and site-d against site-a: site-a hears that all survived, site-b that site-a did not.
    Returns the seed and the mask key of site-a."""
    honest = {
        "site-a": run.announcement,
        "site-b": {"survivors": ["site-b", "site-c", "site-d"], "dropouts": ["site-a"]},
    }
    mallory = [run.parties["site-c"], run.parties["site-d"]]
    shares: dict[str, list[bytes]] = {"seeds": [], "masks": []}
    for site, field in (("site-a", "seeds"), ("site-b", "masks")):
        parties = [run.parties[site], *mallory]
        for party in mallory:
            party._said = None  # they sign both
        signatures = {party.site: party.confirm(honest[site])["signature"] for party in parties}
        for party in parties:
            reply = party.unmask({**honest[site], "signatures": signatures})
            shares[field].append(bytes.fromhex(reply[field]["site-a"]))
    seed, mask = (join_shares(shares[field], run.terms.threshold, 4) for field in ("seeds", "masks"))
    return seed, mask


def test_s6_a_lying_coordinator_needs_more_than_tolerated_sites() -> None:
    assert tolerated(4, 3) == (1, 2)
    run = Sum(terms_for(4)).to("masked")
    words = run.words["site-a"].copy()
    seed, mask = lie(run)  # with two it wins, as stated
    blend(words, derive(seed, run.terms, "self"), -1)
    for message in run.keys[1:]:
        key = pair_key(
            X25519PrivateKey.from_private_bytes(mask),
            message["mask_key"],
            run.terms,
            "site-a",
            message["site"],
        )
        blend(words, key, -1)
    assert (words.view(np.int32) == run.vectors["site-a"]).all()
    # With a threshold of all sites it does not.
    assert tolerated(4, 4) == (2, 2)
    with pytest.raises(StudyError):
        lie(Sum(terms_for(4, threshold=4)).to("masked"))


@pytest.mark.parametrize(
    ("sites", "threshold", "expected"),
    [
        (3, 2, (0, 1)),
        (3, 3, (1, 1)),
        (5, 4, (2, 3)),
        (5, 5, (3, 3)),
        (6, 5, (3, 4)),
        (7, 5, (2, 4)),
        (7, 7, (5, 5)),
    ],
)
def test_s6_how_many_are_tolerated(sites: int, threshold: int, expected: tuple[int, int]) -> None:
    assert tolerated(sites, threshold) == expected


def test_s6_the_default_tolerates_a_third_of_the_sites_and_no_smaller_one_does() -> None:
    for sites in range(4, 200):
        threshold = default_threshold(sites)
        assert tolerated(sites, threshold)[0] >= sites // 3 > tolerated(sites, threshold - 1)[0]


@pytest.mark.parametrize("sites", [3, 5])
def test_s7_all_but_one_colluding_sites_learn_the_last_vector(sites: int) -> None:
    run, left = colluded(sites, ("site-b",))
    assert (left["site-b"].view(np.int32) == run.vectors["site-b"]).all()


# S8


def test_s8_masks_are_new_each_time_and_differ_between_contexts() -> None:
    same, again, other = (
        Sum(terms_for(3, context)).to("masked") for context in ("round 1", "round 1", "round 2")
    )
    for site, words in same.words.items():
        assert (words != again.words[site]).mean() > 0.99 and (words != other.words[site]).mean() > 0.99


def test_s8_the_same_keys_make_other_masks_in_another_context() -> None:
    private, public = X25519PrivateKey.generate(), public_of(X25519PrivateKey.generate())
    terms = terms_for(4)
    changed = [
        replace(terms, **change)
        for change in ({"context": "round 2"}, {"threshold": 4}, {"size": 5}, {"bound": 7})
    ]
    found = {pair_key(private, public, item, "site-a", "site-b") for item in (terms, *changed)}
    found |= {pair_key(private, public, terms, "site-a", "site-c"), derive(bytes(32), terms, "self")}
    found |= {derive(bytes(32), item, "self") for item in changed} | {derive(bytes(32), terms, "commit")}
    assert len(found) == 5 + 1 + 5 + 1
    assert pair_key(private, public, terms, "site-b", "site-a") in found  # the same at both ends


def test_s8_a_party_masks_one_vector_and_answers_each_stage_once() -> None:
    run = Sum(terms_for(3))
    party = run.parties["site-a"]
    vector = run.vectors["site-a"]
    refused("ORDER", lambda: party.masked(vector, {}))
    refused("ORDER", lambda: party.confirm({"survivors": [], "dropouts": []}))
    run.to("shares")
    refused("ORDER", lambda: party.shares(run.keys))
    party.masked(vector, run.boxes["site-a"])
    refused("ORDER", lambda: party.masked(vector, run.boxes["site-a"]))
    refused("ORDER", lambda: party.masked(vector + 1, run.boxes["site-a"]))
    refused("ORDER", lambda: party.shares(run.keys))
    assert party._secrets is None


# S9


def test_s9_sums_without_room_are_refused() -> None:
    require_room((2**31 - 1) // 5, 5)
    for bound, sites in (((2**31 - 1) // 5 + 1, 5), (2**31, 1), (0, 3), (-1, 3)):
        with pytest.raises(StudyError, match="bound_per_site"):
            require_room(bound, sites)
    with pytest.raises(StudyError, match="bound_per_site"):
        terms_for(3, bound=2**30)


@pytest.mark.parametrize("threshold", [-1, 1, 2, 6])
def test_s9_thresholds_outside_half_to_all_are_refused(threshold: int) -> None:
    with pytest.raises(StudyError, match="threshold"):
        terms_for(5, threshold=threshold)
    with pytest.raises(StudyError, match="threshold"):
        terms_for(4, threshold=2)  # exactly half


def test_s9_terms_that_make_no_sum_are_refused() -> None:
    assert [default_threshold(sites) for sites in (3, 4, 5, 6, 7, 10)] == [3, 3, 4, 5, 5, 7]
    assert terms_for(4, threshold=3).digest == terms_for(4).digest
    for sites in (1, 2):
        with pytest.raises(StudyError, match="sites=3"):
            terms_for(sites)
    twins = {site: KEYS["site-a"].public_hex for site in KEYS}
    for change in (
        {"size": 0},
        {"context": ""},
        {"roster": twins},
        {"roster": {f"site-{place}": "ab" * place for place in range(29, 33)}},
        {"roster": {site: key.public_hex.upper() for site, key in KEYS.items()}},
    ):
        with pytest.raises(StudyError):
            terms_for(4, **change)


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(SIZE, np.int32),
        np.zeros(SIZE, np.float64),
        np.zeros(SIZE, np.uint64),
        np.zeros(SIZE - 1, np.int64),
        np.zeros((1, SIZE), np.int64),
        np.full(SIZE, BOUND + 1),
        np.full(SIZE, -BOUND - 1),
        np.full(SIZE, -(2**63)),
        np.full(SIZE, 2**32),
    ],
    ids=["int32", "float64", "uint64", "short", "rows", "large", "small", "least", "wraps to 0"],
)
def test_s9_a_vector_that_does_not_fit_is_not_masked(vector: np.ndarray) -> None:
    run = Sum(terms_for(3)).to("shares")
    with pytest.raises(StudyError):
        run.parties["site-a"].masked(vector, run.boxes["site-a"])
    run._masked()  # nothing left: the right vector is still masked


@pytest.mark.parametrize(
    "words",
    [
        np.zeros(SIZE, np.int32),
        np.zeros(SIZE, np.uint64),
        np.zeros(SIZE + 1, np.uint32),
        np.zeros(0, np.uint32),
    ],
)
def test_s9_masked_words_of_another_length_or_type_are_refused(words: np.ndarray) -> None:
    run = Sum(terms_for(3)).to("shares")
    refused("LENGTH", lambda: run.collector.add_masked("site-a", words))
    refused("SITES", lambda: run.collector.add_masked("site-x", np.zeros(SIZE, np.uint32)))
    run._masked()
    assert run.announcement["dropouts"] == []


SHARE = split_secret(b"s" * 32, 2, range(1, 4))


@pytest.mark.parametrize(
    "share",
    [
        b"",
        SHARE[1][:-1],
        SHARE[1] + b"\0",
        bytes(2) + SHARE[1][2:],
        (4).to_bytes(2, "big") + SHARE[1][2:],
        b"\xff\xff" + SHARE[1][2:],
        SHARE[1][:2] + PRIME.to_bytes(33, "big"),
        SHARE[1][:2] + b"\xff" * 33,
    ],
    ids=["empty", "short", "long", "index 0", "index 4", "index 65535", "prime", "huge"],
)
def test_s9_shares_out_of_range_are_refused(share: bytes) -> None:
    refused("SHARE", lambda: join_shares([share, SHARE[2]], 2, 3))


def test_s9_shares_twice_or_too_few_are_refused() -> None:
    assert join_shares([SHARE[3], SHARE[1]], 2, 3) == join_shares(SHARE.values(), 2, 3) == b"s" * 32
    refused("SHARE", lambda: join_shares([SHARE[1], SHARE[1]], 2, 3))
    with pytest.raises(StudyError, match="shares=2"):
        join_shares([SHARE[1]], 2, 3)
    beyond = [index.to_bytes(2, "big") + (PRIME - 1).to_bytes(33, "big") for index in (1, 2)]
    refused("SHARE", lambda: join_shares(beyond, 2, 3), VerificationError)  # a constant of 257 bits


def test_s9_the_field_is_prime_and_any_secret_comes_back() -> None:
    odd = PRIME - 1
    twos = (odd & -odd).bit_length() - 1
    for base in range(2, 42):  # Miller and Rabin
        powers = [pow(base, (odd >> twos) << place, PRIME) for place in range(twos + 1)]
        assert powers[0] == 1 or odd in powers[:-1]
    for secret in (bytes(32), b"\xff" * 32, bytes(31) + b"\1"):
        shares = split_secret(secret, 5, range(1, 9))
        assert {len(share) for share in shares.values()} == {SHARE_BYTES}
        for chosen in itertools.combinations(shares.values(), 5):
            assert join_shares(chosen, 5, 8) == secret


KEY = public_of(X25519PrivateKey.generate())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (None, "FORMAT"),
        ([], "FORMAT"),
        ({"more": 1}, "FORMAT"),
        ({"mask_key": KEY[:-2]}, "LENGTH"),
        ({"mask_key": KEY + "00"}, "LENGTH"),
        ({"mask_key": KEY.upper().replace("0", "A")}, "LENGTH"),
        ({"box_key": " " * 64}, "LENGTH"),
        ({"box_key": 5}, "LENGTH"),
        ({"signature": "ab"}, "LENGTH"),
        ({"signature": None}, "LENGTH"),
        ({"context": None}, "CONTEXT"),
        ({"site": ["site-b"]}, "SITES"),
    ],
)
def test_s9_keys_of_another_form_are_refused(change: Any, reason: str) -> None:
    run = Sum(terms_for(3)).to("keys")
    message = {**run.keys[1], **change} if isinstance(change, dict) else change
    refused(reason, lambda: Collector(run.terms).add_keys(message))
    refused(reason, lambda: run.parties["site-a"].shares([run.keys[0], message, run.keys[2]]))


def test_s9_a_list_of_keys_that_is_none_is_refused() -> None:
    run = Sum(terms_for(3)).to("keys")
    for keys in ({}, None, "keys", 3):
        refused("FORMAT", lambda: run.parties["site-a"].shares(keys))  # noqa: B023


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"boxes": {}}, "SITES"),
        ({"boxes": None}, "FORMAT"),
        ({"boxes": {"site-b": "00"}}, "LENGTH"),
        ({"commitment": "00"}, "LENGTH"),
        ({"site": "site-x"}, "SITES"),
        ({"site": None}, "SITES"),
        ({"extra": 1}, "FORMAT"),
    ],
)
def test_s9_shares_of_another_form_are_refused(change: dict[str, Any], reason: str) -> None:
    run = Sum(terms_for(3)).to("keys")
    good = run.parties["site-a"].shares(run.keys)
    refused(reason, lambda: run.collector.add_shares({**good, **change}))
    run.collector.add_shares(good)
    refused("DUPLICATE", lambda: run.collector.add_shares(good))


@pytest.mark.parametrize("boxes", [None, [], {"site-b": "00"}, {"site-b": None, "site-c": None}])
def test_s9_boxes_of_another_form_are_refused(boxes: Any) -> None:
    run = Sum(terms_for(3)).to("shares")
    with pytest.raises(MessageError):
        run.parties["site-a"].masked(run.vectors["site-a"], boxes)


@pytest.mark.parametrize(
    "message",
    [None, {}, {"survivors": None, "dropouts": []}, {"survivors": [1], "dropouts": []}, {"survivors": []}],
)
def test_s9_announcements_of_another_form_are_refused(message: Any) -> None:
    run = Sum(terms_for(3)).to("masked")
    refused("FORMAT", lambda: run.parties["site-a"].confirm(message))
    run._confirm()
    with pytest.raises(MessageError):
        run.parties["site-a"].unmask({**(message or {}), "signatures": run.request["signatures"]})
    refused("FORMAT", lambda: run.parties["site-a"].unmask({**run.announcement, "signatures": None}))


def test_s9_replies_of_another_form_are_refused() -> None:
    run = Sum(terms_for(4), {"site-d": "masked"}).to("confirm")
    good, other = (run.parties[site].unmask(run.request) for site in ("site-a", "site-b"))
    add = run.collector.add_unmasked
    refused("SITES", lambda: add({**good, "masks": {}}))
    refused("SITES", lambda: add({**good, "masks": good["seeds"]}))
    refused("SITES", lambda: add({**good, "seeds": {**good["seeds"], "site-d": good["masks"]["site-d"]}}))
    refused("SITES", lambda: add({**good, "site": "site-d"}))
    refused("SHARE", lambda: add({**good, "site": "site-b"}))
    refused("SHARE", lambda: add({**good, "seeds": other["seeds"]}))
    refused("LENGTH", lambda: add({**good, "masks": {"site-d": "00"}}))
    refused("SHARE", lambda: add({**good, "masks": {"site-d": "ff" * SHARE_BYTES}}))
    add(good)
    refused("DUPLICATE", lambda: add(good))


def test_s9_the_collector_takes_stages_in_order_only() -> None:
    run = Sum(terms_for(5), {"site-e": "masked"})
    collector = run.collector
    for early in (collector.close_shares, collector.close_masked, collector.close_confirm, collector.total):
        refused("ORDER", early)
    run.to("shares")
    late = run.parties["site-e"].masked(run.vectors["site-e"], run.boxes["site-e"])
    run._masked()
    refused("ORDER", lambda: collector.add_masked("site-e", late))  # its mask key will be told: too late
    refused("ORDER", collector.close_masked)
    run._confirm()
    refused("ORDER", collector.close_keys)
    run._unmask()
    assert (collector.total() == sum(v for site, v in run.vectors.items() if site != "site-e")).all()


def test_s9_a_refused_message_counts_as_not_sent() -> None:
    run = Sum(terms_for(4)).to("masked")
    bad = {"site": "site-a", "signature": "00" * 64}
    refused("SIG", lambda: run.collector.add_confirmation(bad), VerificationError)
    run.leaves = {"site-a": "confirm"}
    run._confirm()
    run._unmask()
    assert (run.collector.total() == sum(run.vectors.values())).all()
