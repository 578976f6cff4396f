"""RESUME: weights survive a file, and a training survives the death of its process, bit by bit."""

import pytest

pytestmark = pytest.mark.check("RESUME")


def test_a_killed_training_goes_on_as_if_nothing_had_happened(bench, judge, tmp_path):
    from fixtures.resume_parts import UnfinishedError
    from fixtures.resumes import prove_resume
    from harness.resume_proof import round_trip

    seed = bench.seeds[0]
    model, _ = bench.exercised
    trip = round_trip(
        model, bench.fresh(seed), bench.validation_tokens(2, bench.config.data.seq_len), tmp_path / "weights"
    )
    note = ", ".join(trip.tensors[:3]) or "every tensor"
    judge.holds("weights_read_back", not trip.tensors, value=len(trip.tensors), unit="tensors", seed=seed, note=note)
    judge.holds("logits_after_reading", not trip.logits_differ, seed=seed)
    try:
        proof = prove_resume(bench, seed)
    except UnfinishedError as error:
        judge.missing(str(error))

    found = proof.differences
    said = f"{proof.steps} steps, killed after {proof.killed_after}, went on from {proof.resumed_from}"
    judge.holds("takes_up_the_work", proof.really_resumed, value=proof.resumed_from, unit="step", seed=seed, note=said)
    noise = "" if proof.rerun_loss is None else f"reruns differ by {proof.rerun_loss:.3g} nats"
    # on kernels that do not repeat themselves no training is equal to another, and only the level can tell
    if not proof.within_noise:
        for part, differing in found.parts.items():
            note = ", ".join(map(str, differing[:3]))
            judge.holds(f"same_{part}", not differing, value=len(differing), unit="items", seed=seed, note=note)
    judge.info("loss_difference", found.loss, unit="nats", seed=seed, note=noise)
    judge("level", proof.level(round_trip=trip.is_exact), seed=seed, note="; ".join(filter(None, (said, noise))))
