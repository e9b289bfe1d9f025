"""Self-play bug injection and repair: one policy, two roles, verdicts by execution (the SSR method, arXiv 2512.18552)."""

__version__ = "0.1.0"
