"""THE VERIFIER: an auditor's own check of a bundle (docs/auditor.md). Standard library and `cryptography` only.
Start in `checks.py`: it lists what is checked, in order."""

from .checks import verify_bundle
from .verdict import Check, Verdict

__all__ = ["Check", "Verdict", "verify_bundle"]
