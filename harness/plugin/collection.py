"""Which collected tests are checks, in which scales, and in which order they run."""

from dataclasses import dataclass

import pytest

from harness.checks import MARKERS, Check
from harness.errors import HarnessError
from harness.plugin.board import group_by_check
from harness.plugin.options import BOARD
from harness.plugin.settings import SETTINGS, TABLES
from harness.tables import Tables


@dataclass(frozen=True)
class Demand:
    """The check an item measures and everything it needs: by the table and by its marker."""

    check: Check
    needs: tuple[str, ...]


DEMAND = pytest.StashKey[Demand]()
ITEMS_BY_CHECK = pytest.StashKey[dict[str, list[str]]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give every check its scale markers before ``-m`` selects, and drop what this scale does not demand."""
    scale = config.stash[SETTINGS].scale
    dropped = []
    for item in items:
        try:
            demand = _demand_of(item, config.stash[TABLES])
        except HarnessError as error:
            raise pytest.UsageError(f"{item.nodeid}: {error}") from error
        if demand is None:
            continue
        item.stash[DEMAND] = demand
        for demanded in demand.check.scales:
            item.add_marker(MARKERS[demanded])
        if not _wanted(config, item, demand.check, scale):
            dropped.append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]


def _wanted(config: pytest.Config, item: pytest.Item, check: Check, scale: str) -> bool:
    """Whether a check runs: what the scale demands under ``--graduate``, else what runs at it and studies by name."""
    if config.stash[SETTINGS].graduates:
        return check.id in config.stash[TABLES].evidence.scale(scale).demands
    if scale not in check.scales:
        return False
    return not check.study or any(_names(config, argument, item) for argument in config.args)


def _names(config: pytest.Config, argument: str, item: pytest.Item) -> bool:
    """Whether an argument of the command line names this very file, or a test in it."""
    path = config.invocation_params.dir / argument.partition("::")[0]
    return path.resolve() == item.path.resolve()


def _demand_of(item: pytest.Item, tables: Tables) -> Demand | None:
    marker = item.get_closest_marker("check")
    if marker is None:
        if item.path.is_relative_to(item.config.rootpath / "suites"):
            raise HarnessError("a test under suites/ measures a check; mark it with @pytest.mark.check('ID')")
        return None
    if len(marker.args) != 1 or not set(marker.kwargs) <= {"needs"}:
        raise HarnessError(f"check{marker.args} takes one id and needs=: @pytest.mark.check('G3', needs=('G2',))")
    check = tables.checks.find(marker.args[0])
    extra = marker.kwargs.get("needs", ())
    named = (extra,) if isinstance(extra, str) else tuple(extra)
    needs = dict.fromkeys((*check.needs, *(tables.checks.find(need).id for need in named)))
    return Demand(check, tuple(needs))


class Ordering:
    """Puts prerequisites first. Runs last, so that nothing reorders after it: waiting relies on the order."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Sort the checks by the depth of their prerequisites, stably, in the places that checks occupy.

        Those that want the machine to themselves come last: the others need not wait for them.
        """
        places = [index for index, item in enumerate(items) if DEMAND in item.stash]
        needs: dict[str, set[str]] = {}
        for index in places:
            demand = items[index].stash[DEMAND]
            needs.setdefault(demand.check.id, set()).update(demand.needs)
        try:
            depths = config.stash[TABLES].checks.depths(needs)
        except HarnessError as error:
            raise pytest.UsageError(str(error)) from error

        def place(item: pytest.Item) -> tuple[bool, int]:
            check = item.stash[DEMAND].check
            return check.alone, depths[check.id]

        ordered = sorted((items[index] for index in places), key=place)
        for index, item in zip(places, ordered, strict=True):
            items[index] = item


def pytest_configure(config: pytest.Config) -> None:
    """Register the ordering, which has to run after every other plugin's."""
    config.pluginmanager.register(Ordering(), "groundthink-ordering")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Publish the plan: what is not finished by the end of the session is MISSING, whatever became of it."""
    if session.config.option.collectonly:
        return
    demands = {item.nodeid: item.stash[DEMAND].check.id for item in session.items if DEMAND in item.stash}
    session.config.stash[ITEMS_BY_CHECK] = group_by_check(demands)
    if demands:
        session.config.stash[BOARD].plan(demands)
