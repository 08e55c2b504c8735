"""Now `mc.evidence.runs`."""
from mc.evidence.runs import *  # noqa: F403
