"""Noise of what is measured on calibration text, by its length."""

import logging
import math

log = logging.getLogger(__name__)
ENOUGH_TOKENS = 256
"""Fewest tokens without a warning."""


def warn_noisy(tokens: int) -> None:
    """Warn if importance and means are measured on so few tokens that chance decides.

    Each unit has a mean or an energy over the tokens.  The error of a mean is the deviation over the root of the tokens; that of an
    energy, of values spread like a bell curve, is the root of 2 / tokens: 9 % at `ENOUGH_TOKENS`.  Values with outliers, and tokens of one
    conversation, which resemble each other, have larger ones, and so has the criterion taylor, with one gradient per conversation.
    tokens: > 0, without padding.
    """
    if tokens < ENOUGH_TOKENS:
        log.warning(
            "%d calibration tokens: what each unit gives is known to within %.0f %% at best, and units that differ by less are chosen by chance; about %d "
            "times as many calibration rows bring %d tokens and %.0f %%",
            tokens, 100 * math.sqrt(2 / tokens), -(-ENOUGH_TOKENS // tokens), ENOUGH_TOKENS, 100 * math.sqrt(2 / ENOUGH_TOKENS),
        )  # fmt: skip
