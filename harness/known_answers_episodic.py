"""Known answers of MEMORY: codes that are planted or absent, and toy models whose memory is known."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.episodic import Prompts, best_site, entity_labels, probe_memory
from harness.known_answers import known_answer
from harness.metrics.expect import expect, expect_between
from harness.metrics.probe import fit_probe, usable_information
from harness.needle import Needles, read_needles
from harness.state_sketch import Sketcher
from models.protocol import State

CLASSES = 10
ENTITIES = 30
VOCAB = 1 + ENTITIES + CLASSES
CHOICES = tuple(range(1 + ENTITIES, VOCAB))


class Ledger(nn.Module):
    """Token 0 is filler; an entity followed by a value is an entry; after an entity its value is expected.

    kept "all" remembers who got what, "bag" only which values were named, "nothing" nothing.
    """

    def __init__(self, kept: str) -> None:
        super().__init__()
        self.kept = kept

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, return_states: bool = False
    ) -> Tensor | tuple[Tensor, State]:
        """Logits ``[B, T, V]``: 8 on what is remembered of the last token's entity."""
        rows = len(tokens_BT)
        table_BEV = torch.zeros(rows, VOCAB, CLASSES) if state is None else state.layers[0]["ledger"]["table"].clone()
        answer_BV = torch.zeros(rows, CLASSES) if state is None else state.layers[0]["ledger"]["answer"]
        last_B = torch.zeros(rows, dtype=torch.long) if state is None else state.layers[0]["ledger"]["conv"][:, 0]
        logits, at = [], torch.arange(rows)
        for token_B in tokens_BT.unbind(1):
            said_BV = F.one_hot((token_B - ENTITIES - 1).clamp(min=0), CLASSES) * (token_B > ENTITIES)[:, None]
            heard_BV = said_BV * (last_B > 0)[:, None]
            if self.kept == "all":
                table_BEV[at, last_B] += heard_BV
            elif self.kept == "bag":
                table_BEV += heard_BV[:, None]
            answer_BV = torch.where((token_B > 0)[:, None], table_BEV[at, token_B], 0.0)
            last_B = torch.where((token_B > 0) & (token_B <= ENTITIES), token_B, 0)
            logits.append(F.pad(8 * answer_BV, (1 + ENTITIES, 0)))
        logits_BTV = torch.stack(logits, 1)
        if not return_states:
            return logits_BTV
        kinds = {"table": table_BEV, "answer": answer_BV, "conv": last_B[:, None]}
        return logits_BTV, State.of([{"ledger": kinds}])


def _prompts(count: int, entities: range, generator: np.random.Generator) -> Prompts:
    pairs = np.stack([generator.choice(np.array(entities), 2, replace=False) for _ in range(count)])
    asked, at = generator.integers(2, size=count), np.arange(count)
    right = generator.permutation(at % CLASSES)
    values = np.stack([right, (right + generator.integers(1, CLASSES, size=count)) % CLASSES], axis=1)
    values[asked == 1] = values[asked == 1, ::-1]

    def stated(said: np.ndarray) -> np.ndarray:
        return np.stack([pairs[:, 0], said[:, 0] + ENTITIES + 1, pairs[:, 1], said[:, 1] + ENTITIES + 1], axis=1)

    return Prompts(
        stated(values), stated(values[:, ::-1]), np.zeros((count, 32), dtype=np.int64), pairs[at, asked][:, None],
        values[at, asked], values[at, 1 - asked], values[:, 1], pairs[at, asked], at,
    )  # fmt: skip


def toy_prompts(seed: int = 0) -> dict[str, Prompts]:
    """Prompts of the ledger's language; test entities are new."""
    generator = np.random.default_rng(seed)
    old, new = range(1, 21), range(21, ENTITIES + 1)
    return {"train": _prompts(160, old, generator), "test": _prompts(120, new, generator),
            "seen": _prompts(80, old, generator)}  # fmt: skip


def toy_needles(length: int = 24, count: int = 80, seed: int = 0) -> Needles:
    """An entity and its value in filler, and the entity again at the end; a second entity is a distractor."""
    generator = np.random.default_rng(seed)
    values = generator.permutation(np.arange(count) % CLASSES)
    without = np.zeros((count, length), dtype=np.int64)
    without[:, -1] = generator.integers(1, ENTITIES + 1, size=count)
    planted = {0.1: without.copy(), 0.9: without.copy()}
    for depth, texts in planted.items():
        at = round(depth * (length - 3))
        texts[:, at], texts[:, at + 1] = without[:, -1], values + ENTITIES + 1
    return Needles(length, without, planted, values, np.arange(count), CHOICES)


@known_answer("MEMORY")
def a_planted_code_is_read_and_noise_is_not() -> None:
    """A code in noise: accuracy 1 and nearly ln 10 nats on new items; shuffled labels: chance and no information."""
    generator = np.random.default_rng(1)
    labels = generator.integers(CLASSES, size=800)
    features = generator.standard_normal((800, 40))
    features[:, :CLASSES] += 8 * np.eye(CLASSES)[labels]
    fitted, new = slice(0, 400), slice(400, 800)
    probe = fit_probe(features[fitted], labels[fitted], CLASSES, 0.01)
    right = probe.log_probabilities(features[new]).argmax(1) == labels[new]
    expect_between("accuracy on a planted code", float(right.mean()), 0.99, 1.0)
    information = float(usable_information(probe, features[new], labels[new]).mean())
    expect_between("its information, nats", information, 2.0, math.log(CLASSES))
    # negative control
    noise = fit_probe(features[fitted], generator.permutation(labels[fitted]), CLASSES, 0.1)
    right = noise.log_probabilities(features[new]).argmax(1) == labels[new]
    expect_between("accuracy on shuffled labels", float(right.mean()), 0.04, 0.16)
    information = float(usable_information(noise, features[new], labels[new]).mean())
    expect_between("information of shuffled labels", information, -1.0, 0.0)


