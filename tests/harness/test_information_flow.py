"""Information flow from the state to the next token: the bounds, the donors, and whole measurements of toys."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from harness import information_flow, known_answers_information
from harness.data import DataError, Split, Windows
from harness.information_flow import Exchange, donor_rows, exchange, measure_flow
from harness.known_answers import _registry
from harness.known_answers_information import TwoBits, both, conjunction, exclusive_or, first_only
from harness.metrics import information

DOCUMENTS, LENGTH = 48, 8


def windows(documents=DOCUMENTS):
    """One window a document; the first token of document d is d modulo 8, and only it counts."""
    tokens = np.zeros((documents, LENGTH + 1), np.uint16)
    tokens[:, 0] = np.arange(documents) % 8
    offsets = np.arange(documents + 1) * (LENGTH + 1)
    names = tuple(str(d) for d in range(documents))
    return Windows.of(Split(tokens.ravel(), offsets.astype(np.int64), names, 0), LENGTH, documents)


def measure(rule, **options):
    return measure_flow(TwoBits(rule), windows(), device="cpu", seed=3, **{"targets": 24, **options})


def oracle(logp_JKV):
    """The same flow, cell by cell, from the definition."""
    p = logp_JKV.exp().numpy()
    J, K, _ = p.shape

    def entropy(q):
        return -sum(x * math.log(x) for x in q if x > 0)

    mix = p.mean((0, 1))
    cells = np.mean([entropy(p[j, k]) for j in range(J) for k in range(K)])
    rows, columns = np.mean([entropy(p[j].mean(0)) for j in range(J)]), np.mean(
        [entropy(p[:, k].mean(0)) for k in range(K)]
    )  # fmt: skip
    upper = []
    for j in range(J):
        for k in range(K):
            others = np.mean([p[a, b] for a in range(J) for b in range(K) if a != j and b != k], axis=0)
            upper.append(sum(x * math.log(x / y) for x, y in zip(p[j, k], others, strict=True)))
    top = entropy(mix)
    return top - cells, np.mean(upper), (top - rows, top - columns), (columns - cells, rows - cells)


@pytest.mark.parametrize("shape", [(2, 2, 5), (4, 3, 700)])
def test_the_flow_is_the_one_of_its_definition(shape):
    logits = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, (total, upper, alone, given) = information.flow(logits.log_softmax(-1)), oracle(logits.log_softmax(-1))

    assert found.total.lower == pytest.approx(total, abs=1e-12)
    assert found.total.upper == pytest.approx(upper, abs=1e-12)
    assert found.alone == pytest.approx(alone, abs=1e-12)
    assert found.given == pytest.approx(given, abs=1e-12)
    assert sum(found.parts) == pytest.approx(total, abs=1e-12)


def test_the_bounds_of_a_grid_hold_its_truth_between_them():
    # a population small enough to enumerate; leaving out the cell alone would put the upper bound below the truth
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randn(40, 1, 6, generator=generator), torch.randn(1, 40, 6, generator=generator)
    logp = (1.5 * first + second).double().log_softmax(-1)
    truth = information.flow(logp).total.lower
    rng = np.random.default_rng(4)
    drawn = [logp[rng.integers(0, 40, 16)][:, rng.integers(0, 40, 16)] for _ in range(200)]
    found = [information.flow(one).total for one in drawn]

    assert np.mean([f.lower for f in found]) < truth < np.mean([f.upper for f in found])


def test_twins_share_alike():
    generator = torch.Generator().manual_seed(5)
    effect = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    found = information.flow((effect[:, None] + effect[None]).log_softmax(-1))

    assert found.parts[0] == pytest.approx(found.parts[1], abs=1e-12)
    assert found.parts[0] > 0.1


@pytest.mark.parametrize(
    ("rule", "parts"),
    [(both, (0.69, 0.69)), (exclusive_or, (0.35, 0.35)), (first_only, (0.69, 0)), (conjunction, (0.28, 0.28))],
)
def test_a_model_is_read_as_its_rule_says(rule, parts):
    found = measure(rule)

    assert tuple(found.flow[branch].value for branch in ("rwkv", "mamba")) == pytest.approx(parts, abs=0.06)
    assert sum(f.value for f in found.flow.values()) == pytest.approx(found.total.value, abs=1e-9)
    assert found.null < 1e-12
    # SHORT is kept in the first, exchanged in the second, where it adds what it says
    assert found.joint_all.value > found.joint.value + 0.4


def test_a_state_that_is_not_read_has_no_part():
    found = measure(first_only)
    assert found.shares["mamba"].value == pytest.approx(0, abs=1e-9)
    assert found.alone["mamba"] == pytest.approx(0, abs=1e-9)


def test_a_model_that_reads_no_state_has_no_shares():
    found = measure(lambda r, m: 0 * (r + m))
    assert found.total.value == pytest.approx(0, abs=1e-9)
    assert found.shares is None
    assert found.bracket == 0
    assert not found.invalid


def test_more_donors_are_taken_where_the_bracket_is_wide():
    # two donors of four possible answers leave the upper bound at infinity or far above the lower one
    found = measure(both, donors=(2, 16))
    assert found.donors == 16
    assert found.bracket < 0.2
    assert "2 donors" in measure(both, donors=(2,)).invalid


def test_donors_come_from_other_documents_and_from_as_many_as_there_are():
    documents = np.repeat(np.arange(8), 5)
    rows = donor_rows(documents, 7, 10, np.random.default_rng(0))

    assert len(set(rows.tolist())) == 10
    assert documents[7] not in documents[rows]
    assert np.bincount(documents[rows], minlength=8).max() <= 2
    with pytest.raises(DataError, match="35 windows of other documents"):
        donor_rows(documents, 7, 36, np.random.default_rng(0))


def test_an_exchange_moves_only_the_branches_that_it_names():
    _, state = TwoBits(both)(torch.arange(8)[:, None], return_states=True)
    exchanged = exchange(state, 7, Exchange({"rwkv": [0, 1]}))
    mixed = {str(path): tensor.flatten().tolist() for path, tensor in exchanged.items()}

    assert mixed["layers.0.rwkv.wkv"] == [0, 1]
    assert mixed["layers.0.mamba.ssm"] == [1, 1]
    assert mixed["layers.0.rwkv.shift_att"] == [1, 1]


def test_exchanges_follow_each_other_in_one_batch():
    _, state = TwoBits(both)(torch.arange(8)[:, None], return_states=True)
    exchanges = [Exchange({"rwkv": [0, 1]}), Exchange({"mamba": [2]}, short=True), Exchange({"rwkv": [4, 5, 6]})]
    together = dict(exchange(state, 7, *exchanges).items())
    for path, tensor in together.items():
        alone = [dict(exchange(state, 7, one).items())[path] for one in exchanges]
        assert tensor.equal(torch.cat(alone))


true_flow = information.flow


def _broken_total(logp_JKV):
    """The upper bound that leaves out the cell alone, and a total counted twice."""
    found = true_flow(logp_JKV)
    return dataclasses.replace(found, total=information.Bracket(2 * found.total.lower, found.total.lower))


def _without_interaction(logp_JKV):
    found = true_flow(logp_JKV)
    return dataclasses.replace(found, given=found.alone)


def _uneven(logp_KV):
    found = true_channel(logp_KV)
    return information.Bracket(found.upper, found.lower)


true_channel = information.channel_information

BROKEN = [
    (information, "flow", _broken_total),
    (information, "flow", _without_interaction),
    (information, "channel_information", _uneven),
    (
        known_answers_information,
        "exchange",
        lambda state, row, one: exchange(state, row, dataclasses.replace(one, short=True)),
    ),
    (known_answers_information, "grid", lambda names, a, b: Exchange({n: list(a) * len(b) for n in names})),
]


@pytest.mark.parametrize(("module", "name", "broken"), BROKEN, ids=[f"{row[1]}-{i}" for i, row in enumerate(BROKEN)])
def test_a_broken_metric_fails_its_known_answers(monkeypatch, module, name, broken):
    functions = [e.function for e in _registry.values() if e.function.__module__ == known_answers_information.__name__]
    for function in functions:
        function()
    monkeypatch.setattr(module, name, broken)
    failed = 0
    for function in functions:
        try:
            function()
        except AssertionError:
            failed += 1
    assert failed >= 1


def test_a_row_of_the_target_itself_is_found_out(monkeypatch):
    # negative control: if donors were taken from the target's own document, nothing would flow
    monkeypatch.setattr(information_flow, "donor_rows", lambda documents, row, count, generator: np.full(count, row))
    assert measure(both).total.value == pytest.approx(0, abs=1e-9)
