# The second half of the parser of a script with the recorder of ids (id_recorder.py). The summary stays the authority: the
# record only says where an id of the summary ends. An id counts if the summary has its line, with the same status.

RECORD = re.compile(r"=+ selfplay: ids in full =+")
MAX_ENDS = 50  # places where an id may end in a line
MAX_BREAKS = 50  # line breaks in an id


def read_record(lines):
    """The recorded (status, id) pairs. None if there is no record; ValueError if there are two: one of them is forged."""
    starts = [number for number, line in enumerate(lines) if RECORD.fullmatch(line)]
    if len(starts) > 1:
        raise ValueError("two records")
    if not starts:
        return None
    entries = set()
    for line in lines[starts[0] + 1 :]:
        try:
            entry = json.loads(line)
            entries.add((str(entry["status"]), str(entry["id"])))
        except (ValueError, LookupError, TypeError, RecursionError):
            break
    return entries


def shown(name):
    """The id without line breaks and control characters, which no result may hold."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)


def ends(text):
    """The ids that a line can begin with: up to each ` - `, and the whole line."""
    at, number = text.find(" - "), 0
    while 0 <= at <= MAX_ID and number < MAX_ENDS:
        yield text[:at]
        at, number = text.find(" - ", at + 1), number + 1
    yield text


class Summary:
    """The lines below the header, with a short name in place of each recorded id."""

    def __init__(self, lines, entries, unused):
        self.lines, self.entries, self.unused = lines, entries, unused
        self.names = {}
        self.recorded_names = {name for _, name in entries}
        self.broken = {}  # (status, first line) -> second line -> ... -> None -> the id
        for status, name in sorted(entries):
            first, *others = [part.rstrip("\r") for part in name.split("\n", MAX_BREAKS + 1)]
            if 0 < len(others) <= MAX_BREAKS:
                place = self.broken.setdefault((status, first), {})
                for part in others:
                    place = place.setdefault(part, {})
                place[None] = name
        self.passed = {found[2] for line in lines if (found := LINE.fullmatch(line)) and found[1] == "PASSED"}

    def short(self, name):
        number = self.names.setdefault(name, len(self.names))
        return f"{self.unused}.py::{number}"

    def rewritten(self):
        rows, number = [], 0
        while number < len(self.lines):
            line = self.lines[number]
            number += 1
            found = LINE.fullmatch(line)
            if not found:
                rows += self.subtest(line)
                continue
            status, text = found[1], found[2]
            name, more = self.recorded(status, text, number)
            number += more
            if status == "ERROR":  # an error of a test that passed: no record may hide it
                rows += [f"ERROR {self.short(end)}" for end in ends(text) if end in self.passed]
            rows.append(line if name is None else f"{status} {self.short(name)}")
        return rows

    def recorded(self, status, text, number):
        """The recorded id that the line names, None if there is none, and how many more lines the id takes."""
        name = max((end for end in ends(text) if (status, end) in self.entries), key=len, default=None)
        place, more = self.broken.get((status, text)), 0
        if place is None:
            return name, 0
        for count, line in enumerate(self.lines[number : number + MAX_BREAKS], 1):
            for end in ends(line):
                if None in place.get(end, ()):
                    name, more = place[end][None], count
            place = place.get(line)
            if place is None:
                break
        return name, more

    def subtest(self, line):
        """The line of a failed subtest. Where it names a recorded test: that test, and a test that passed if it may be meant."""
        found = SUBTEST.fullmatch(line)
        starts = list(itertools.islice(test_files(found[1][:MAX_LINE]), MAX_NAMES)) if found else []
        texts = [found[1][start:MAX_LINE] for start in starts]
        named = [end for text in texts for end in ends(text) if end in self.recorded_names]
        if not named:
            return [line]
        guessed = [without_message(text) for text in texts]
        rows = [f"SUBFAILED {self.short(max(named, key=len))}"]
        return [*rows, line] if self.passed.intersection(guessed) else rows


def parse_recorded(log):
    lines = [line.rstrip("\r") for line in log.split("\n")]
    try:
        entries = read_record(lines)
    except ValueError:
        return {}
    headers = [number for number, line in enumerate(lines) if HEADER.fullmatch(line)]
    if not entries or len(headers) != 1:
        return parse(log)
    unused = "id"
    while f"{unused}.py::" in log:
        unused += "_"
    summary = Summary(lines[headers[0] + 1 :], entries, unused)
    found = parse("\n".join([lines[headers[0]], *summary.rewritten()]))
    names = {summary.short(name): shown(name) for name in tuple(summary.names)}
    outcomes = {}
    for name, outcome in sorted(found.items()):
        name = names.get(name, name)
        outcomes[name] = "failed" if "failed" in (outcome, outcomes.get(name)) else "passed"
    return {name: outcome for name, outcome in sorted(outcomes.items()) if 0 < len(name) <= MAX_ID}


