"""Predicts what a cluster would do with a workload, by a discrete-event simulation.

The workload comes from a finished run or from stated assumptions. The simulation predicts time, not learning:
lengths, validity and solve rates of episodes stay as they were measured.
"""
