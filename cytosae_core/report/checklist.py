"""Which section of the report speaks to which item of a reporting checklist. Only items that we are sure of.

TRIPOD+AI: BMJ 2024;385:e078378. CLAIM 2024: Radiol Artif Intell 2024;6:e240300. STARD-AI: Nat Med 2025. Sections are
R0 .. R21 of the report, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]
# standard, item in words (numbers are those of TRIPOD+AI 2024), section
ITEMS = (
    ("TRIPOD+AI", "1 Title: says that a model is evaluated, and on whom", "R0"),
    ("TRIPOD+AI", "4 Objectives", "R1"),
    ("TRIPOD+AI", "5 Data: sources and dates", "R2"),
    ("TRIPOD+AI", "6 Participants: setting, eligibility", "R2"),
    ("TRIPOD+AI", "8 Outcome: what is predicted and how it was assessed", "R2"),
    ("TRIPOD+AI", "10 Sample size", "R12"),
    ("TRIPOD+AI", "11 Missing data", "R12"),
    ("TRIPOD+AI", "12 Analytical methods, heterogeneity between clusters", "R8"),
    ("TRIPOD+AI", "14 Fairness", "R10"),
    ("TRIPOD+AI", "18 Open science: protocol, registration, data, code", "R1"),
    ("TRIPOD+AI", "23 Model performance with confidence intervals", "R8"),
    ("TRIPOD+AI", "26 Limitations", "R17"),
    ("CLAIM 2024", "Study goal and pre-registered plan", "R1"),
    ("CLAIM 2024", "Data sources, one line per site", "R2"),
    ("CLAIM 2024", "Image acquisition: scanner, magnification, stain", "R2"),
    ("CLAIM 2024", "Reference standard: source of the labels", "R2"),
    ("CLAIM 2024", "De-identification, what left a site", "R4"),
    ("CLAIM 2024", "Data partitions by patient", "R2"),
    ("CLAIM 2024", "Model and initialisation", "R3"),
    ("CLAIM 2024", "Robustness and sensitivity", "R11"),
    ("CLAIM 2024", "Explainability, and its validation", "R7"),
    ("CLAIM 2024", "External testing", "R8"),
    ("CLAIM 2024", "Failure analysis", "R15"),
    ("STARD-AI", "Flow of images and exclusions", "R12"),
    ("STARD-AI", "Estimates of accuracy with intervals", "R8"),
    ("STARD-AI", "Indeterminate and missing results", "R12"),
    ("STARD-AI", "Use intended, and limits", "R17"),
)  # fmt: skip
# Items that no report of this program covers fully today.
PART = {
    "5 Data: sources and dates": "part",
    "6 Participants: setting, eligibility": "part",
    "8 Outcome: what is predicted and how it was assessed": "part",
    "10 Sample size": "no",
    "Reference standard: source of the labels": "part",
    "Use intended, and limits": "part",
    "Explainability, and its validation": "part",
    "Flow of images and exclusions": "part",
}


def checklist(report: Mapping[str, Any]) -> list[Json]:
    """Items with the section that covers them: `yes`, `part` or `no`, as far as this report has the numbers."""
    return [
        {"standard": standard, "item": item, "section": section, "covered": _covered(report, item)}
        for standard, item, section in ITEMS
    ]


def _covered(report: Mapping[str, Any], item: str) -> str:
    if item in PART:
        return PART[item]
    if item.startswith("14 ") and not any(part["status"] == "estimated" for part in report["subgroups"]):
        return "no"
    if item.startswith("Image acquisition"):
        cards = [entry["card"] for entry in report["acquisition"].values()]
        known = sum(any(card.values()) for card in cards)
        return "yes" if cards and known == len(cards) else "part" if known else "no"
    if item.startswith(("23 ", "External", "Estimates")):
        return "yes" if report["headlines"][0]["status"] == "estimated" else "part"
    if item.startswith("18 "):
        return "yes" if report["integrity"]["status"] == "logged" else "part"
    return "yes"
