"""Statistics of captions and mentions: intervals, tests, power, odds; images are the units.

``pooled`` holds the counts behind every metric, ``bootstrap`` the intervals, ``intervals`` both for captions and mentions,
``testing`` what is done with many comparisons; the other files are one method each.
"""

from prunehal.stats.bootstrap import Interval
from prunehal.stats.intervals import Association, association, bootstrap_interval, paired_bootstrap
from prunehal.stats.odds import adjusted_logit, mention_model
from prunehal.stats.power import images_needed, power_of
from prunehal.stats.testing import WORSE, Verdict, equivalence, holm, no_harm, paired_p_value

__all__ = [
    "WORSE",
    "Association",
    "Interval",
    "Verdict",
    "adjusted_logit",
    "association",
    "bootstrap_interval",
    "equivalence",
    "holm",
    "images_needed",
    "mention_model",
    "no_harm",
    "paired_bootstrap",
    "paired_p_value",
    "power_of",
]
