"""Makes tests/vectors/acro.json: what ACRO says about small made-up tables. Run it where acro is installed:

    python3.11 -m venv build/acro && build/acro/bin/pip install acro==1.0.2
    build/acro/bin/python tests/vectors/make_acro.py

acro 1.0.2 pins pandas <= 2.3.3 and needs statsmodels, rdflib, lxml and openpyxl: it is no development dependency of
this project, its answers are recorded. Every table is 3 x 4; each patient is in one cell and contributes one value.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from acro import ACRO

CHECKS = ("MinimumThresholdCheck", "NKCheck", "PPercentCheck")


def people(seed: int) -> pd.DataFrame:
    """Patients of one table; every third table is skewed enough for dominance."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(60, 200))
    skew = (0.4, 1.2, 2.2)[seed % 3]
    return pd.DataFrame(
        {
            "row": rng.integers(3, size=count),
            "column": rng.choice(4, size=count, p=[0.55, 0.25, 0.15, 0.05]),
            "value": np.round(rng.lognormal(0, skew, size=count) * 100).astype(int) + 1,
        }
    )


def asked(frame: pd.DataFrame) -> dict[str, Any]:
    """The cells that ACRO's default risk appetite flags in the table of sums, per check."""
    session = ACRO(suppress=False)
    table = session.crosstab(frame["row"], frame["column"], values=frame["value"], aggfunc="sum")
    (record,) = session.results.results.values()
    cells = record.sdc["cells"]
    return {
        "patients": frame.to_numpy().tolist(),
        "rows": [int(label) for label in table.index],
        "columns": [int(label) for label in table.columns],
        "flagged": {check: cells[check] for check in CHECKS},
    }


if __name__ == "__main__":
    tables = [asked(people(seed)) for seed in range(18)]
    appetite = {"safe_threshold": 10, "safe_nk_n": 2, "safe_nk_k": 0.9, "safe_pratio_p": 0.1, "round_base": 5}
    content = {"acro": version("acro"), "pandas": pd.__version__, "risk_appetite": appetite, "tables": tables}
    path = Path(__file__).with_name("acro.json")
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")
    print(path, {check: sum(len(t["flagged"][check]) for t in tables) for check in CHECKS})
