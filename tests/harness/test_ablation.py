"""Ablations replace what they name and nothing else, donors are strangers, and a larger state is the same function."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from harness.ablation import (
    boundary_states,
    continue_from,
    donors,
    long_branches,
    mean_state,
    states_at,
    swap,
    zero_state,
)
from harness.data import DataError, Split, Windows
from harness.interaction import ablate_states, boundaries_of, branches_with_memory, self_swap, sign_of_life
from harness.raw_balance import raw_balance
from harness.reparametrise import STATE_FACTOR, enlarge_state, enlarged_state, key_readers
from models import get_model
from models.protocol import State

VOCAB, LENGTH = 97, 40


def lively(name):
    torch.manual_seed(0)
    model = get_model(name, vocab_size=VOCAB)
    # a fresh RWKV-6 writes nothing at all
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def hybrid():
    return lively("GF-MH")


@pytest.fixture
def tokens_nT():
    return torch.randint(0, VOCAB, (6, LENGTH), generator=torch.Generator().manual_seed(1))


def windows_of(documents):
    tokens = np.random.default_rng(2).integers(0, VOCAB, size=(LENGTH + 1) * len(documents)).astype(np.uint16)
    starts = np.arange(len(documents), dtype=np.int64) * (LENGTH + 1)
    split = Split(tokens, np.array([0, len(tokens)]), ("all",), 0)
    return Windows(split, LENGTH, starts, np.asarray(documents, dtype=np.int64))


@pytest.mark.parametrize("documents", [[0, 1], [0, 0, 1, 1], [5, 5, 5, 2, 9, 2, 9, 9], list(range(30)) * 2])
@pytest.mark.parametrize("seed", range(5))
def test_every_row_borrows_from_another_document_and_lends_once(documents, seed):
    partner = donors(documents, seed)
    assert sorted(partner) == list(range(len(documents)))
    assert all(documents[row] != documents[lender] for row, lender in enumerate(partner))


def test_donors_depend_on_the_seed_alone():
    documents = list(range(20)) * 2
    assert (donors(documents, 3) == donors(documents, 3)).all()
    assert (donors(documents, 3) != donors(documents, 4)).any()


@pytest.mark.parametrize("documents", [[7], [7, 7, 7], [7, 7, 7, 1, 2]])
def test_too_much_of_one_document_is_refused_by_name(documents):
    with pytest.raises(DataError, match="document 7 has"):
        donors(documents, 0)


@pytest.mark.parametrize("name", ["GF-MH", "GPT2"])
def test_states_of_all_rows_are_those_of_one_pass(name, tokens_nT):
    model = lively(name)
    early, late = states_at(model, tokens_nT, [7, 21], 4)
    for t, found in ((7, early), (21, late)):
        with torch.no_grad():
            _, want = model(tokens_nT[:, :t], return_states=True)
        for (path, tensor), (_, expected) in zip(found.items(), want.items(), strict=True):
            assert len(tensor) == len(tokens_nT)
            torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()) + 1e-12,
                                       msg=str(path))  # fmt: skip
    for (_, tensor), (_, expected) in zip(boundary_states(model, tokens_nT, 7, 4).items(), early.items(), strict=True):
        assert torch.equal(tensor, expected)


def test_a_swap_takes_one_branch_in_all_layers_and_leaves_the_rest(hybrid, tokens_nT):
    state = boundary_states(hybrid, tokens_nT, 9, 6)
    other = state.rows([1, 2, 3, 4, 5, 0])
    for kinds, swapped_kinds in (("long", {"wkv"}), ("all", {"wkv", "shift_att"})):
        found = dict(swap(state, other, "rwkv", kinds).items())
        for path, tensor in state.items():
            taken = path.branch == "rwkv" and path.kind in swapped_kinds
            assert torch.equal(found[path], dict(other.items())[path] if taken else tensor), path
    assert long_branches(state) == ("rwkv", "mamba")


def test_zero_and_mean_leave_counters_alone():
    state = State.of([{"only": {"memory": torch.tensor([[1.0], [3.0]]), "count": torch.tensor([[4], [4]])}}])
    zero, mean = dict(zero_state(state).items()), dict(mean_state(state).items())
    memory, count = (path for path, _ in state.items())
    assert zero[memory].tolist() == [[0.0], [0.0]]
    assert mean[memory].tolist() == [[2.0], [2.0]]
    assert zero[count].tolist() == mean[count].tolist() == [[4], [4]]


@pytest.mark.parametrize("name", ["GF-MH", "GPT2"])
def test_losses_and_divergences_are_those_of_a_plain_forward_pass(name, tokens_nT):
    model, t, h = lively(name), 20, 5
    state = boundary_states(model, tokens_nT, t, 6)
    other = state.rows([1, 2, 3, 4, 5, 0])
    inputs, targets = tokens_nT[:, t : t + h], tokens_nT[:, t + 1 : t + h + 1]
    found = continue_from(model, state, {"all": swap(state, other, state.branches, "all")}, inputs, targets, 4)

    with torch.no_grad():
        whole = model(tokens_nT)[:, t : t + h].double().log_softmax(-1)
        # a row that carries the state of the next one is that row, so its text with this continuation is the answer
        strangers = torch.cat([tokens_nT.roll(-1, 0)[:, :t], inputs], 1)
        swapped = model(strangers)[:, t:].double().log_softmax(-1)
    want = (whole.exp() * (whole - swapped)).sum(-1)
    torch.testing.assert_close(found.clean_ce, F.nll_loss(whole.flatten(0, 1), targets.flatten(), reduction="none")
                               .view(targets.shape), rtol=1e-4, atol=1e-5)  # fmt: skip
    torch.testing.assert_close(found.ce["all"], -swapped.gather(-1, targets[..., None]).squeeze(-1), rtol=1e-4,
                               atol=1e-5)  # fmt: skip
    torch.testing.assert_close(found.kl["all"], want, rtol=1e-3, atol=1e-9)
    assert float(want.min()) > 1e-6


def test_boundaries_leave_room_for_the_horizon():
    assert boundaries_of(256, 16) == (64, 128, 192, 240)
    assert boundaries_of(40, 10) == (10, 20, 30)


def test_a_hybrid_is_measured_whole(hybrid):
    found = ablate_states(hybrid, windows_of([0, 1, 2, 3, 4, 5]), device="cpu", seed=0)
    assert found.branches == branches_with_memory(hybrid, "cpu") == ("rwkv", "mamba")
    assert {e.branches for e in found.effects} == {"rwkv", "mamba", "rwkv+mamba"}
    assert found.judged_horizon == 10
    for branch in found.branches:
        assert found.effect(branch).kl.low > 1e-6
        assert np.mean(found.kl_by_token[branch]) == pytest.approx(found.effect(branch).kl.value)
        assert found.effect(branch).kl.n == 6
    deltas = [found.effect(name).delta.value for name in ("rwkv+mamba", "rwkv", "mamba")]
    assert found.interaction.value == pytest.approx(deltas[0] - deltas[1] - deltas[2])
    assert found.effect("rwkv", horizon=20).delta.n == 6
    with pytest.raises(KeyError):
        found.effect("rwkv", "mean", "all")
    assert self_swap(hybrid, windows_of([0, 1]), device="cpu") == 0


def test_a_model_of_one_branch_has_nothing_to_share():
    found = ablate_states(lively("GPT2"), windows_of([0, 1, 2, 3]), device="cpu", seed=0)
    assert (found.branches, found.shares, found.interaction) == (("attention",), None, None)
    assert found.effect("attention").kl.low > 1e-6


def test_a_branch_whose_write_is_muted_is_exactly_inactive():
    from fixtures.mutants import MUTANTS

    muted = MUTANTS["muted_rwkv"].build(lively("GF-MH"))
    found = ablate_states(muted, windows_of([0, 1, 2, 3]), device="cpu", seed=0)
    assert found.effect("rwkv", "resample", "all").kl.high == 0
    assert found.effect("rwkv", "resample", "all").delta.value == 0
    assert found.effect("mamba").kl.low > 1e-6


def test_a_branch_is_dead_only_by_both_witnesses():
    assert sign_of_life(0.0, 1e-7) < 1
    assert sign_of_life(0.0, 1e-3) > 1
    assert sign_of_life(0.2, 0.0) > 1
    assert not sign_of_life(math.nan, 1.0) >= 1


def test_a_larger_state_is_the_same_function_bit_by_bit(hybrid, tokens_nT):
    with torch.no_grad():
        logits, state = hybrid(tokens_nT, return_states=True)
        with enlarged_state(hybrid):
            same, larger = hybrid(tokens_nT, return_states=True)
        again = hybrid(tokens_nT)
    assert len(key_readers(hybrid)) == 4
    assert torch.equal(same, logits)
    assert torch.equal(again, logits)
    for (path, tensor), (_, was) in zip(larger.items(), state.items(), strict=True):
        assert torch.equal(tensor, STATE_FACTOR * was if path.kind == "wkv" else was), path


def test_a_larger_state_trains_the_same_weights(tokens_nT):
    plain, larger = lively("GF-MH"), lively("GF-MH")
    enlarge_state(larger)
    for model in (plain, larger):
        F.cross_entropy(model(tokens_nT[:, :-1]).flatten(0, 1), tokens_nT[:, 1:].flatten()).backward()
    for (name, one), other in zip(plain.named_parameters(), larger.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


def test_raw_ratios_move_with_the_unit_of_a_state_and_nothing_else_does(hybrid):
    windows = windows_of([0, 1, 2, 3])
    found = raw_balance(hybrid, windows, device="cpu")
    assert found.enlarged_logit_change == 0
    assert found.enlarged_variance_ratio / found.state_variance_ratio == pytest.approx(STATE_FACTOR**2)
    assert not hybrid.training or not any(m._forward_hooks for m in hybrid.modules())

    with enlarged_state(hybrid):
        larger = ablate_states(hybrid, windows, device="cpu", seed=0)
        unfused = raw_balance(hybrid, windows, device="cpu")
    assert larger == ablate_states(hybrid, windows, device="cpu", seed=0)
    assert unfused.output_variance_ratio == found.output_variance_ratio
    assert unfused.write_over_residual == found.write_over_residual
    assert unfused.state_variance_ratio == pytest.approx(found.enlarged_variance_ratio)


def test_the_raw_ratio_of_outputs_is_that_of_the_mixers(hybrid):
    windows = windows_of([0, 1])
    seen = {"rwkv": [], "mamba": []}
    hooks = [
        mixer.register_forward_hook(lambda _, __, out, branch=branch: seen[branch].append(out.y.double()))
        for branch, mixers in hybrid.branch_modules().items()
        for mixer in mixers
    ]
    inputs, _, _ = next(windows.batches(2))
    with torch.no_grad():
        hybrid(torch.from_numpy(inputs.astype(np.int64)))
    for hook in hooks:
        hook.remove()
    variances = {branch: torch.stack(outputs).var(correction=0) for branch, outputs in seen.items()}
    found = raw_balance(hybrid, windows, device="cpu")
    assert found.branches == ("rwkv", "mamba")
    assert found.output_variance_ratio == pytest.approx(float(variances["rwkv"] / variances["mamba"]), rel=1e-5)
