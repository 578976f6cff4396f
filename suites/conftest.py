"""What every suite shares: the subject under test, its data and its trained runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from harness.checks import Check
from harness.graduation.plan import PlannedTraining
from harness.plugin.collection import DEMAND
from harness.plugin.options import is_spread
from harness.plugin.settings import SETTINGS, Settings
from harness.plugin.settings import Subject as Described

if TYPE_CHECKING:
    from fixtures.train_ahead import TrainAhead

MAGNITUDE_WINDOWS, MAGNITUDE_LENGTH = 32, 128


@pytest.hookimpl
def pytest_groundthink_validate(settings: Settings) -> None:
    """Refuse an unknown model, corpus or preset key before anything is collected."""
    from fixtures.corpora import check_spec
    from fixtures.presets import load_preset
    from fixtures.subjects import resolve

    resolve(settings.model, settings.scale)
    config = load_preset(settings.scale, settings.overrides_as_given)
    check_spec(settings.corpus or config.data.corpus)


AHEAD: "pytest.StashKey[TrainAhead]" = pytest.StashKey()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Start the process that trains ahead before the corpus is tokenised: what it compiles takes as long as that."""
    from fixtures.train_ahead import Job, TrainAhead, is_of_use

    config = session.config
    settings = config.stash[SETTINGS]
    if config.option.collectonly or not is_of_use(settings, is_spread=is_spread(config)):
        return
    config.stash[AHEAD] = TrainAhead(Job.of(settings))
    # a session may end before its first check
    config.add_cleanup(config.stash[AHEAD].end)


def _bench(settings: Settings):
    from fixtures.bench import Bench

    return Bench.of(
        model=settings.model,
        scale=settings.scale,
        device=settings.device,
        seeds=settings.seeds,
        store=settings.store,
        overrides=settings.overrides_as_given,
        corpus=settings.corpus,
        checkpoint=settings.checkpoint,
    )


@pytest.hookimpl
def pytest_groundthink_prepare(settings: Settings) -> None:
    """Tokenise the corpus and build the model once, so that what is wrong with them is said once."""
    _bench(settings).prepare()


@pytest.hookimpl
def pytest_groundthink_describe_subject(settings: Settings) -> Described:
    """Branches, size and corpus of what is under test."""
    from fixtures.corpora import BUILT_IN
    from fixtures.presets import load_preset
    from fixtures.subjects import resolve

    data = load_preset(settings.scale, settings.overrides_as_given).data
    corpus = settings.corpus or data.corpus
    about = resolve(settings.model, settings.scale).describe(data.vocab_size)
    return Described(settings.model, about.branches, about.parameters, corpus, corpus in BUILT_IN)


@pytest.hookimpl
def pytest_groundthink_trainings(settings: Settings, recipes: Sequence[str]) -> list[PlannedTraining]:
    """The trainings behind some recipes, and what the store holds of them."""
    from fixtures.plan import planned_trainings

    return planned_trainings(_bench(settings), recipes)


@pytest.hookimpl
def pytest_groundthink_examples(settings: Settings, check: Check) -> list[str] | None:
    """Items of a canary, in words of the default corpus: its tokenizer is made in seconds, others take minutes."""
    if check.suite != "canaries":
        return None
    from fixtures.dialogues.canaries import KINDS

    if check.id not in KINDS:
        return None
    from fixtures.dialogues.examples import examples

    return examples(check.id, settings.scale, settings.store / "corpora")


@pytest.fixture(scope="session")
def bench(settings: Settings):
    """The subject on its data: builds fresh models, gives trained runs from the store."""
    bench = _bench(settings)
    bench.configure_device()
    with bench.planted_defects():
        yield bench


@pytest.fixture(scope="session")
def training_ahead(request):
    """Trains on the GPU what the checks of a decision will ask for, while they measure; None in any other session."""
    ahead = request.config.stash.get(AHEAD, None)
    if ahead is None:
        yield None
        return
    ahead.train(_recipes_of(request.session))
    try:
        yield ahead
    finally:
        wrong = ahead.end()
        if wrong:
            # what it was to train was trained by whoever asked for it, so this costs time and no evidence
            request.config.get_terminal_writer().line(f"\n{wrong}")


@pytest.fixture(scope="session")
def resource_processes(bench):
    """Processes that measure what an update takes, one a size; on a GPU they warm up from the first request on."""
    from fixtures.resources import processes_of

    with processes_of(bench) as processes:
        yield processes


@pytest.fixture(autouse=True)
def machine(request):
    """Let trainings be begun ahead; a check that times the machine waits until they are over.

    While the session waits for the last of them, what is to be timed warms up.
    """
    if not request.node.get_closest_marker("check"):
        return
    ahead = request.getfixturevalue("training_ahead")
    if ahead is None:
        return
    check = request.node.stash[DEMAND].check
    if check.alone:
        ahead.wait()
    elif _waits_for_the_last(check, request.session) and _times_the_machine(request.session) and not ahead.has_failed:
        from fixtures.resources import may_warm_up_beside_trainings

        if may_warm_up_beside_trainings(request.getfixturevalue("bench")):
            request.getfixturevalue("resource_processes")