@known_answer("MEMORY")
def a_probe_that_sees_nothing_predicts_the_frequencies() -> None:
    """Features that do not vary leave the label frequencies, to the precision of the optimiser."""
    labels = np.repeat(np.arange(CLASSES), np.arange(1, CLASSES + 1))
    probe = fit_probe(np.full((len(labels), 3), 7.0), labels, CLASSES, 0.1)
    found = np.exp(probe.log_probabilities(np.full((1, 3), 7.0)))[0]
    expect("largest error of a frequency", float(np.abs(found - np.bincount(labels) / len(labels)).max()), 0.0, 1e-4)


@known_answer("MEMORY")
def a_sketch_keeps_what_is_spread_over_the_state() -> None:
    """A code along ten directions of a state of 4096 entries is read from 128 features; two kinds are added up."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(CLASSES, (400,), generator=generator)
    directions = torch.randn(CLASSES, 64, 64, generator=generator)
    states = directions[labels] + torch.randn(400, 64, 64, generator=generator)
    constant = torch.full((400, 5), 3.0)
    features = Sketcher(128, 0)(State.of([{"a": {"matrix": states, "constant": constant}}]), "")[0, "a"].numpy()
    probe = fit_probe(features[:200], labels[:200].numpy(), CLASSES, 0.1)
    right = probe.log_probabilities(features[200:]).argmax(1) == labels[200:].numpy()
    expect_between("accuracy after sketching", float(right.mean()), 0.95, 1.0)


@known_answer("MEMORY")
def a_full_memory_a_bag_of_words_and_none_are_told_apart() -> None:
    """Recall of 1, of 1/2 without binding, and of chance; a transplant flips all choices of the first alone."""
    sets = toy_prompts()
    full, bag, empty = (
        probe_memory(Ledger(kept), sets, CHOICES, device="cpu", seed=0, lags=[8]) for kept in ("all", "bag", "nothing")
    )
    at = [(best_site(memory.queried, 8), memory.bindings[memory.queried.index(best_site(memory.queried, 8))])
          for memory in (full, bag)]  # fmt: skip
    (site, bound), (bag_site, bag_bound) = at
    expect_between("recall of a full memory", site.accuracy.value, 0.95, 1.0)
    expect_between("its binding", math.nan if bound.binding is None else bound.binding.value, 0.95, 1.0)
    expect_between("its selectivity", bound.selectivity, 0.3, 1.0)
    expect_between("recall of a bag of words", bag_site.accuracy.value, 0.35, 0.65)
    expect_between("its binding", math.nan if bag_bound.binding is None else bag_bound.binding.value, 0.35, 0.65)
    # negative control
    site = best_site(empty.recent, 8)
    expect_between("recall of an empty state", site.accuracy.value, 0.0, 0.2)
    expect_between("its information", site.information.value, -0.3, 0.01)
    expect_between("recency of a bag of words", best_site(bag.recent, 8).accuracy.value, 0.35, 0.65)
    for name, memory in (("full", full), ("bag", bag), ("empty", empty)):
        expect_between(f"accuracy on shuffled labels, {name}", memory.shuffled.value, 0.02, 0.18)
    [moved] = full.transplants
    expect("share of choices that depend on what was said", moved.differing / moved.prompts, 1.0)
    expect("share that goes with the donor", moved.followed / moved.differing, 1.0)
    expect("choices of a bag that depend on it", bag.transplants[0].differing, 0)


@known_answer("MEMORY")
def a_planted_fact_is_chosen_by_a_reader_with_memory_only() -> None:
    """Accuracy 1 and the analytic gain with the fact; without it, or without memory, chance and a gain of 0."""
    needles = toy_needles()
    full = read_needles(Ledger("all"), [needles], device="cpu", seed=0)
    gain = 8 - math.log(VOCAB - 1 + math.exp(8)) + math.log(VOCAB)
    for reading in full.readings:
        expect(f"accuracy at depth {reading.depth}", reading.accuracy.value, 1.0)
        expect(f"lifted at depth {reading.depth}", reading.lifted.value, 1.0)
        expect(f"gain at depth {reading.depth}", reading.gain.value, gain, 1e-6)
    expect("accuracy without the fact", full.without.value, 1 / CLASSES, 1e-9)
    empty = read_needles(Ledger("nothing"), [needles], device="cpu", seed=0)
    expect("accuracy without memory (negative control)", empty.readings[0].accuracy.value, 1 / CLASSES, 1e-9)
    expect("gain without memory", empty.readings[0].gain.value, 0.0)


@known_answer("MEMORY")
def a_control_task_gives_every_entity_one_label() -> None:
    """Labels are constant within an entity, and drawn for each."""
    entities = np.repeat(np.arange(200), 3)
    labels = entity_labels(entities, CLASSES, 0).reshape(200, 3)
    expect("entities with more than one label", float((labels != labels[:, :1]).sum()), 0)
    expect_between("labels in use", float(len(np.unique(labels))), 9, 10)
