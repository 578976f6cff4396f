"""What the state of each branch is worth, by ablation: the measurement behind D3, S4 and BALANCE."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from harness.ablation import (
    Continuation,
    Kinds,
    continue_from,
    donors,
    long_branches,
    mean_state,
    states_at,
    swap,
    zero_state,
)
from harness.batching import rows_at_once
from harness.data import Tokens, Windows
from harness.metrics.balance import ratio_of_share
from harness.metrics.interaction import interaction, loss_shares
from harness.metrics.intervals import ClusterRatio, Interval, bootstrap_ratio
from harness.trace import state_after
from models.protocol import State

HORIZON = 16
"""Tokens after each boundary over which the branches are judged."""

LONG_HORIZON = 64
"""Tokens after the middle boundary, for the other document's LONG state only."""

BATCH = 16
"""Rows of one pass on a CPU: more of them do not fit into its cache together with their logits."""

INACTIVE_KL = 1e-6
"""Nats a token. A swap that moves the next tokens by less is not felt: the limit of ``D3.activity``. Rounding
in float32 gives 1e-12, a state that nothing reads 0, a branch after 70 steps of training 6e-6."""

NOTED_RATIO = 2.5
"""From here on a ratio of losses is remarked upon."""

NEGLIGIBLE_SHARE = 0.0099
"""A type A share of 100 to 1."""


@dataclass(frozen=True)
class Effect:
    """What one ablation costs, a token.

    branches     ``rwkv``, or several joined by ``+``
    replacement  ``resample`` another document's state at the same position, ``mean`` over the windows, ``zero``
    kinds        ``long`` states only, or ``all``
    horizon      tokens after the boundary over which it is averaged
    delta        CE(ablated) - CE(clean), nats, paired; interval over documents
    kl           KL(p_clean || p_ablated), nats
    """

    branches: str
    replacement: str
    kinds: str
    horizon: int
    delta: Interval
    kl: Interval


@dataclass(frozen=True)
class StateAblation:
    """All effects of one model.

    shares       Delta_c over the sum of all branches' (LONG state of another document); None with one branch, and
                 where the interval of that sum does not lie above 0: then there is nothing to share
    interaction  Delta of all branches at once minus the sum of theirs; None with one branch
    kl_by_token  the KL of that ablation at each token after the boundary, by branch
    boundaries   tokens read before the swap; model_tokens counts what the measurement read, once a model pass
    """

    branches: tuple[str, ...]
    effects: list[Effect]
    shares: dict[str, Interval] | None
    interaction: Interval | None
    kl_by_token: dict[str, list[float]]
    boundaries: tuple[int, ...]
    windows: int
    documents: int
    model_tokens: int

    def effect(self, branch: str, replacement: str = "resample", kinds: str = "long", horizon: int = 0) -> Effect:
        """One of ``effects``; the horizon that is judged where none is said. ``KeyError`` when there is none."""
        wanted = (branch, replacement, kinds, horizon or self.judged_horizon)
        for effect in self.effects:
            if (effect.branches, effect.replacement, effect.kinds, effect.horizon) == wanted:
                return effect
        raise KeyError(f"no ablation {wanted}")

    @property
    def judged_horizon(self) -> int:
        """Tokens over which the branches are judged: ``HORIZON``, or less where the windows are short."""
        return max(len(values) for values in self.kl_by_token.values())

    def describe_ratio(self) -> str:
        """The ratio of the larger loss to the smaller, in words."""
        assert self.shares is not None
        parts = ", ".join(f"{branch} {self.effect(branch).delta.value:+.4f}" for branch in self.branches)
        ratio = ratio_of_share(min(share.value for share in self.shares.values()))
        remark = "" if math.isnan(ratio) else f"; ratio {ratio:.1f}" + (" (above 2.5)" if ratio > NOTED_RATIO else "")
        return f"losses {parts} nats/token{remark}"


@dataclass(frozen=True)
class Ablation:
    """One replacement to make."""

    branches: tuple[str, ...]
    replacement: str
    kinds: Kinds

    @property
    def label(self) -> str:
        """Its branches, joined."""
        return "+".join(self.branches)


