"""Self-play bug injection and repair: one policy, two roles, verdicts by execution (the SSR method, arXiv
2512.18552).
"""

from selfplay.runtime.torch_builds import leave_out_mismatched

__version__ = "0.1.0"
DISTRIBUTION = "selfplay-swe"  # what pip installs. On the public index, `selfplay` is an unrelated package

leave_out_mismatched()  # before anything here imports transformers, which looks for them
