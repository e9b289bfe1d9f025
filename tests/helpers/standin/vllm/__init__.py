"""A stand-in for vLLM, started by the same command.

For tests of how selfplay places servers, loses them and sends them weights: vLLM has no part in that.
"""
