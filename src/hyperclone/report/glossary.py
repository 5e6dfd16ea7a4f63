"""The words of a report. docs/study.md has the same list (a test compares them)."""

from __future__ import annotations

TERMS = {
    "arm": "One kind of model in a study: random weights, the source continued, a clone of some kind. It is trained "
    "once with each seed.",
    "control": "The arm that speed-ups are measured against, by default random weights. A speed-up means no more than "
    "its control is good.",
    "source": "The trained model that a clone is grown from.",
    "clone": "A wider or deeper model that is grown from a source and computes the same at the start.",
    "seed": "Gives the order of the text, the noise and the random weights; results are medians over seeds, with the "
    "range.",
    "held-out loss": "Cross-entropy on text that is not trained on, in nats per token. Lower is better.",
    "speed-up": "Tokens (FLOPs, seconds) of the control's whole training over those that an arm needs until its "
    "held-out loss, smoothed by a median of three, first is at the control's last. A seed that never reaches it counts "
    "as 0.",
    "at the start": "Instead of a speed-up: the arm begins below the control's last loss. The ratio is infinite and "
    "says nothing about growing.",
    "token efficiency": "Tokens that the control needs to an arm's last loss, over the arm's own. FLOP efficiency is "
    "the same in FLOPs, with the source's charged. Undefined where the arm ends below the control.",
    "charged": "With what the training of the arm's source took, in FLOPs or seconds; the control's likewise if it "
    "began from one. Tokens are not charged.",
    "head start D0": "Tokens that the control needs to the loss of the arm's source.",
    "speed-up s along the way": "Tokens that the control needs to the loss that an arm has after t tokens, over t.",
    "worth of a token g": "Tokens of the control for each token of the arm, past the head start.",
    "rise at the start": "The highest held-out loss after the start above the source's own.",
    "common part": "The mean of the copies of a weight: what the source had.",
    "differences": "What the copies of a weight have beside their common part: the width that is new.",
    "branch": "A shorter training that leaves an arm's run at its stable learning rate and decays from there.",
}
