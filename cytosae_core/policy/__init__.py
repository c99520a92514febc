"""The site's egress policy: what the hospital allows, held by the hospital. docs/policy.md explains it."""

from .explain import explain
from .files import load_policy, parse_policy, render_policy, write_policy
from .keys import APPROVALS, PROFILES, URN
from .signatures import check_signed, load_officers, load_signed, pin_officers, read_signatures, sign_policy
from .site_policy import POLICIES, SitePolicy, named_policy, policy_from_dict, policy_from_json
from .tighten import Demand, conflicts, demand, tightened

__all__ = [
    "APPROVALS", "POLICIES", "PROFILES", "URN", "Demand", "SitePolicy", "check_signed", "conflicts", "demand",
    "explain", "load_officers", "load_policy", "load_signed", "named_policy", "parse_policy", "pin_officers",
    "policy_from_dict", "policy_from_json", "read_signatures", "render_policy", "sign_policy", "tightened",
    "write_policy",
]  # fmt: skip
