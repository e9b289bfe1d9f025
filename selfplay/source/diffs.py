"""Git diffs as values: reads them strictly, writes them, reverses them. Runs nothing and touches no tree.

Applying a diff is the job of `apply`. Which paths may change is the job of `path_policy`.

The text of a diff may stand for any bytes: a byte that is not UTF-8 is a lone surrogate in it, as Python's
`surrogateescape` has it. `diff_text` and `diff_bytes` convert.

Invariant: the parts of a Patch agree with each other, and each path is safe and named by one section only.
The author of a diff may be hostile, so a line that git would guess at, repair or skip is an error here.
PatchError messages become evidence in verdicts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from selfplay.errors import PatchError
from selfplay.source.trees import is_safe_path

MAX_FILES = 500
MAX_PATH_BYTES = 1000
MAX_NAME_BYTES = 255
# git's mode of a plain file -> is it executable?
MODES = {"100644": False, "100755": True}
SPECIAL_MODES = {"120000": "a symbolic link", "160000": "a submodule"}
NO_NEWLINE = "\\ No newline at end of file"
EXTENDED_HEADER = re.compile(
    r"(new file mode|deleted file mode|rename from|rename to|similarity index|dissimilarity index|index) (.+)"
)
HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@(?: .*)?", re.DOTALL | re.ASCII)
SECTION = "diff --git "
ADVICE = "Write it with `git diff`."
# Escapes in names that git quotes in C style, and their bytes.
ESCAPES = {"a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, '"': 34, "\\": 92}

Kind = Literal["add", "delete", "modify", "rename"]


# ---- values


@dataclass(frozen=True)
class Hunk:
    """One hunk. Lines keep their first character; a `\\ No newline` marker is a line of its own."""

    old_start: int
    old_count: int
    new_start: int
    new_count: int
    lines: tuple[str, ...]

    def text(self) -> str:
        body = "".join(f"{line}\n" for line in self.lines)
        return f"@@ -{self.old_start},{self.old_count} +{self.new_start},{self.new_count} @@\n{body}"


@dataclass(frozen=True)
class FilePatch:
    """What a diff claims about one file.

    path: the new path, or the old one if the file is deleted. executable: of an added or deleted file only.
    """

    path: str
    old_path: str | None
    new_path: str | None
    kind: Kind
    executable: bool = False
    hunks: tuple[Hunk, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path for path in (self.old_path, self.new_path) if path is not None))

    def text(self, old_name: str | None = None, new_name: str | None = None) -> str:
        """This section as git writes it, under other names if given.

        Never quotes a name: `path_problem` refuses every path that would need quotes.
        """
        old, new = old_name or self.old_path, new_name or self.new_path
        mode = "100755" if self.executable else "100644"
        lines = [f"{SECTION}a/{old or new} b/{new or old}"]
        if self.kind == "add":
            lines.append(f"new file mode {mode}")
        elif self.kind == "delete":
            lines.append(f"deleted file mode {mode}")
        elif self.kind == "rename":
            lines += [f"rename from {old}", f"rename to {new}"]
        if self.hunks:
            lines.append(f"--- {label('a/', None if self.kind == 'add' else old)}")
            lines.append(f"+++ {label('b/', None if self.kind == 'delete' else new)}")
        return "".join(f"{line}\n" for line in lines) + "".join(hunk.text() for hunk in self.hunks)


@dataclass(frozen=True)
class Patch:
    """A diff. Every path is safe and named by one section only."""

    files: tuple[FilePatch, ...] = ()

    @cached_property
    def changed_paths(self) -> tuple[str, ...]:
        """Every path that the diff adds, deletes or modifies, sorted. A rename changes two paths."""
        return tuple(sorted({path for file in self.files for path in file.paths}))

    @property
    def is_empty(self) -> bool:
        return not self.files

    def text(self) -> str:
        return "".join(file.text() for file in self.files)


# ---- bytes


def diff_text(data: bytes) -> str:
    """The text of a diff, which keeps every byte."""
    return data.decode("utf-8", "surrogateescape")


def diff_bytes(text: str) -> bytes:
    """The bytes that the text of a diff stands for. Raises PatchError if it stands for none."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise PatchError("the diff holds half a character, which stands for no byte") from error


