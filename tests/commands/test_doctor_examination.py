import json

import pytest
from rich.console import Console

from selfplay.commands import doctor

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]


def test_an_examination_covers_everything_that_a_run_needs(capsys):
    code = doctor.main(Console(), as_json=True)
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    wanted = {
        "python",
        "packages",
        "git",
        "docker sandboxes",
        "bubblewrap sandboxes",
        "memory",
        "GPU",
        "torch build",
        "vLLM",
        "DeepSpeed",
        "Ray",
        "package index",
        "policy",
        "leftovers",
    }
    assert wanted <= set(findings)
    assert code == int(any(finding["required"] and not finding["ok"] for finding in findings.values()))
    assert all(
        finding["remedy"] for finding in findings.values() if finding["required"] and not finding["ok"]
    )
