"""Now `mc.evidence.first_runs`."""
from mc.evidence.first_runs import *  # noqa: F403