def shown_diff(text: str) -> str:
    """The text for readers, valid Unicode: a replacement character for each byte that is not UTF-8."""
    return diff_bytes(text).decode("utf-8", "replace")


# ---- reading


def parse_patch(text: str, max_bytes: int) -> Patch:
    """Read a git diff of at most `max_bytes`. Blank text is a patch without files.

    Raises PatchError, which names the fault and, inside a section, the line.
    """
    size = len(diff_bytes(text))
    if size > max_bytes:
        raise PatchError(f"the diff has {size} bytes; at most {max_bytes} are allowed")
    if "\0" in text:
        raise PatchError("the diff holds NUL bytes; binary files cannot be changed")
    if not text.strip():
        return Patch()
    lines = text.split("\n")  # a lone \r belongs to the content of a line, as git sees it
    if lines[-1] == "":
        lines.pop()
    reader = _Reader(lines)
    files: list[FilePatch] = []
    claimed: dict[str, str] = {}
    while not reader.at_end:
        if len(files) == MAX_FILES:
            raise PatchError(f"the diff has more than {MAX_FILES} files")
        file = reader.section()
        for path in file.paths:
            if path in claimed:
                raise PatchError(
                    f"{path!r} is named by two sections of the diff; each file may have one only"
                )
            claimed[path] = file.kind
        files.append(file)
    return Patch(tuple(files))


