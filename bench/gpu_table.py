#!/usr/bin/env python3
"""What scripts/gpu-check found, from the files in its folder, in at most 58 lines: tests that did
not pass first, then figures beside their limits.

    bench/gpu_table.py FOLDER

Reads tests.log (CTest's), *.result (the checkers'), not_run.txt, bench.json, timeline.json and
session.json; what is not there is left out. The whole table, uncut, goes into FOLDER/table.txt."""
import json
import pathlib
import re
import sys
import textwrap

LINES_MAX = 58  # under two of what ran where
TEST = re.compile(r"^ *\d+/\d+ Test +#\d+: (\S+) \.*(.*)$", re.MULTILINE)
COPY = re.compile(r"^gpu\.(store|load|hash|both, to host|both|plain store|plain load), (.*)$")
COPIES = ["store", "load", "hash", "both", "both, to host"]
# Of these the file has more than the table: single products, attention's times, and what stands
# there as another row's limit.
LEFT_OUT = re.compile(r": product |, a layer$|: memory read$|^gpu\.(link|disk),")


def read(path):
    return path.read_text(errors="replace") if path.exists() else ""


def results(path):
    try:
        return json.loads(read(path))["results"]
    except (ValueError, KeyError):
        return []


def tests(folder):
    passed = []
    for name, outcome in TEST.findall(read(folder / "tests.log")):
        outcome = " ".join(outcome.replace("*", " ").split())
        if outcome.startswith("Passed"):
            passed.append(f"{name} {outcome.split()[1]} s")
        else:
            yield f"test     {name}: {outcome}"
    if passed:
        yield from textwrap.wrap(f"{len(passed)} passed: " + ", ".join(passed), width=110,
                                 initial_indent="test     ", subsequent_indent="         ")


def cell(result):
    return f"{result['value']:7.1f} {result['ratio']:5.3f}" if result else " " * 13


def copies(rows):
    """One line for blocks of a kind, GB/s and the share of the limit."""
    kinds = {}
    for row in rows:
        found = COPY.match(row["name"])
        if found:
            what = found[1].removeprefix("plain ")
            kind = found[2] + (" plain batches" if what != found[1] else "")
            kinds.setdefault(kind, {})[what] = row
    if kinds:
        yield f"copy     {'GB/s, of the limit':<28}" + "".join(f" {name:>13}" for name in COPIES)
    for kind, found in kinds.items():
        cells = "".join(" " + cell(found.get(name)) for name in COPIES)
        yield f"copy     {kind:<28}{cells}".rstrip()


def others(kind, rows):
    for row in rows:
        if COPY.match(row["name"]) or LEFT_OUT.search(row["name"]):
            continue
        limit = f"{row['limit']:10.4g} {row['ratio']:6.3f}" if row.get("limit") else ""
        yield f"{kind:<8} {row['name']:<58} {row['value']:10.4g} {row['unit']:<9} {limit}".rstrip()


def timeline(folder):
    try:
        told = json.loads(read(folder / "timeline.json"))
    except ValueError:
        return
    listed = {key: ", ".join(f"{ms:.1f}" for ms in told.get(key, []))
              for key in ("first_layer_ms", "rounds_ms")}
    yield (f"timeline {told['restored_tokens']} tokens restored, {told['computed_tokens']} "
           f"computed: {listed['rounds_ms']} ms")
    yield f"timeline first layer whole after {listed['first_layer_ms']} ms"
    if told["layers"]:
        arrived = [layer["arrived_ms"] for layer in told["layers"]]
        ended = told["layers"][-1]["ended_ms"]
        yield (f"timeline last round: layers whole after {arrived[0]:.1f}, {arrived[1]:.1f} .. "
               f"{arrived[-1]:.1f} ms, the last computed after {ended:.1f}")


def table(folder):
    yield from tests(folder)
    for path in sorted(folder.glob("*.result")):
        yield from (f"check    {line}" for line in read(path).splitlines())
    yield from (f"not run  {line}" for line in read(folder / "not_run.txt").splitlines())
    rows = results(folder / "bench.json")
    yield from copies(rows)
    yield from timeline(folder)
    yield from others("session", results(folder / "session.json"))
    yield from others("bench", rows)


def main():
    folder = pathlib.Path(sys.argv[1])
    lines = list(table(folder))
    (folder / "table.txt").write_text("".join(line + "\n" for line in lines))
    if len(lines) > LINES_MAX:
        left = len(lines) - LINES_MAX + 1
        lines = lines[:LINES_MAX - 1] + [f"({left} more lines in {folder}/table.txt)"]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
