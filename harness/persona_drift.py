"""Is it seen when a user's persona drifts? A detector on what the model expects, calibrated where nothing drifts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from harness.forced_choice import Encode, log_probabilities
from harness.metrics.drift import Detector, DriftReading, calibrate, read_drift

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PersonaDialogue:
    """A dialogue told twice, equal up to a change.

    steady, changed  the turns: the user stays the same, or contradicts what was said before from a turn on
    question         asks for the persona after any turn, up to the answer
    fits, contradicts  the two answers, each one token
    """

    steady: tuple[str, ...]
    changed: tuple[str, ...]
    question: str
    fits: str
    contradicts: str


@dataclass(frozen=True)
class PersonaDrift:
    """What the detector does on dialogues that did not calibrate it, and what it works on.

    margin       mean of z over the turns of steady dialogues, nats: above 0 the persona that was told is expected
    heard        mean distance of z from the steady dialogue's in the turns from the change on, nats; exactly 0 for a
                 model that hears nothing
    steady_by_turn, changed_by_turn  mean z after each turn
    calibrated, measured  dialogues
    """

    reading: DriftReading
    margin: float
    heard: float
    steady_by_turn: list[float]
    changed_by_turn: list[float]
    calibrated: int
    measured: int


def read_persona_drift(
    model: nn.Module,
    calibration: Sequence[PersonaDialogue],
    dialogues: Sequence[PersonaDialogue],
    encode: Encode,
    *,
    change: int,
    device: str,
) -> PersonaDrift:
    """Calibrate on steady dialogues, then look at others, steady and changed from turn ``change`` (from 0) on.

    Needs logits only: every turn's probe is read behind the whole dialogue up to there, and leaves no trace in it.
    """
    turns = len(calibration[0].steady)
    in_control = streams(model, calibration, "steady", encode, device)
    steady = streams(model, dialogues, "steady", encode, device)
    # up to the change both are the same text
    late = streams(model, dialogues, "changed", encode, device, first=change)
    changed = np.concatenate([steady[:, :change], late], axis=1)
    return PersonaDrift(
        read_drift(_detector(in_control), steady, changed, change=change, turns=turns),
        float(steady.mean()),
        float(np.abs(changed - steady)[:, change:].mean()),
        steady.mean(0).tolist(),
        changed.mean(0).tolist(),
        len(calibration),
        len(dialogues),
    )


def _detector(in_control_nT: Floats) -> Detector:
    """Calibrated, or one that never rings where there is nothing to calibrate on: a deaf or a broken model."""
    if not np.isfinite(in_control_nT).all():
        return Detector(math.nan, math.nan, math.nan)
    if in_control_nT.std() == 0:
        return Detector(float(in_control_nT.mean()), 1.0, 0.0)
    return calibrate(in_control_nT, turns=in_control_nT.shape[1])


def streams(
    model: nn.Module,
    dialogues: Sequence[PersonaDialogue],
    which: Literal["steady", "changed"],
    encode: Encode,
    device: str,
    *,
    first: int = 0,
) -> Floats:
    """``z_t`` after each turn from ``first`` on ``[dialogues, turns - first]``, nats.

        z = log p(fits | turns, question) - log p(contradicts | turns, question) - the same of the question alone

    The last term takes out which of the two words is the likelier one anyway: it differs between dialogues by more
    than a persona adds, and would hide every drift from a detector that is calibrated on other dialogues.
    """
    texts = []
    bare = log_probabilities(
        model, [(each.question, (each.fits, each.contradicts)) for each in dialogues], encode, device
    )
    for dialogue in dialogues:
        told = dialogue.steady if which == "steady" else dialogue.changed
        texts += [
            ("".join(told[: turn + 1]) + dialogue.question, (dialogue.fits, dialogue.contradicts))
            for turn in range(first, len(told))
        ]
    scores = log_probabilities(model, texts, encode, device)
    leads = (scores[:, 0] - scores[:, 1]).reshape(len(dialogues), -1)
    return np.asarray(leads - (bare[:, 0] - bare[:, 1])[:, None])