class _Reader:
    """Reads the sections of a diff from its lines. Every error names the number of the line."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self._at = 0
        self._last = max(number for number, line in enumerate(lines) if line)

    @property
    def at_end(self) -> bool:
        return self._at > self._last

    @property
    def _line(self) -> str | None:
        return self._lines[self._at] if self._at < len(self._lines) else None

    def _refuse(self, reason: str) -> PatchError:
        return PatchError(f"line {self._at + 1} of the diff: {reason}")

    def section(self) -> FilePatch:
        """Read one section. Raises PatchError."""
        while self._line == "":
            self._at += 1
        header = self._line or ""
        if not header.startswith(SECTION):
            raise self._refuse(f"{header[:60]!r} where a section must begin with 'diff --git'. {ADVICE}")
        self._check_header_line(header)
        candidates = list(_header_names(header[len(SECTION) :]))
        facts = self._extended_headers()
        old, new = self._labels()
        file = self._claim(facts, old, new, candidates)
        hunks = tuple(self._hunks())
        if (old is not None or new is not None) and not hunks:
            raise self._refuse(f"no hunk follows the names of {file.path!r}")
        if not hunks and file.kind == "modify":
            raise self._refuse(f"the section of {file.path!r} changes nothing")
        self._check_hunks(file, hunks)
        return replace(file, hunks=hunks)

    def _check_header_line(self, line: str) -> None:
        if line.endswith("\r"):
            raise self._refuse(
                f"a header ends with a carriage return; headers must end with a plain newline. {ADVICE}"
            )

    def _extended_headers(self) -> dict[str, str]:
        """The lines between 'diff --git' and ---: key -> value."""
        facts: dict[str, str] = {}
        self._at += 1
        while (
            (line := self._line) is not None and not line.startswith((SECTION, "--- ", "@@")) and line != ""
        ):
            self._check_header_line(line)
            if line.startswith(("GIT binary patch", "Binary files ")):
                raise self._refuse("binary files cannot be changed")
            if line.startswith(("old mode ", "new mode ")):
                raise self._refuse("the mode of a file may not be changed")
            if line.startswith(("copy from ", "copy to ")):
                raise self._refuse("copies are not read. Write the diff with `git diff --no-renames`.")
            found = EXTENDED_HEADER.fullmatch(line)
            if found is None:
                raise self._refuse(f"unknown header {line[:60]!r}. {ADVICE}")
            if found[1] in facts:
                raise self._refuse(f"the header {found[1]!r} occurs twice")
            facts[found[1]] = found[2]
            self._at += 1
        for key in ("new file mode", "deleted file mode"):
            self._check_mode(facts.get(key))
        if "index" in facts:
            index = re.fullmatch(r"[0-9a-f]{4,64}\.\.[0-9a-f]{4,64}(?: (\d{6}))?", facts["index"])
            if index is None:
                raise self._refuse(f"unreadable index line {facts['index'][:60]!r}")
            self._check_mode(index[1])
        return facts

    def _check_mode(self, mode: str | None) -> None:
        if mode is not None and mode not in MODES:
            raise self._refuse(
                f"mode {mode[:10]} is {SPECIAL_MODES.get(mode, 'unknown')}; only plain files may be changed"
            )

    def _labels(self) -> tuple[str | None, str | None]:
        """The names after --- and +++, with a/ and b/; both None if the section has no hunks."""
        line = self._line
        if line is None or not line.startswith("--- "):
            return None, None
        old = self._label_of(line)
        line = self._line
        if line is None or not line.startswith("+++ "):
            raise self._refuse("'---' is not followed by '+++'")
        return old, self._label_of(line)

    def _label_of(self, line: str) -> str:
        self._check_header_line(line)
        name = line[4:].removesuffix("\t")
        self._at += 1
        return _unquoted(name) if name.startswith('"') else name

    def _claim(
        self, facts: Mapping[str, str], old: str | None, new: str | None, candidates: list[tuple[str, str]]
    ) -> FilePatch:
        """What the headers say together. Raises PatchError if they contradict each other.

        facts: extended headers. old, new: names after --- and +++. candidates: readings of the first line.
        """
        added, deleted = "new file mode" in facts, "deleted file mode" in facts
        renamed = "rename from" in facts or "rename to" in facts
        if added + deleted + renamed > 1:
            raise self._refuse("a section may add, delete or rename, not several of them")
        names = self._claimed_names(facts, old, new, candidates)
        if names not in candidates:
            raise self._refuse(
                f"the 'diff --git' line does not name {names[0]!r} and {names[1]!r} as the other headers do"
            )
        expected = ("/dev/null" if added else f"a/{names[0]}", "/dev/null" if deleted else f"b/{names[1]}")
        if old is not None and (old, new) != expected:
            raise self._refuse(
                f"the names {old!r} and {new!r} do not agree with {expected[0]!r} and {expected[1]!r}"
            )
        if renamed and names[0] == names[1]:
            raise self._refuse(f"{names[0]!r} is renamed to itself")
        for name in names:
            self._check_path(name)
        kind: Kind = "add" if added else "delete" if deleted else "rename" if renamed else "modify"
        mode = facts.get("new file mode") or facts.get("deleted file mode") or "100644"
        return FilePatch(
            names[1], None if added else names[0], None if deleted else names[1], kind, MODES[mode]
        )

    def _claimed_names(
        self, facts: Mapping[str, str], old: str | None, new: str | None, candidates: list[tuple[str, str]]
    ) -> tuple[str, str]:
        """The file's old and new name, from the headers that state it most clearly."""
        added, deleted = "new file mode" in facts, "deleted file mode" in facts
        if "rename from" in facts or "rename to" in facts:
            if not {"rename from", "rename to"} <= facts.keys():
                raise self._refuse("a rename needs both 'rename from' and 'rename to'")
            return _maybe_unquoted(facts["rename from"]), _maybe_unquoted(facts["rename to"])
        if old is not None and new is not None:
            if (old == "/dev/null") is not added or (new == "/dev/null") is not deleted:
                raise self._refuse("/dev/null and 'new file mode' or 'deleted file mode' do not agree")
            source = new if added else old
            if not source.startswith(("a/", "b/")):
                raise self._refuse(f"the name {source[:60]!r} lacks its a/ or b/. {ADVICE}")
            return source[2:], source[2:]
        same = [pair for pair in candidates if pair[0] == pair[1]]
        if len(same) != 1:
            raise self._refuse("the names in the 'diff --git' line do not agree")
        return same[0]

    def _check_path(self, path: str) -> None:
        reason = path_problem(path)
        if reason:
            raise self._refuse(reason)

    def _hunks(self) -> Iterator[Hunk]:
        last_old = 0
        while (line := self._line) is not None and line.startswith("@@"):
            found = HUNK.fullmatch(line)
            if found is None:
                raise self._refuse(f"unreadable hunk header {line[:60]!r}")
            old_start, old_count = int(found[1]), int(found[2] or 1)
            new_start, new_count = int(found[3]), int(found[4] or 1)
            if old_start < last_old:
                raise self._refuse("hunks overlap or are out of order")
            last_old = old_start + old_count
            self._at += 1
            yield Hunk(
                old_start, old_count, new_start, new_count, tuple(self._hunk_lines(old_count, new_count))
            )

    def _hunk_lines(self, old_left: int, new_left: int) -> Iterator[str]:
        """Yield the lines of a hunk whose header promises this many old and new lines."""
        changes = False
        last = ""
        while old_left > 0 or new_left > 0:
            line = self._line
            if line is None:
                raise self._refuse("the diff ends within a hunk")
            line = line or " "  # some tools strip the space of an empty context line
            mark = line[0]
            if mark == "\\":
                self._check_marker(line, last)
            elif mark in " +-":
                old_left -= mark in " -"
                new_left -= mark in " +"
                changes = changes or mark != " "
            else:
                raise self._refuse(
                    f"{line[:40]!r} is no line of a hunk; its header promises "
                    f"{old_left} more old and {new_left} more new lines"
                )
            if old_left < 0 or new_left < 0:
                raise self._refuse("the hunk has more lines than its header says")
            self._at += 1
            last = mark
            yield line
        if self._line is not None and self._line.startswith("\\"):
            self._check_marker(self._line, last)
            self._at += 1
            yield NO_NEWLINE
        if not changes:
            raise self._refuse("the hunk changes nothing")

    def _check_marker(self, line: str, last: str) -> None:
        if line != NO_NEWLINE or last not in (" ", "+", "-"):
            raise self._refuse(f"unexpected {line[:40]!r}")

    def _check_hunks(self, file: FilePatch, hunks: tuple[Hunk, ...]) -> None:
        if file.kind == "add" and hunks and (len(hunks) > 1 or hunks[0].old_count):
            raise self._refuse(f"{file.path!r} is said to be new, but the hunk has old lines")
        if file.kind == "delete" and hunks and (len(hunks) > 1 or hunks[0].new_count):
            raise self._refuse(f"{file.path!r} is said to be deleted, but the hunk has new lines")


