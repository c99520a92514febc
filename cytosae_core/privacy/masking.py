"""The `masked` profile's row rules. Heuristic protection: it stops reconstruction as far as measured, never
membership tests by somebody who already holds the tokens, and no epsilon is ever printed for it.

    row set    rows fired by >= min_units units under the first dictionary, fixed before round 1
    per round  fired by >= min_units units in this round, and not dominated by one unit (share <= 1/2)
    clip       L2 norm of a row's change <= row_clip
    readers    rows whose change gives a training token back are withheld: by the site's own attack when the caller
               has one (`selfattack`: more readers, against background tokens), else plainly or by signs. Honest
               updates have next to none; many of them mean a trap, and nothing leaves.

What leaves is attacked once more at the door, exactly as it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import EgressError
from .selfattack import Attacker

# Largest share of one unit in a row's summed activation (dominance rule, n = 1, k = 50 %).
MAX_UNIT_SHARE = 0.5
# A change whose cosine with a training token exceeds this gives the token back (federated_sae section 5).
READER_COSINE = 0.95
# More readable rows than this share of those that would leave (and than three): no honest update (decision 007).
MAX_READABLE_SHARE, FEW_ROWS = 0.01, 3


@dataclass(frozen=True)
class MaskedUpdate:
    """delta [n, d] float16 and, per row, the units [n] behind it (0 where a rule withholds the row)."""

    delta: Tensor
    units: Tensor
    withheld_dominated: int
    withheld_readable: int


@torch.no_grad()
def mask_update(
    base: Tensor,
    trained: Tensor,
    units: Tensor,
    largest: Tensor,
    allowed: Tensor,
    tokens: Tensor,
    row_clip: float,
    *,
    min_units: int,
    max_share: float = MAX_UNIT_SHARE,
    attacker: Attacker | None = None,
) -> MaskedUpdate:
    """Apply the rules above except the threshold on `units`, which the door itself enforces.

    Args:
        base, trained: [n, d] dictionary before and after the local steps.
        units: [n] units that fired each row in this round.
        largest: [n] largest share of one unit.
        allowed: [n] bool, the row set fixed before round 1.
        tokens: [m, d] all training tokens of this round, centred and scaled.
        row_clip: largest L2 norm of a row's change.
        min_units: the policy's threshold; 1 (published images) switches dominance and the alarm off.
        max_share: largest share of one unit in a row's summed activation.
        attacker: the site's attack of this round; `tokens` are not read again then.

    Raises:
        EgressError: reason SELF_ATTACK, more rows give tokens back than an honest update has.
    """
    delta = trained - base
    dominated = (largest > max_share) & (min_units > 1)
    candidate = allowed & (units >= min_units) & ~dominated
    norms = delta.norm(dim=1, keepdim=True).clamp_min(1e-12)
    clipped = (delta * (row_clip / norms).clamp_max(1.0)).to(torch.float16)
    readable = torch.zeros_like(candidate)
    if attacker is not None:
        readable = attacker(clipped * candidate[:, None]).readable
    else:
        readable[candidate] = readable_rows(delta[candidate], tokens)
    count = int(readable.sum())
    if min_units > 1 and count > max(FEW_ROWS, MAX_READABLE_SHARE * int(candidate.sum())):
        raise EgressError(
            "Expected row changes that give no token back; nothing was sent.",
            hint="A trap?",
            reason="SELF_ATTACK",
        )
    open_rows = candidate & ~readable
    return MaskedUpdate(
        clipped * open_rows[:, None],
        torch.where(open_rows, units, torch.zeros_like(units)),
        int((allowed & dominated).sum()),
        count,
    )


@torch.no_grad()
def readable_rows(delta: Tensor, tokens: Tensor) -> Tensor:
    """Which rows of `delta` [a, d] give a token of `tokens` [m, d] back: by cosine, or by the cosine of the
    signs (Adam divides by a row's own size, so the sign pattern survives where the cosine does not)."""
    found = torch.zeros(delta.shape[0], dtype=torch.bool)
    for left, right in ((delta, tokens), (delta.sign(), tokens.sign())):
        rows = torch.nn.functional.normalize(left, dim=1)
        for chunk in torch.nn.functional.normalize(right, dim=1).split(2048):  # type: ignore[no-untyped-call]
            found |= (rows @ chunk.T).abs().max(dim=1).values > READER_COSINE
    return found
