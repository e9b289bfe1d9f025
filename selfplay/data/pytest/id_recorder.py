"""A pytest plugin that prints the ids which pytest's short summary cannot carry, one JSON object a line, before that summary.

Such an id holds a line break, another character that cannot be printed, or the ` - ` that stands before a message.
"""

import json


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section("selfplay: ids in full")
    for status, kind in (("PASSED", "passed"), ("FAILED", "failed"), ("ERROR", "error")):
        for report in terminalreporter.stats.get(kind, ()):
            name = str(report.nodeid)
            if " - " in name or not name.isprintable():
                terminalreporter.write_line(json.dumps({"status": status, "id": name}))
