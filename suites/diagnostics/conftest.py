"""What D1, D2 and the score share: how states grow by position and by step, and how they differ between documents."""

import pytest

GROWTH_WINDOWS = 32


@pytest.fixture
def position_growths(bench, trained, require_hooks, judge):
    """``(seed, growth, where)``: the states of everything trained, along texts longer than the training's."""
    from harness.data import DataError
    from harness.divergence import PositionGrowth, longest_position, position_growth

    length = bench.config.data.seq_len
    try:
        windows = bench.windows(GROWTH_WINDOWS, longest_position(length))
    except DataError as error:
        judge.missing(str(error))
    found = []
    for seed, model, where in trained:
        require_hooks(model, "state")
        growth = bench.measured(
            f"state growth on {len(windows)} windows of {windows.length}, seed {seed}", PositionGrowth, model,
            lambda model=model, seed=seed: position_growth(
                model, windows, trained=length, device=bench.device, seed=seed
            ),
        )  # fmt: skip
        found.append((seed, growth, where | {"n": len(windows), "n_clusters": windows.num_documents}))
    return found


@pytest.fixture
def training_steps(finished_runs, bench):
    """``(seed, layers, where)``: every state along the training of every run; no layers where the log has none."""
    from harness.runlog import read_rows
    from harness.step_growth import layer_steps

    warmup = bench.config.train.warmup_steps
    return [
        (run.seed, layer_steps(read_rows(run.directory, "probe"), warmup), bench.where(run)) for run in finished_runs
    ]


@pytest.fixture
def state_spreads(bench, trained, samples):
    """``(seed, spreads, where)``: how the states of everything trained differ between texts."""
    from harness.collapse import Spreads, spreads

    return [
        (
            seed,
            bench.measured(
                f"state spreads on {sample.num_windows} windows, seed {seed}", Spreads, model,
                lambda sample=sample, seed=seed: spreads(sample, seed),
            ),
            where,
        )
        for (seed, sample, where), (_, model, _) in zip(samples, trained, strict=True)
    ]  # fmt: skip
