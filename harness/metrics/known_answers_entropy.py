"""Known answers of G2: entropy and loss at initialisation."""

import math

import torch

from harness.known_answers import known_answer
from harness.metrics import entropy
from harness.metrics.expect import expect, expect_between


@known_answer("G2")
def equal_logits_have_all_the_entropy() -> None:
    """Equal logits give exactly 1 at any vocabulary size and dtype."""
    for vocab_size in (2, 97, 16384):
        for dtype in (torch.float32, torch.bfloat16):
            share = entropy.entropy_share(torch.zeros(2, 3, vocab_size, dtype=dtype))
            expect(f"entropy share of zero logits, V = {vocab_size}, {dtype}", share, 1.0)
    expect("loss ratio of a uniform guess", entropy.initial_loss_ratio(math.log(97), 97), 1.0)


@known_answer("G2")
def one_sure_token_has_no_entropy() -> None:
    """One logit far above the rest gives 0, and NaN does not pass for a number."""
    logits = torch.zeros(4, 512)
    logits[:, 7] = 1000.0
    expect("entropy share of one-hot logits", entropy.entropy_share(logits), 0.0)
    logits[2, 3] = math.nan
    expect("entropy share with a NaN logit", entropy.entropy_share(logits), math.nan)


@known_answer("G2")
def gaussian_logits_lose_half_their_variance() -> None:
    """H = ln V - s^2 / 2: 9.6539 nats for V = 16000 and s = .23, predicted and measured."""
    vocab_size, std = 16000, 0.23
    expect("predicted entropy", entropy.gaussian_init(std, vocab_size).entropy_nats, 9.6539, 5e-5)
    expect("predicted loss", entropy.gaussian_init(std, vocab_size).loss_nats, 9.7068, 5e-5)
    logits = torch.randn(16, vocab_size, generator=torch.Generator().manual_seed(2)) * std
    measured = entropy.entropy_share(logits) * math.log(vocab_size)
    # one row scatters by about s^2 sqrt(3 / V) / 2, below 4e-4
    expect("measured entropy", measured, 9.6539, 5e-4)


@known_answer("G2")
def batches_do_not_matter() -> None:
    """Uneven batches, taken one by one, give the mean over all positions."""
    logits = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(3)) * torch.arange(5)[:, None, None]
    running = entropy.EntropyShare()
    running.add(logits[:1])
    running.add(logits[1:])
    expect("running against whole", running.value, entropy.entropy_share(logits), 1e-12)


@known_answer("G2")
def confident_logits_are_told_apart() -> None:
    """Negative control: logits of deviation 6 know far too much for an untrained model."""
    logits = 6 * torch.randn(16, 1024, generator=torch.Generator().manual_seed(4))
    expect_between("entropy share of confident logits", entropy.entropy_share(logits), 0.02, 0.45)
    expect("prediction outside its range", entropy.gaussian_init(6.0, 1024).entropy_nats, math.nan)