def plan(branches: tuple[str, ...]) -> list[Ablation]:
    """The ablations of D3: each branch by all three replacements, and what a swap of all branches needs."""
    groups = [(branch,) for branch in branches]
    everything = [branches] if len(branches) > 1 else []
    kinds: tuple[Kinds, Kinds] = ("long", "all")
    return [
        *(Ablation(group, replacement, "long") for group in groups for replacement in ("zero", "mean")),
        *(Ablation(group, "resample", kind) for group in [*groups, *everything] for kind in kinds),
    ]


def ablate_states(model: nn.Module, windows: Windows, *, device: str, seed: int) -> StateAblation:
    """Measure every effect; the model must have the hook ``state`` and at least one LONG state.

    ``seed`` draws the donors and the resamples of the intervals. Raises ``DataError`` when some window has no partner
    in another document.
    """
    inputs_nT, targets_nT = _texts(windows, device)
    horizon = min(HORIZON, max(windows.length // 4, 1))
    boundaries = boundaries_of(windows.length, horizon)
    partner = donors(windows.documents, seed).tolist()
    states = states_at(model, inputs_nT, boundaries, rows_at_once(BATCH, windows.length, device))
    branches = long_branches(states[0])
    ablations = plan(branches)
    found = [
        _continue(model, state, state.rows(partner), ablations, inputs_nT, targets_nT, t, horizon)
        for t, state in zip(boundaries, states, strict=True)
    ]
    middle = boundaries.index(windows.length // 2)
    far_horizon = min(LONG_HORIZON, windows.length - boundaries[middle])
    far = [a for a in ablations if (a.replacement, a.kinds) == ("resample", "long")]
    late = _continue(
        model, states[middle], states[middle].rows(partner), far, inputs_nT, targets_nT, boundaries[middle], far_horizon
    )
    summary = _Summary(windows, seed)
    effects = [
        *summary.effects(ablations, found, dict.fromkeys((1, horizon))),
        *(summary.effects(far, [late], [far_horizon]) if far_horizon > horizon else []),
    ]
    shares, together = summary.comparison(branches, found)
    singles = {branch: _key(Ablation((branch,), "resample", "long")) for branch in branches}
    passes = len(boundaries) * (len(ablations) + 1) * horizon + (len(far) + 1) * far_horizon
    return StateAblation(
        branches=branches,
        effects=effects,
        shares=shares,
        interaction=together,
        kl_by_token={b: torch.stack([c.kl[key] for c in found]).mean((0, 1)).tolist() for b, key in singles.items()},
        boundaries=boundaries,
        windows=len(windows),
        documents=windows.num_documents,
        model_tokens=len(windows) * (boundaries[-1] + passes),
    )


def self_swap(model: nn.Module, windows: Windows, *, device: str) -> float:
    """Largest change that a swap of every row's state with itself makes, of a token's loss or KL. Exactly 0.

    It goes through all that a real swap goes through: states copied row by row, replaced by path, read again.
    """
    inputs_nT, targets_nT = _texts(windows, device)
    t = windows.length // 2
    (state,) = states_at(model, inputs_nT, [t], rows_at_once(BATCH, t, device))
    same = {
        f"{branch} {kinds}": swap(state, state.rows(range(len(windows))), branch, kinds)
        for branch in state.branches
        for kinds in ("long", "all")
    }
    end = min(t + HORIZON, windows.length)
    found = _continue_at_once(model, state, same, inputs_nT[:, t:end], targets_nT[:, t:end])
    changes = [(ce - found.clean_ce).abs().max() for ce in found.ce.values()]
    return float(torch.stack([*changes, *(kl.abs().max() for kl in found.kl.values())]).max())


def sign_of_life(share: float, kl: float) -> float:
    """The larger of share / ``NEGLIGIBLE_SHARE`` and KL / ``INACTIVE_KL``: below 1 a branch is dead by both."""
    return max(share / NEGLIGIBLE_SHARE, kl / INACTIVE_KL)


def has_two_branches(model: nn.Module, device: str) -> bool:
    """Whether at least two branches of the model have a LONG state, seen on two tokens."""
    return len(branches_with_memory(model, device)) > 1


def branches_with_memory(model: nn.Module, device: str) -> tuple[str, ...]:
    """Branches of the model that have a LONG state, seen on two tokens."""
    return long_branches(state_after(model, torch.zeros((1, 2), dtype=torch.int64, device=device)))


def boundaries_of(length: int, horizon: int) -> tuple[int, ...]:
    """Where texts of this length are cut: a quarter, half, three quarters, and as late as the horizon allows."""
    wanted = {length // 4, length // 2, 3 * length // 4, length - horizon}
    return tuple(sorted(t for t in wanted if 0 < t <= length - horizon))


def _texts(windows: Windows, device: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets ``[n, T]`` of all windows."""
    inputs, targets, _ = next(windows.batches(len(windows)))

    def tensor(tokens: Tokens) -> Tensor:
        return torch.from_numpy(tokens.astype(np.int64)).to(device)

    return tensor(inputs), tensor(targets)


def _key(ablation: Ablation) -> str:
    return f"{ablation.label} {ablation.replacement} {ablation.kinds}"


def _continue(
    model: nn.Module,
    state: State,
    other: State,
    ablations: Sequence[Ablation],
    inputs_nT: Tensor,
    targets_nT: Tensor,
    t: int,
    horizon: int,
) -> Continuation:
    """The tokens after boundary ``t`` under each ablation; ``other`` holds the state of each row's donor."""
    donor = {"zero": zero_state(state), "mean": mean_state(state), "resample": other}
    ablated = {_key(a): swap(state, donor[a.replacement], a.branches, a.kinds) for a in ablations}
    after = slice(t, t + horizon)
    return _continue_at_once(model, state, ablated, inputs_nT[:, after], targets_nT[:, after])


def _continue_at_once(
    model: nn.Module, clean: State, ablated: Mapping[str, State], inputs_nh: Tensor, targets_nh: Tensor
) -> Continuation:
    rows = rows_at_once(BATCH, inputs_nh.shape[1], inputs_nh.device)
    return continue_from(model, clean, ablated, inputs_nh, targets_nh, rows)


@dataclass(frozen=True)
class _Summary:
    """From token values to intervals over documents."""

    windows: Windows
    seed: int

    def effects(
        self, ablations: Sequence[Ablation], found: Sequence[Continuation], horizons: Sequence[int] | dict[int, None]
    ) -> Iterator[Effect]:
        for ablation in ablations:
            for horizon in horizons:
                key = _key(ablation)
                yield Effect(
                    ablation.label,
                    ablation.replacement,
                    ablation.kinds,
                    horizon,
                    self.interval(self.delta(found, key, horizon)),
                    self.interval(self.ratio([c.kl[key][:, :horizon] for c in found])),
                )

    def comparison(
        self, branches: Sequence[str], found: Sequence[Continuation]
    ) -> tuple[dict[str, Interval] | None, Interval | None]:
        """Shares of the branches, and their interaction."""
        if len(branches) < 2:
            return None, None
        deltas = {b: self.delta(found, _key(Ablation((b,), "resample", "long"))) for b in branches}
        every = self.delta(found, _key(Ablation(tuple(branches), "resample", "long")))
        together = self.interval(interaction(deltas, every))
        first = next(iter(deltas.values()))
        total = replace(first, numerators=np.sum([delta.numerators for delta in deltas.values()], axis=0))
        if not self.interval(total).low > 0:
            return None, together
        return {b: self.interval(share) for b, share in loss_shares(deltas).items()}, together

    def delta(self, found: Sequence[Continuation], key: str, horizon: int | None = None) -> ClusterRatio:
        return self.ratio([(c.ce[key] - c.clean_ce)[:, :horizon] for c in found])

    def ratio(self, values: Sequence[Tensor]) -> ClusterRatio:
        """The mean over the tokens of all boundaries, kept by document."""
        sums_n = torch.stack([value.sum(1) for value in values]).sum(0).numpy()
        counts_n = np.full(len(sums_n), sum(value.shape[1] for value in values))
        return ClusterRatio.of(sums_n, counts_n, self.windows.documents)

    def interval(self, ratio: ClusterRatio) -> Interval:
        return bootstrap_ratio(ratio, seed=self.seed)
