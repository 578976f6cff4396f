"""S1: the state is finite, not zero, far from the end of fp32, and as large as what was written into it.

The absolute size is printed and not judged: a norm behind the state hides any scale.
"""

import pytest

pytestmark = pytest.mark.check("S1")


def _site(size):
    return {"case": f"{size.kind} after {size.position} tokens", "layer": size.layer, "branch": size.branch}


def test_every_state_is_finite_and_not_zero(magnitudes, judge):
    for sizes, where in magnitudes:
        for size in sizes.found:
            site = where | _site(size)
            judge("non_finite_entries", size.non_finite, **site)
            judge("zero_heads", size.zero_heads, **site)
            judge("headroom", size.headroom, **site)
            judge.info("largest_rms", max(size.rms), unit="state", **site)


def test_every_state_is_as_large_as_what_was_written(magnitudes, judge):
    accumulated = [(size, where) for sizes, where in magnitudes for size in sizes.found if not size.cache]
    if not accumulated:
        judge.na("every state is a cache of one entry a token: nothing is accumulated in it")
    for size, where in accumulated:
        if size.ratios is not None:
            head = size.extreme_head
            judge("write_ratio", size.ratios[head], note=f"head {head}, the furthest from 1", **where, **_site(size))
    silent = [str(_site(size)) for size, _ in accumulated if size.ratios is None]
    if silent:
        judge.missing(f"no innovations and decays are reported for {silent[0]}: see docs/bring-your-own-model.md")


def test_the_first_state_is_the_same_for_every_row(weights, judge, require_hooks):
    import torch

    for model, where in weights:
        require_hooks(model, "init_state")
        rows = model.init_state(3)
        differing = [
            str(path) for path, tensor in rows.items() if not torch.equal(tensor, tensor[:1].expand_as(tensor))
        ]
        judge.holds(
            "first_state_equal_for_all_rows",
            not differing,
            note=", ".join(differing[:3]),
            case=where["case"],
            seed=where["seed"],
        )
