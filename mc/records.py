"""Now `mc.evidence.records`."""
from mc.evidence.records import *  # noqa: F403
