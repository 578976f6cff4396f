"""The numbers of a report as another run may be held against them, and what changed between two. Never a status."""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal

from pydantic import BaseModel, ConfigDict

from harness.metrics.change import believed, difference_noise, two_sided_p
from harness.records import JsonBand, JsonNumber, Record, Status
from harness.wording import place

SCHEMA_VERSION: Literal[1] = 1
FALSE_DISCOVERIES = 0.05

Verdict = Literal["changed", "unclear", "within noise", "no noise known", "equal"]
Tendency = Literal["better", "worse", ""]


class Metric(BaseModel):
    """One number of a report.

    seeds  the seed measured, or all behind an aggregate. exact: it has no noise, so any other value is a change; a
           claim without a number is 1 where it holds and 0 where it does not. direction: ``higher``, ``lower`` or
           ``band`` where limits say what is better, else empty
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    metric: str
    case: str = ""
    layer: int | None = None
    branch: str | None = None
    seeds: tuple[int, ...] = ()
    value: JsonNumber
    ci: JsonBand | None = None
    n: int | None = None
    unit: str = ""
    direction: str = ""
    exact: bool = False
    checkpoint_sha256: str = ""

    @property
    def key(self) -> tuple[str, str, str, int, str, tuple[int, ...]]:
        """What makes two numbers of two reports the same quantity."""
        layer = -1 if self.layer is None else self.layer
        return self.check, self.metric, self.case, layer, self.branch or "", self.seeds

    @property
    def where(self) -> str:
        """The quantity in words: ``D3.activity[rwkv, seed 0]``."""
        where = place(self.case, self.layer, self.branch, self.seeds)
        return f"{self.check}.{self.metric}" + (f"[{where}]" if where else "")


class Metrics(BaseModel):
    """baseline_metrics.json: every number of one run, and what it was measured on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    scale: str
    corpus: str
    corpus_sha256: str = ""
    config_sha256: str = ""
    device: str = ""
    git_sha: str = ""
    metrics: list[Metric]


class Change(BaseModel):
    """One quantity of both runs.

    noise    standard error of the difference by the two intervals; None where none is known
    verdict  ``changed``: beyond its noise, and still so among all that were compared; or an exact number that differs.
             ``unclear``: beyond its own 90 % noise and no further. tendency: what the limits call it
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    now: Metric
    then: Metric
    verdict: Verdict
    tendency: Tendency
    noise: JsonNumber | None
    p_value: float | None

    @property
    def delta(self) -> float:
        """Now less then; 0 for two equal infinities."""
        return 0.0 if self.now.value == self.then.value else self.now.value - self.then.value

    @property
    def in_noises(self) -> float:
        """The size of the change in its standard errors; infinite for an exact number that differs."""
        if self.noise is None:
            return math.inf if self.verdict == "changed" else 0.0
        return abs(self.delta) / self.noise


class Comparison(BaseModel):
    """Two runs held against each other. changes: the largest first. gone, new: quantities that only one of them has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    baseline: str
    same_weights: bool
    remarks: list[str]
    changes: list[Change]
    gone: list[str]
    new: list[str]

    def those(self, *verdicts: Verdict) -> list[Change]:
        """The changes that ended so, the largest first."""
        return [change for change in self.changes if change.verdict in verdicts]

    @property
    def summary(self) -> str:
        """One sentence for the terminal and the pages."""
        claims = self.those("changed")
        better, worse = (sum(change.tendency == way for change in claims) for way in ("better", "worse"))
        others = [f"{len(self.those(verdict))} {verdict}" for verdict in _OTHERS if self.those(verdict)]
        lost = [f"{len(self.gone)} only in the baseline"] if self.gone else []
        lost += [f"{len(self.new)} only here"] if self.new else []
        found = f"{len(claims)} changed ({better} better, {worse} worse)"
        return f"{len(self.changes)} numbers compared: {', '.join([found, *others, *lost])}"


_OTHERS: tuple[Verdict, ...] = ("unclear", "within noise", "equal", "no noise known")


def metrics_of(
    records: Iterable[Record], *, model: str, scale: str, corpus: str, device: str = "", git_sha: str = ""
) -> Metrics:
    """The numbers of a run, by check, metric and place. Records without a verdict and without a number are left out."""
    ordered = sorted(records, key=lambda record: record.nodeid)
    metrics = [metric for record in ordered if (metric := _metric(record)) is not None]

    def common(name: Literal["corpus_sha256", "config_sha256"]) -> str:
        found = {str(getattr(record, name)) for record in ordered} - {""}
        return found.pop() if len(found) == 1 else ""

    return Metrics(
        model=model,
        scale=scale,
        corpus=corpus,
        corpus_sha256=common("corpus_sha256"),
        config_sha256=common("config_sha256"),
        device=device,
        git_sha=git_sha,
        # a stable sort: two numbers of one key stay in the order of their tests
        metrics=sorted(metrics, key=lambda metric: metric.key),
    )


