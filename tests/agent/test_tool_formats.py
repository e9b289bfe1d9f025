"""Every format of calls writes and reads every tool, and says what is wrong with a reply and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from selfplay.agent.format_conformance import check_format
from selfplay.agent.prompting import render, system_prompt
from selfplay.agent.tool_format import BadFormat, Call, CannotWrite
from selfplay.agent.tools import STANDARD, Toolbox, toolbox
from selfplay.errors import PartError
from selfplay.settings.playing import AgentSettings

ALL = ("bash", "edit", "create", "submit")
FORMATS = {"tags": ALL, "hermes": ALL, "qwen-xml": ALL, "bash-block": ("bash", "submit")}


def tools_of(name: str) -> Toolbox:
    return toolbox(AgentSettings(tool_format=name, tools=FORMATS[name]))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_conforms(name: str) -> None:
    refused = check_format(tools_of(name))
    assert name not in ("hermes", "bash-block") or not any(refused.values())


class Trimming:
    """A format that loses the blanks around a body."""

    def parse(self, text: str, tools: Sequence[str]) -> Call:
        call = STANDARD.format.parse(text, tools)
        return replace(call, body=call.body.strip())

    def format(self, call: Call) -> str:
        return STANDARD.format.format(call)


def test_a_format_that_loses_blanks_does_not_conform() -> None:
    with pytest.raises(AssertionError, match="blank lines around"):
        check_format(replace(STANDARD, format=Trimming()))


CALL = '<tool_call>\n{"name": "bash", "arguments": {"command": "ls"}}\n</tool_call>'
XML = "<tool_call>\n<function=bash>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>"
BLOCK = "```bash\nls\n```"


def hermes(value: str) -> str:
    return f"Hm.\n<tool_call>\n{value}\n</tool_call>"


FAULTS = [
    (
        "hermes",
        hermes('{"name": "bash", "arguments": {"command": "a "b""}}'),
        r"line 3, column 47.*delimiter",
    ),
    ("hermes", hermes('{"name": "bash", "arguments": {"command": "\\q"}}'), r"line 3, column 44.*escape"),
    ("hermes", hermes("{'name': 'bash'}"), r"line 3, column 2 .*double quotes"),
    (
        "hermes",
        hermes('{"name": "bash", "arguments": {"command": 3}}'),
        "command of bash is to be a string, not '3'",
    ),
    ("hermes", hermes('{"name": "bash", "arguments": {}}'), "argument command of bash is missing"),
    (
        "hermes",
        hermes('{"name": "bash", "arguments": {"cmd": "ls"}}'),
        "argument 'cmd' is unknown: bash takes command",
    ),
    (
        "hermes",
        hermes('{"name": "bash", "parameters": {"command": "ls"}}'),
        "a field 'parameters'.*only .name. and",
    ),
    ("hermes", hermes('{"name": "bash"}'), 'field "arguments" is missing'),
    ("hermes", hermes('{"name": "bash", "arguments": "ls"}'), "is no JSON object"),
    (
        "hermes",
        hermes('{"name": "bsh", "arguments": {}}'),
        "There is no tool 'bsh'.*bash, edit, create or submit",
    ),
    ("hermes", hermes('["bash"]'), "is no JSON object"),
    ("hermes", hermes('{"name": "bash", "name": "edit", "arguments": {}}'), "'name' stands twice"),
    ("hermes", hermes('{"name": "bash", "arguments": {"command": "\\ud800"}}'), "half of a surrogate pair"),
    ("hermes", hermes('{"name": "bash", "arguments": {"command": "a\\u0000"}}'), "null character"),
    ("hermes", hermes("[" * 100_000), "cannot be read"),
    ("hermes", hermes('{"name": "edit", "arguments": {"line": ' + "9" * 5000 + "}}"), "cannot be read"),
    (
        "hermes",
        hermes('{"name": "create", "arguments": {"path": "a\\nb", "content": ""}}'),
        "path of one file",
    ),
    (
        "hermes",
        hermes('{"name": "edit", "arguments": {"path": "a", "line": "x", "search": "a", "replace": ""}}'),
        "line of edit is to be a whole number, not 'x'",
    ),
    ("hermes", CALL.removesuffix("</tool_call>"), "not closed by </tool_call>: the reply ends"),
    ("hermes", CALL.replace("</tool_call>", "done"), "not closed.*line 3, column 1 has 'done'"),
    ("hermes", f"{CALL}\n{CALL}", "More than one call"),
    ("hermes", f"{CALL}\nDone.", "text after the call: 'Done.'"),
    ("qwen-xml", XML.replace("<function=bash>", "<function bash>"), "Line 2 of the reply, '<function bash>'"),
    ("qwen-xml", XML.replace("</parameter>\n", ""), "Line 5.*'</function>'.*value of 'command'.*printf"),
    ("qwen-xml", XML.replace("</function>\n", ""), "Line 6.*is to be <parameter=NAME> or </function>"),
    ("qwen-xml", XML.removesuffix("</tool_call>"), "The end of the reply is to be </tool_call>"),
    ("qwen-xml", XML.replace("command", "cmd"), "argument 'cmd' is unknown"),
    ("qwen-xml", XML.replace("bash", "rm"), "There is no tool 'rm'"),
    ("qwen-xml", f"{XML}\n{XML}", "Line 8.*begins another call"),
    ("qwen-xml", f"{XML}\nDone.", "Line 8.*'Done.'.*text after the call"),
    ("qwen-xml", "Done.", "No tool call found.*<function=NAME>"),
    ("bash-block", f"{BLOCK}\nand\n{BLOCK}", "More than one block of bash: lines 1, 5"),
    ("bash-block", "```python\nls\n```", "No tool call found"),
    ("bash-block", "a\n```bash\nls", "line 2 of the reply opens is not closed"),
    (
        "bash-block",
        "```bash\ncat <<E\n```\nE\n```",
        "line 5 of the reply opens is not closed.*more backticks",
    ),
    ("bash-block", "```bash\nls\n```\n```bash\nsubmit 'a\n```", "More than one"),
    ("bash-block", "```bash\nsubmit 'a\n```", "cannot be read: No closing quotation"),
    ("bash-block", "```bash\nsubmit a\nls\n```", "stands alone in its block"),
]


@pytest.mark.parametrize(("name", "reply", "words"), FAULTS)
def test_a_fault_is_told_with_its_place_and_its_remedy(name: str, reply: str, words: str) -> None:
    with pytest.raises(BadFormat, match=f"(?s){words}") as raised:
        tools_of(name).parse(reply)
    assert len(str(raised.value)) < 700


READ = {
    "a stop token that was spelled out": ("hermes", f"{CALL}<|im_end|>"),
    "raw line ends in a string": ("hermes", CALL.replace('"ls"', '"a\nb"')),
    "on one line": ("hermes", CALL.replace("\n", "")),
    "a value on the line of its tag": ("qwen-xml", XML.replace("\nls\n", "ls")),
    "no outer tags": ("qwen-xml", XML.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")),
    "a stop token behind": ("qwen-xml", f"{XML}\n<|im_end|>"),
    "text around the block": ("bash-block", f"So:\n{BLOCK}\nThis lists files."),
    "blocks of other languages": ("bash-block", f"```python\nx\n```\n{BLOCK}"),
    "reasoning before": ("hermes", f"<think>\n{CALL}\n</think>\n{CALL}"),
    "the end of reasoning in a call": ("hermes", "<think>so\n" + CALL.replace("ls", "echo '</think>'")),
}


@pytest.mark.parametrize(("name", "reply"), READ.values(), ids=READ.keys())
def test_a_reply_that_can_be_meant_in_one_way_is_read(name: str, reply: str) -> None:
    action = tools_of(name).parse(reply)
    assert action.tool == "bash"
    assert action.body in ("ls", "a\nb", "echo '</think>'")


def test_an_edit_with_named_arguments_has_one_reading() -> None:
    texts = {"search": "A\n=======\n", "replace": "B\n=======\n"}
    for name in ("hermes", "qwen-xml"):
        action = tools_of(name).parse(tools_of(name).write("edit", path="a.rst", **texts))
        assert (action.readings, action.line) == (((texts["search"], texts["replace"]),), None)
    action = tools_of("hermes").parse(
        tools_of("hermes").write("edit", path="a.py:12", search="a", replace="b")
    )
    assert (action.path, action.line) == ("a.py", 12)


def test_what_a_format_cannot_write_it_refuses_with_the_line() -> None:
    for name, text in (("tags", "</tool>"), ("qwen-xml", "</parameter>")):
        with pytest.raises(CannotWrite, match="printf"):
            tools_of(name).write("create", path="a", content=f"x\n{text}\n")
    with pytest.raises(CannotWrite, match="cannot begin with the command"):
        tools_of("bash-block").write("bash", command="submit a")


def test_a_format_that_cannot_call_a_tool_is_refused_with_what_to_set() -> None:
    with pytest.raises(PartError, match=r'edit or create. Set agent.tools = \["bash", "submit"\]'):
        toolbox(AgentSettings(tool_format="bash-block"))


@pytest.mark.parametrize("name", FORMATS)
def test_prompts_show_calls_of_the_format_and_each_can_be_read(name: str) -> None:
    tools = tools_of(name)
    system = system_prompt("full", name, tools)
    assert tools.write("bash", command='grep -rn "def parse" --include=*.py .') in system.text
    shown = render(
        "solver/repair",
        given=(),
        repository="r",
        issue="x",
        specification="",
        failure="",
        suspects=(),
        call=tools.write,
    )
    assert shown.text.endswith(tools.write("submit"))
    assert len({system_prompt("full", other, tools_of(other)).hash for other in FORMATS}) == len(FORMATS)


@pytest.mark.parametrize("name", ["hermes", "qwen-xml"])
def test_prompts_show_only_calls_that_can_be_made(name: str) -> None:
    text = system_prompt(
        "full", name, toolbox(AgentSettings(tool_format=name, tools=("create", "submit")))
    ).text
    assert '"name": "create"' in text and "grep" not in text and "package/module.py" not in text


def test_a_tool_of_ones_own_without_parameters_takes_its_body_as_an_argument() -> None:
    tools = toolbox(AgentSettings(tool_format="hermes", tools=("submit", "examples.tool:SEARCH")))
    assert tools.parse(tools.write("search", body="word")).body == "word"
    shown = system_prompt("full", "hermes", tools).text
    assert '"name": "search", "description": "search — BODY is one word' in shown


def test_a_template_that_lists_the_tools_is_not_repeated() -> None:
    tools = tools_of("hermes")
    long, short = (system_prompt("full", "hermes", tools, is_listed) for is_listed in (False, True))
    assert '"description": "Runs a script in bash.' in long.text and "Runs a script" not in short.text
    assert long.hash != short.hash


@pytest.mark.parametrize("name", ["tags", "hermes", "qwen-xml"])
def test_deciding_are_the_name_of_the_tool_and_what_an_edit_writes(name: str) -> None:
    tools = tools_of(name)
    reply = tools.write("edit", path="a.py", line=3, search="old", replace="new")
    named, written = tools.deciding(f"<think>\n{reply}\n</think>\n{reply}")
    text = f"<think>\n{reply}\n</think>\n{reply}"
    assert "edit" in text[slice(*named)] and "a.py" not in text[slice(*named)]
    assert "new" in text[slice(*written)] and "old" not in text[slice(*written)]
    assert named[0] > len(reply)
    assert tools.deciding("nothing") == []