def path_problem(path: str) -> str:
    """Why `path` may not occur in a diff; "" if it may."""
    shown = ascii(path[:80])
    if not is_safe_path(path):
        return f"the path {shown} is not a plain relative path inside the repository"
    if any(part.startswith("-") for part in path.split("/")):
        return f"the path {shown} has a name that starts with '-', like an option; rename it"
    if any(
        char < " " or "\x7f" <= char < "\xa0" or "\ud800" <= char <= "\udfff" or char == '"' for char in path
    ):
        return f"the path {shown} holds control characters, quotes or half a character"
    if len(path.encode()) > MAX_PATH_BYTES or any(
        len(part.encode()) > MAX_NAME_BYTES for part in path.split("/")
    ):
        return f"the path {shown}… is too long"
    return ""


# ---- names


def _unquoted(text: str) -> str:
    """The name in a text that git quoted in C style. Raises PatchError."""
    name, rest = _take_quoted(text)
    if rest:
        raise PatchError(f"unreadable quoted name {text[:60]!r}")
    return name


def _take_quoted(text: str) -> tuple[str, str]:
    """The quoted name at the start of `text`, and the rest after its closing quote. Raises PatchError."""
    data = bytearray()
    at = 1
    while at < len(text) and text[at] != '"':
        if text[at] != "\\":
            data += diff_bytes(text[at])
            at += 1
        elif text[at + 1 : at + 2] in ESCAPES:
            data.append(ESCAPES[text[at + 1]])
            at += 2
        elif re.fullmatch(r"[0-3][0-7]{2}", text[at + 1 : at + 4]):
            data.append(int(text[at + 1 : at + 4], 8))
            at += 4
        else:
            raise PatchError(f"unreadable quoted name {text[:60]!r}")
    if at >= len(text):
        raise PatchError(f"unreadable quoted name {text[:60]!r}")
    try:
        return data.decode("utf-8"), text[at + 1 :]
    except UnicodeDecodeError as error:
        raise PatchError(f"the file name {text[:60]!r} is not UTF-8") from error


