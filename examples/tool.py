"""A tool of one's own: search for a word in Python files, with at most 20 hits.

selfplay train --repos LIST --set 'agent.tools=["bash","edit","create","submit","examples.tool:SEARCH"]'
"""

import shlex
from dataclasses import dataclass

from selfplay.agent.tool_format import BadFormat, Call
from selfplay.agent.tools import Action, Observation
from selfplay.sandbox.base import Sandbox
from selfplay.settings.playing import AgentSettings


@dataclass(frozen=True)
class Search:
    name: str = "search"
    description: str = "search — BODY is one word; shows up to 20 lines of Python files that hold it."
    changes_files: bool = False

    def read(self, call: Call) -> Action:
        if len(call.body.split()) != 1:
            raise BadFormat("The body of search is one word.")
        return Action(call.tool, call.body.strip(), call.thought)

    def run(self, action: Action, sandbox: Sandbox, settings: AgentSettings) -> Observation:
        command = f"grep -rnwF --include=*.py -e {shlex.quote(action.body)} /testbed | head -20"
        result = sandbox.run(command, timeout_s=settings.command_timeout_s)
        return Observation(result.text or "no hit", result.exit_code)


SEARCH = Search()