def _metric(record: Record) -> Metric | None:
    claim = record.threshold is None and not record.info and record.status in (Status.PASS, Status.FAIL)
    value = float(record.status is Status.PASS) if record.value is None and claim else record.value
    if value is None:
        return None
    bands = record.threshold
    pinned = bands is not None and bands.pass_band[0] == bands.pass_band[1]
    return Metric(
        check=record.check,
        metric=record.metric,
        case=record.case,
        layer=record.layer,
        branch=record.branch,
        seeds=record.seeds,
        value=value,
        ci=record.ci,
        n=record.n,
        unit=record.unit,
        direction="higher" if record.value is None else record.direction,
        exact=record.ci is None and (claim or pinned),
        checkpoint_sha256=record.checkpoint_sha256,
    )


def compare(now: Metrics, then: Metrics, name: str = "") -> Comparison:
    """Hold one run against another. name: what the reader calls the other one.

    The noise is that of the texts a number was measured on: another seed of the training may differ by more.
    """
    pairs, gone, new = _pair(now.metrics, then.metrics)
    noises = [_noise(a, b) for a, b in pairs]
    p_values = [
        math.nan if noise is None else two_sided_p(a.value - b.value, noise)
        for (a, b), noise in zip(pairs, noises, strict=True)
    ]
    stand = believed(p_values, FALSE_DISCOVERIES)
    changes = [
        _change(a, b, noise, p, claim) for (a, b), noise, p, claim in zip(pairs, noises, p_values, stand, strict=True)
    ]
    weights = [{m.checkpoint_sha256 for m in run.metrics} - {""} for run in (now, then)]
    return Comparison(
        baseline=name or then.model,
        same_weights=bool(weights[0]) and weights[0] == weights[1],
        remarks=_remarks(now, then),
        changes=sorted(changes, key=lambda change: (-change.in_noises, change.now.key)),
        gone=[metric.where for metric in gone],
        new=[metric.where for metric in new],
    )


def _pair(
    now: Sequence[Metric], then: Sequence[Metric]
) -> tuple[list[tuple[Metric, Metric]], list[Metric], list[Metric]]:
    """Numbers of the same key, in their order where a key comes more than once; and what is left on either side."""
    sides = [{key: list(found) for key, found in groupby(run, key=lambda m: m.key)} for run in (now, then)]
    pairs = [pair for key in sides[0] for pair in zip(sides[0][key], sides[1].get(key, []), strict=False)]
    new, gone = (
        [metric for key, found in mine.items() for metric in found[len(other.get(key, [])) :]]
        for mine, other in (sides, sides[::-1])
    )
    return pairs, gone, new


def _noise(now: Metric, then: Metric) -> float | None:
    if now.ci is None or then.ci is None or not (math.isfinite(now.value) and math.isfinite(then.value)):
        return None
    noise = difference_noise(now.value, now.ci, then.value, then.ci)
    return None if math.isnan(noise) else noise


def _change(now: Metric, then: Metric, noise: float | None, p_value: float, claim: bool) -> Change:
    same = now.value == then.value or (math.isnan(now.value) and math.isnan(then.value))
    verdict: Verdict
    if same:
        verdict = "equal"
    elif noise is None:
        verdict = "changed" if now.exact and then.exact else "no noise known"
    else:
        verdict = "changed" if claim else "unclear" if p_value < 0.1 else "within noise"
    return Change(
        now=now,
        then=then,
        verdict=verdict,
        tendency=_tendency(now, then) if verdict in ("changed", "unclear") else "",
        noise=noise,
        p_value=None if math.isnan(p_value) else p_value,
    )


def _tendency(now: Metric, then: Metric) -> Tendency:
    if now.direction not in ("higher", "lower"):
        return ""
    return "better" if (now.value > then.value) == (now.direction == "higher") else "worse"


def _remarks(now: Metrics, then: Metrics) -> list[str]:
    remarks = []
    if now.corpus != then.corpus or (
        now.corpus_sha256 and then.corpus_sha256 and now.corpus_sha256 != then.corpus_sha256
    ):
        remarks.append(f"measured on other texts: {now.corpus} against {then.corpus}")
    if now.model != then.model:
        remarks.append(f"another model: {now.model} against {then.model}")
    if now.config_sha256 and then.config_sha256 and now.config_sha256 != then.config_sha256:
        remarks.append("another configuration")
    if now.device != then.device:
        remarks.append(f"another device: {now.device} against {then.device}")
    return remarks