def _maybe_unquoted(text: str) -> str:
    return _unquoted(text) if text.startswith('"') else text


def _header_names(rest: str) -> Iterator[tuple[str, str]]:
    """Yield each pair of names, without a/ and b/, that a 'diff --git' line can mean.

    Names with blanks make the line ambiguous.
    """
    if len(rest) > 4 * MAX_PATH_BYTES * 2:
        return
    splits: list[tuple[str, str]] = []
    if rest.startswith('"'):
        name, tail = _take_quoted(rest)
        if tail.startswith(" "):
            splits.append((name, _maybe_unquoted(tail[1:])))
    elif rest.endswith('"') and ' "' in rest:
        left, _, right = rest.partition(' "')
        splits.append((left, _unquoted(f'"{right}')))
    else:
        splits += [(rest[: found.start()], rest[found.start() + 1 :]) for found in re.finditer(" b/", rest)]
    for old, new in splits:
        if old.startswith("a/") and new.startswith("b/"):
            yield old[2:], new[2:]


def label(prefix: str, name: str | None) -> str:
    """A name as git writes it after --- and +++. A tab ends a name with blanks, as git does it."""
    if name is None:
        return "/dev/null"
    return f"{prefix}{name}\t" if " " in name else f"{prefix}{name}"


# ---- reversing


def reverse_patch(text: str) -> str:
    """The diff that undoes a diff. The solver gets it as its specification. Raises PatchError."""
    return Patch(tuple(_reversed(file) for file in parse_patch(text, len(diff_bytes(text))).files)).text()


def _reversed(file: FilePatch) -> FilePatch:
    kinds: dict[Kind, Kind] = {"add": "delete", "delete": "add", "modify": "modify", "rename": "rename"}
    hunks = tuple(
        Hunk(h.new_start, h.new_count, h.old_start, h.old_count, tuple(_reversed_lines(h.lines)))
        for h in file.hunks
    )
    path = file.old_path or file.path
    return FilePatch(path, file.new_path, file.old_path, kinds[file.kind], file.executable, hunks)


def _reversed_lines(lines: Sequence[str]) -> Iterator[str]:
    """Swap the signs, and put the removed lines of each block of changes before the added ones again."""
    removed: list[str] = []
    added: list[str] = []
    # Where a `\ No newline` marker belongs; None: after the context line that was just yielded.
    target: list[str] | None = None
    for line in lines:
        if line[0] == " ":
            yield from removed
            yield from added
            removed, added, target = [], [], None
            yield line
        elif line[0] == "\\":
            if target is None:
                yield line
            else:
                target.append(line)
        else:
            target = removed if line[0] == "+" else added
            target.append(("-" if line[0] == "+" else "+") + line[1:])
    yield from removed
    yield from added
