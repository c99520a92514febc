"""Everything behind `cytosae concepts transfer`: dictionaries, features, all arms, the table as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..concepts.coder import Coder
from ..errors import DataError
from .cells import Cells
from .comparison import (
    Arm,
    Judge,
    Row,
    Truth,
    Variant,
    inner_of,
    selected_row,
    shuffled,
    variant_row,
)
from .dictionaries import pooled_coder, random_coder, with_picks
from .pooling import Pools, concept_pools, raw_pools
from .transfer import FORMS

MIN_PER_CLASS = 10
FEW = ("mean", "unit")  # poolings of the controls
# Progress of one named piece of work: name, done, total.
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What to compute: `rows` dictionary sizes, `seeds`, `steps` of training, `k` picks per token when coding.

    Every size is used trained (`n512`) and as it starts (`n512 start`: k-means of unlabelled tokens, no training
    step). `strict`: also one dictionary per left-out site that never saw a token of it.
    """

    rows: tuple[int, ...] = (512, 1024)
    seeds: int = 2
    steps: int = 300
    k: tuple[int, ...] = (32, 64)
    strict: bool = True


class Transfer:
    """One run over several sites' cells. `report` is told about progress."""

    def __init__(self, sites: Mapping[str, Cells], n_classes: int, plan: Plan, report: Report) -> None:
        _check(sites, n_classes)
        self.sites, self.n_classes, self.plan, self.report = dict(sites), n_classes, plan, report
        self.truth = {name: Truth(cells.labels, cells.units) for name, cells in sites.items()}
        self.judge = Judge(self.truth)
        self.coders: dict[str, Coder] = {}
        self._done, self._total = 0, self._work()

    def run(self) -> dict[str, Any]:
        """The table: form -> row name -> values, all variants, and what was selected."""
        coders = {
            name: [self._coder(n, seed, steps=steps) for seed in range(self.plan.seeds)]
            for n in self.plan.rows
            for name, steps in ((f"n{n}", self.plan.steps), (f"n{n} start", 0))
        }
        self.coders = {name.replace(" ", "-"): found[0] for name, found in coders.items()}
        small = coders[f"n{self.plan.rows[0]}"]
        raw = Arm({"raw": [self._raw(small[0])]})
        concepts = Arm(
            {f"{name} k{k}": self._all_pools(found, k) for name, found in coders.items() for k in self.plan.k}
        )
        arms = {"raw": raw, "concepts": concepts, **self._controls(small)}
        for name, arm in arms.items():
            truth = shuffled(self.truth) if name == "shuffled labels" else self.truth
            if name == "shuffled labels":
                arm.pools = {self._fixed: concepts.pools[self._fixed]}
            self._judge_all(name, arm, truth)
        unseen = self._strict() if self.plan.strict else {}
        return {form: self._form(form, arms, unseen) for form in FORMS}

    def _form(self, form: str, arms: Mapping[str, Arm], unseen: Mapping[str, Arm]) -> dict[str, Any]:
        raw, raw_chosen = selected_row(arms["raw"], form, self.judge)
        own, own_chosen = selected_row(arms["concepts"], form, self.judge)
        fixed_raw = variant_row(arms["raw"], form, Variant("raw", "mean"), self.judge)
        fixed = variant_row(arms["concepts"], form, Variant(self._fixed, "mean"), self.judge)
        rows = {
            "raw, mean": fixed_raw, f"concepts {self._fixed}, mean": fixed, "raw, selected": raw,
            "concepts, selected": own,
        }  # fmt: skip
        for name in ("random dictionary", "shuffled labels"):
            rows[name] = selected_row(arms[name], form, self.judge)[0]
        if unseen:
            rows["concepts, selected, dictionary without the left-out site"] = self._unseen_row(form, unseen)
        return {
            "rows": {name: row.to_dict() for name, row in rows.items()},
            "difference": {
                "selected": own.minus(raw).to_dict(), "mean": fixed.minus(fixed_raw).to_dict(),
                **{name: rows[name].minus(raw).to_dict() for name in rows if "without" in name},
            },
            "selected": {
                "raw": {site: str(v) for site, v in raw_chosen.items()},
                "concepts": {site: str(v) for site, v in own_chosen.items()},
            },
            "variants": {str(v): self._variant(arms[kind], form, v)
                         for kind in ("raw", "concepts") for v in arms[kind].variants()},
        }  # fmt: skip

    def _variant(self, arm: Arm, form: str, variant: Variant) -> dict[str, Any]:
        row = variant_row(arm, form, variant, self.judge)
        return {"inner": inner_of(arm, form, variant), **row.to_dict()}

    def _unseen_row(self, form: str, unseen: Mapping[str, Arm]) -> Row:
        predictions = {}
        for site, arm in unseen.items():
            runs = arm.held[form][arm.select(form, site)]
            predictions[site] = [run[site].predicted for run in runs]
        return self.judge.row(predictions)

    def _controls(self, trained: list[Coder]) -> dict[str, Arm]:
        random = self._all_pools([random_coder(c, seed=i) for i, c in enumerate(trained)], self.plan.k[0])
        return {
            "random dictionary": Arm({"random": random}, FEW),
            "shuffled labels": Arm({}, FEW),
        }

    def _strict(self) -> dict[str, Arm]:
        """Per left-out site: dictionaries that never saw a token of it."""
        n, out = self.plan.rows[0], {}
        for held in self.sites:
            others = [name for name in self.sites if name != held]
            pools = {
                name: self._all_pools([self._coder(n, 0, steps=steps, sites=others)], self.plan.k[-1])
                for name, steps in ((f"n{n}", self.plan.steps), (f"n{n} start", 0))
            }
            out[held] = Arm(pools, FEW)
            self._judge_all(f"without {held}", out[held], self.truth, only=held)
        return out

    def _judge_all(self, name: str, arm: Arm, truth: Mapping[str, Truth], *, only: str | None = None) -> None:
        total = len(FORMS) * sum(len(arm.pools[v.source]) for v in arm.variants())
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            self.report(f"probes: {name}", done, total)

        arm.run(truth, self.n_classes, tick, only=only)

    def _coder(self, n: int, seed: int, *, steps: int, sites: list[str] | None = None) -> Coder:
        draws = {name: self.sites[name].draw for name in sites or self.sites}
        coder = pooled_coder(draws, n, seed=seed, steps=steps, k=self.plan.k[0])
        self._tick()
        return coder

    @property
    def _fixed(self) -> str:
        """The dictionary of the fixed lines: the first size, trained, the first number of picks."""
        return f"n{self.plan.rows[0]} k{self.plan.k[0]}"

    def _all_pools(self, coders: list[Coder], k: int) -> list[dict[str, Pools]]:
        return [self._pools(with_picks(coder, k)) for coder in coders]

    def _pools(self, coder: Coder) -> dict[str, Pools]:
        found = {name: concept_pools(cells.read, cells.images, coder) for name, cells in self.sites.items()}
        self._tick()
        return found

    def _raw(self, coder: Coder) -> dict[str, Pools]:
        return {name: raw_pools(cells.read, cells.images, coder) for name, cells in self.sites.items()}

    def _work(self) -> int:
        """Dictionaries to make and to code with."""
        seeds, sizes = self.plan.seeds, len(self.plan.rows)
        strict = 4 * len(self.sites) if self.plan.strict else 0
        return 2 * seeds * sizes * (1 + len(self.plan.k)) + seeds + strict

    def _tick(self) -> None:
        self._done += 1
        self.report("dictionaries and codes", self._done, self._total)


def _check(sites: Mapping[str, Cells], n_classes: int) -> None:
    if len(sites) < 3:
        raise DataError(
            f"Expected at least 3 sites with all classes, got {len(sites)}.",
            hint="One is left out, and the strength is chosen by leaving out one of the others.",
        )
    for name, cells in sites.items():
        few = [c for c in range(n_classes) if (cells.labels == c).sum() < MIN_PER_CLASS]
        if few:
            raise DataError(
                f"Expected at least {MIN_PER_CLASS} images of every class at {name}, classes {few} have fewer.",
                hint="Leave out the class with --classes, or the site.",
            )