def _checks_of(session: pytest.Session) -> list[Check]:
    return [item.stash[DEMAND].check for item in session.items if DEMAND in item.stash]


def _recipes_of(session: pytest.Session) -> list[str]:
    """What the checks of a session ask for, each once."""
    return list(dict.fromkeys(recipe for check in _checks_of(session) for recipe in check.trainings))


def _waits_for_the_last(check: Check, session: pytest.Session) -> bool:
    """Whether a check needs what is trained ahead last, after which the process ahead has nothing left to do."""
    from fixtures.train_ahead import groups_of

    groups = groups_of(_recipes_of(session))
    return bool(groups) and not set(groups[-1]).isdisjoint(check.trainings)


def _times_the_machine(session: pytest.Session) -> bool:
    return any(check.alone for check in _checks_of(session))


@pytest.fixture(autouse=True)
def provenance(request):
    """Put on every record what it was measured on and computed by."""
    if not request.node.get_closest_marker("check"):
        return
    request.getfixturevalue("judge").provenance(**request.getfixturevalue("bench").provenance())


@pytest.fixture
def runs(bench, judge, publish_run):
    """One trained run a seed, diverged ones included. MISSING when the session measures bare weights."""
    if bench.checkpoint is not None:
        judge.missing(f"{bench.checkpoint} is a checkpoint: it has no training log, and this check reads one")
    found = bench.runs
    for run in found:
        publish_run(run.directory, seed=run.seed, name=bench.subject.name, baselines=bench.naive_nats)
    return found


@pytest.fixture
def finished_runs(runs, judge):
    """The runs, all of which reached their last step. MISSING otherwise."""
    for run in runs:
        if run.outcome.status != "finished":
            judge.missing(f"the training of seed {run.seed} {run.outcome.status}: {run.outcome.reason}")
    return runs


@pytest.fixture
def trained(bench, judge, request):
    """``(seed, model, where)`` of everything trained: a model a run, or the weights of ``--checkpoint``."""
    if bench.checkpoint is not None:
        model = bench.from_checkpoint()
        seed = bench.fresh_seed(model)
        if seed is not None:
            judge.invalid(f"{bench.checkpoint} holds the untrained weights of seed {seed}: it is no trained model")
        return [(bench.seeds[0], model, {"seed": bench.seeds[0]})]
    runs = request.getfixturevalue("finished_runs")
    return [(run.seed, bench.model_of(run), bench.where(run)) for run in runs]


@pytest.fixture
def require_hooks(judge):
    """``require_hooks(model, "state")``: MISSING, never a proxy, when the model lacks a hook of its contract."""
    from models.protocol import capabilities

    def require(model, *hooks):
        lacking = sorted(set(hooks) - capabilities(model))
        if lacking:
            judge.missing(f"the model lacks {', '.join(lacking)}: see docs/bring-your-own-model.md")

    return require


@pytest.fixture
def samples(bench, trained, require_hooks):
    """``(seed, sample, where)``: states, writes and gates of everything trained, on fixed validation windows."""
    found = []
    for seed, model, where in trained:
        require_hooks(model, "state")
        sample = bench.sample(seed, model)
        found.append((seed, sample, where | {"n": sample.num_windows, "n_clusters": sample.num_documents}))
    return found


@pytest.fixture
def ablations(bench, trained, require_hooks, judge):
    """``(seed, ablation, where)``: what the state of each branch of everything trained is worth to the next tokens."""
    from harness.interaction import branches_with_memory

    found = []
    for seed, model, where in trained:
        require_hooks(model, "state")
        if not branches_with_memory(model, bench.device):
            judge.na("no branch has a state that lasts, so there is none to take away")
        measured = bench.state_ablation(model, seed)
        found.append((seed, measured, where | {"n": measured.windows, "n_clusters": measured.documents}))
    return found


@pytest.fixture
def sizes_of(bench):
    """``sizes_of(model)``: how large the states of a model are."""
    from harness.state_size import Magnitudes, measure_magnitudes

    def measure(model):
        windows = bench.windows(MAGNITUDE_WINDOWS, MAGNITUDE_LENGTH)
        return bench.measured(
            f"magnitudes of {MAGNITUDE_WINDOWS} windows of {MAGNITUDE_LENGTH}", Magnitudes, model,
            lambda: measure_magnitudes(model, windows, device=bench.device),
        )  # fmt: skip

    return measure


@pytest.fixture
def magnitudes(sizes_of, trained, require_hooks):
    """``(magnitudes, where)`` of everything trained."""
    found = []
    for _, model, where in trained:
        require_hooks(model, "state")
        sizes = sizes_of(model)
        found.append((sizes, where | {"n": sizes.num_windows, "n_clusters": sizes.num_documents}))
    return found
