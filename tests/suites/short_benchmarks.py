"""A plugin of the tests of recall, beside ``-p short_lessons``: tasks that a narrow model learns in seconds or minutes.

Dialogues are hardly taught at all: what rests on them must not need to have learned. GPT2 does not learn to look up
within so few updates, so GF-MH shows here that the training suffices.
"""

import dataclasses

from fixtures import mqar_study, state_benchmarks
from fixtures.dialogues import persistence, training
from fixtures.dialogues.training import Curriculum, Lesson
from fixtures.state_benchmarks import Benchmark, one_task, stretched
from fixtures.synthetic import CountingConfig, MqarConfig, SelectiveCopyConfig, VariablesConfig
from fixtures.synthetic.training import Amount, TaskTraining
from harness.labelled import LabelledConfig

RATES = (5e-3,)


def _recall(counts):
    train, dev, test = (
        tuple(
            Amount(MqarConfig(length=32, kv_pairs=pairs, vocab_size=64, filler="zero"), count, f"{pairs} pairs")
            for pairs in (2, 4)
        )
        for count in counts
    )
    return TaskTraining(train, dev, test, LabelledConfig(epochs=6, batch_size=64, stop_at=0.99))


state_benchmarks.PEER = "GF-MH"
state_benchmarks.BENCHMARKS = {
    "recall": Benchmark(_recall((2000, 100, 200)), RATES, "4 pairs"),
    "copying": Benchmark(
        one_task(SelectiveCopyConfig(vocab_size=6, length=16, copied=3), "copying", (4000, 100, 200), 10),
        RATES,
        "copying",
    ),
    "variables": Benchmark(
        one_task(
            VariablesConfig(3, 6, change_turns=1, changes=1, copies=0.25, queries=1), "variables", (6000, 200, 300), 10
        ),
        RATES,
        "variables",
    ),
    "parity": Benchmark(stretched(CountingConfig(2, 12, 4), (500, 100, 100), 2), RATES, "longer"),
}

mqar_study.SETTINGS = {"3.5M": dataclasses.replace(mqar_study.SMALL, rates=(1e-2,))}

training.CURRICULA = persistence.CURRICULA = {
    "cpu": Curriculum(Lesson(128, 32, 64, 1, 1.0), Lesson(64, 128, 16, 1, 0.5), (3e-3,))
}
persistence.ITEMS_A_LAG = {("8M", "cpu"): 40}
