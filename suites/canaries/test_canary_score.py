"""CANARY: the mean over the canaries that a scale demands, over all seeds, and what it rests on."""

import pytest

pytestmark = pytest.mark.check("CANARY")


def test_the_suite_of_this_scale(bench, readings, judge, require_learnable):
    from fixtures.dialogues.training import SUITE_OF, suites_at
    from harness.forced_choice import score

    scale = bench.subject.scale
    suites = suites_at(scale)
    found = {name: [reading for _, reading, _ in readings(name)] for name in suites[SUITE_OF[scale]]}
    for suite, names in suites.items():
        macro = score([found[name] for name in names])
        note = f"mean over {', '.join(names)}; worst seed {macro.worst.value:.3f}"
        at = {"n": macro.score.n, "n_clusters": macro.score.n_clusters, "note": note}
        judge(f"{suite}_accuracy", macro.score.value, ci=macro.score.ci, **at)
        if suite == SUITE_OF[scale]:
            judge("macro_accuracy", macro.score.value, ci=macro.score.ci, **at)
    for category in sorted({name[:2] for name in found}):
        mean = score([readings_of for name, readings_of in found.items() if name.startswith(category)])
        judge("category_accuracy", mean.score.value, ci=mean.score.ci, case=category, n=mean.score.n,
              n_clusters=mean.score.n_clusters)  # fmt: skip
