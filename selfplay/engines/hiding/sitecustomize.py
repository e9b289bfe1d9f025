"""Makes the modules in SELFPLAY_HIDDEN_MODULES count as not installed, in vLLM servers alone.

vLLM for CPUs requires torchvision, whose ordinary build is for CUDA. With a CPU build of torch its import
fails, and so does vLLM's.
"""

import os
import sys

for _name in filter(None, os.environ.get("SELFPLAY_HIDDEN_MODULES", "").split(",")):
    # With None here the import system raises ModuleNotFoundError.
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]
