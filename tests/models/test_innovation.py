import pytest
import torch

from models.blocks.innovation import ssd_innovation, wkv6_innovation


def walk(writes_BTHIJ, decays_BTHI1, initial_BHIJ):
    """The definition, written out: ||S_t - A_t S_{t-1}|| / ||S_t||."""
    state, shares = initial_BHIJ, []
    for t in range(writes_BTHIJ.shape[1]):
        decayed = decays_BTHI1[:, t] * state
        state = decayed + writes_BTHIJ[:, t]
        shares.append((state - decayed).flatten(-2).norm(dim=-1) / state.flatten(-2).norm(dim=-1))
    return torch.stack(shares, dim=1)


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("injected", [False, True])
def test_wkv6_innovation_is_its_definition(draw, injected):
    k, v, log_w = draw(2, 9, 3, 4), draw(2, 9, 3, 5), -draw(2, 9, 3, 4).exp()
    initial = draw(2, 3, 4, 5) if injected else None
    start = torch.zeros(2, 3, 4, 5, dtype=torch.float64) if initial is None else initial
    want = walk(k[..., None] * v[..., None, :], log_w.exp()[..., None], start)
    torch.testing.assert_close(wkv6_innovation(k, v, log_w, initial), want)


@pytest.mark.parametrize("injected", [False, True])
def test_ssd_innovation_is_its_definition_with_shared_groups(draw, injected):
    x, dt, A, B = draw(2, 9, 4, 3), draw(2, 9, 4).exp(), -draw(4).exp(), draw(2, 9, 2, 5)
    initial = draw(2, 4, 3, 5) if injected else None
    start = torch.zeros(2, 4, 3, 5, dtype=torch.float64) if initial is None else initial
    writes = (dt[..., None] * x)[..., None] * B.repeat_interleave(2, dim=2)[..., None, :]
    want = walk(writes, (dt * A).exp()[..., None, None], start)
    torch.testing.assert_close(ssd_innovation(x, dt, A, B, initial), want)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_independent_writes_under_a_steady_decay_give_the_known_share(draw, decay):
    T = 400
    log_w = torch.full((8, T, 1, 16), decay, dtype=torch.float64).log()
    share = wkv6_innovation(draw(8, T, 1, 16), draw(8, T, 1, 16), log_w, None)[:, 100:]
    assert share.square().mean().item() == pytest.approx(1 - decay**2, rel=0.05)


def test_the_first_write_into_an_empty_state_is_all_new_and_an_empty_state_has_no_share(draw):
    k, v, log_w = draw(1, 2, 1, 4), draw(1, 2, 1, 4), -torch.ones(1, 2, 1, 4, dtype=torch.float64)
    assert wkv6_innovation(k, v, log_w, None)[0, 0, 0].item() == pytest.approx(1)
    assert wkv6_innovation(0 * k, v, log_w, None).isnan().all()
