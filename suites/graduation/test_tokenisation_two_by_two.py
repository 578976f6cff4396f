"""TOKENISATION: what the tokeniser does to loss and balance, and what the corpus does, told apart by crossing them."""

import pytest

pytestmark = pytest.mark.check("TOKENISATION")


@pytest.fixture
def cells(bench, judge):
    """Every run of every cell, cell by cell, seed by seed."""
    from fixtures.studies import require_seeds
    from fixtures.study_readings import cell_runs

    if bench.checkpoint is not None:
        judge.missing(f"{bench.checkpoint} is a checkpoint, and this study trains")
    require_seeds(bench)
    return cell_runs(bench)


def _where(cell, run):
    return cell.bench.where(run) | {"case": f"{cell.tokeniser} of {cell.corpus}"}


def _pairs(cells):
    """Byte pairs and bytes of the same corpus, each with the run of its last seed."""
    distinct = list({id(each.cell): each for each in cells}.values())
    return list(zip(distinct[::2], distinct[1::2], strict=True))


@pytest.fixture
def compute_ratio(cells):
    """``compute_ratio(byte pairs, bytes)``: operations of an update of bytes over one of byte pairs, and a note."""
    import math

    from harness.flops import FlopsError

    def of(pairs, plain):
        try:
            return plain.operations_per_step() / pairs.operations_per_step(), ""
        except FlopsError as error:
            return math.nan, f"; {error}"

    return of


def test_the_cells_differ_in_nothing_else(cells, compute_ratio, judge):
    import math

    from fixtures.studies import bytes_per_step
    from fixtures.study_readings import unmatched_layers

    for pairs, plain in _pairs(cells):
        corpus = pairs.cell.corpus
        unmatched = unmatched_layers(pairs.cell, plain.cell)
        judge.holds("layers_match", not unmatched, case=corpus, note=", ".join(unmatched[:3]))
        read = [bytes_per_step(each.cell) for each in (pairs, plain)]
        judge("unmatched_bytes", abs(math.log(read[1] / read[0])), case=corpus, note=f"{read[0]:.0f} a step")
        ratio, unknown = compute_ratio(pairs, plain)
        note = f"operations of an update; bytes and compute cannot both be equal with equal layers{unknown}"
        judge.info("compute_ratio", ratio, case=corpus, null_value=1, note=note)


def test_every_cell_has_learnt_to_use_its_context(cells, judge):
    for cell, run in cells:
        gain = cell.bench.final_loss(run).context_gain
        judge("context_gain", gain.value, ci=gain.ci, n=gain.n, n_clusters=gain.n_clusters, **_where(cell, run))


def test_no_cell_learns_its_text_by_heart(cells, judge):
    for each in cells:
        rise = each.rise_from_least()
        note = "last evaluation less the best one"
        judge(
            "rise_from_least", rise.value, ci=rise.ci, n=rise.n, n_clusters=rise.n_clusters, note=note, **_where(*each)
        )


def test_no_cell_beats_the_entropy_of_its_source(cells, judge):
    from fixtures.corpora import find_text_source

    for each in cells:
        bits = each.bits()
        where = _where(*each) | {"n": bits.n, "n_clusters": bits.n_clusters}
        judge.info("bits_per_byte", bits.value, ci=bits.ci, unit="bits/byte", null_value=8, **where)
        least = getattr(find_text_source(each.cell.corpus), "entropy_bits_per_byte", None)
        if least is not None:
            judge("above_entropy", bits.value - least, ci=(bits.low - least, bits.high - least), **where)


def test_what_the_tokeniser_changes_and_what_the_corpus(cells, compute_ratio, bench, judge, publish_figure):
    import math

    from fixtures.study_readings import as_table, felt, log_gradient_ratio
    from harness.metrics.anova import two_by_two
    from harness.study_figures import cells_figure

    for pairs, plain in _pairs(cells):
        # the byte model's updates until it has spent what the other had spent when it was last evaluated
        ratio, unknown = compute_ratio(pairs, plain)
        steps = pairs.last_evaluated
        spent = {id(pairs.cell): steps, id(plain.cell): steps / ratio}
        for each in cells:
            if (step := spent.get(id(each.cell))) is not None:
                note = f"after {step:.0f} updates, on the windows evaluated along the way{unknown}"
                at = _where(*each) | {"note": note}
                judge.info("bits_per_byte_at_equal_compute", each.bits_at(step), unit="bits/byte", **at)
    outcomes = {
        "bits_per_byte": [each.bits().value for each in cells],
        "rwkv_state_share": [felt(cell.bench, run).shares["rwkv"] for cell, run in cells],
        "log_gradient_ratio": [log_gradient_ratio(run) for _, run in cells],
    }
    for name, values in outcomes.items():
        if judge.holds("outcome_is_finite", all(map(math.isfinite, values)), case=name) == "FAIL":
            return
        table = as_table(values)
        analysis = two_by_two(table)
        for factor, effect in (
            ("bytes less byte pairs", analysis.first),
            ("second corpus less first", analysis.second),
            ("interaction", analysis.interaction),
        ):
            difference, at = effect.difference, {"case": f"{name}, {factor}", "n": len(values)}
            note = f"F {effect.f:.3g} with 1 and {analysis.free} degrees of freedom"
            judge.info("effect", difference.value, ci=difference.ci, null_value=0, note=note, **at)
            judge.info("p_value", effect.p_value, **at)
            judge.info("share_of_variation", effect.share, **at)
        for (cell, run), value in zip(cells, values, strict=True):
            judge.info(f"cell_{name}", value, **_where(cell, run))
        corpora = [pairs.cell.corpus for pairs, _ in _pairs(cells)]
        title = f"Tokenisation and corpus ({bench.subject.name})"
        figure = cells_figure(title, name.replace("_", " "), table.mean(2).tolist(), ["byte pairs", "bytes"], corpora)
        publish_figure(f"tokenisation-{name.replace('_', '-')}", figure)
