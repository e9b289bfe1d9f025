"""On the path of a vLLM server only: the modules that SELFPLAY_HIDDEN_MODULES names count as not installed, in all its processes.

vLLM for CPUs asks for torchvision, whose ordinary build is for CUDA; beside a CPU build of torch its import fails, and vLLM's with it.
"""

import os
import sys

for _name in filter(None, os.environ.get("SELFPLAY_HIDDEN_MODULES", "").split(",")):
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]  # what the import system takes for "not there"
