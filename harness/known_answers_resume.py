"""Known answers of RESUME: what a level stands for, and that a tensor which the file lacks shows."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.known_answers import known_answer
from harness.metrics.expect import expect
from harness.resume_proof import Differences, ResumeProof, round_trip

EQUAL = Differences((), (), (), (), (), 0.0)
PROVED = ResumeProof(steps=24, killed_after=14, resumed_from=12, differences=EQUAL, rerun_loss=None)


@known_answer("RESUME")
def equal_bits_are_level_2_and_noise_is_level_1() -> None:
    """Any part that differs takes level 2 away; only a device that does not repeat itself leaves level 1."""
    expect("all equal", PROVED.level(round_trip=True), 2)
    expect("weights that do not survive a file", PROVED.level(round_trip=False), 0)
    expect("a restart from the beginning", replace(PROVED, resumed_from=0).level(round_trip=True), 0)
    for found in (
        replace(EQUAL, weights=("w",)),
        replace(EQUAL, optimizer=("exp_avg/w",)),
        replace(EQUAL, random=("random.cpu",)),
        replace(EQUAL, loop=("next_batch",)),
        replace(EQUAL, log=(13,)),
    ):
        differing = replace(PROVED, differences=found, rerun_loss=0.0)
        expect(f"{found}, and reruns repeat themselves", differing.level(round_trip=True), 0)
    noisy = replace(PROVED, differences=replace(EQUAL, weights=("w",), loss=2.9e-6), rerun_loss=1e-6)
    expect("within three times the reruns", noisy.level(round_trip=True), 1)
    far = replace(noisy, differences=replace(noisy.differences, loss=3.1e-6))
    expect("beyond (negative control)", far.level(round_trip=True), 0)


class Forgetful(nn.Module):
    """A table of logits; with ``hidden`` a part of it is no parameter and no buffer."""

    def __init__(self, seed: int, hidden: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(8, 4, generator=generator))
        self.register_buffer("count", torch.tensor(seed))
        self.extra = torch.randn(4, generator=generator) if hidden else torch.zeros(4)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits ``[B, T, 4]``."""
        return self.table[tokens_BT] + self.extra


@known_answer("RESUME")
def a_tensor_that_the_file_lacks_shows() -> None:
    """Two models become one through a file; where a part of the first is in no file, the logits tell."""
    tokens_BT = torch.arange(8).view(2, 4)
    with tempfile.TemporaryDirectory() as place:
        sound = round_trip(Forgetful(1, False), Forgetful(2, False), tokens_BT, Path(place) / "sound")
        lossy = round_trip(Forgetful(1, True), Forgetful(2, True), tokens_BT, Path(place) / "lossy")
    assert sound.is_exact, f"a sound model came back otherwise: {sound}"
    assert not lossy.tensors, f"every tensor of the file came back: {lossy.tensors}"
    assert lossy.logits_differ, "the hidden part is in no file, so the logits must differ (negative control)"
