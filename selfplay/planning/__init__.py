"""What a cluster would do with a workload: a discrete-event simulation, fed by a finished run or by stated assumptions.

It predicts time, never learning: the policy's episodes stay as long, as valid and as often solved as they were measured.
"""
