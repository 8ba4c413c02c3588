#!/usr/bin/env python3
"""Every function of the public headers is exported by the shared library, and nothing else is."""
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADERS = ("ipc/client/kvloft.h", "core/kvl_err.h", "core/kvl_key.h")


def declared():
    names = set()
    for header in HEADERS:
        text = re.sub(r"/\*.*?\*/", "", (ROOT / header).read_text(), flags=re.S)
        text = re.sub(r"#.*?(?<!\\)\n", "", text, flags=re.S)
        text = re.sub(r"\bstatic inline\b.*?\{.*?\n\}", "", text, flags=re.S)
        names |= set(re.findall(r"\b(kvl_\w+)\([^)]*\)\s*;", text))
    return names


def exported():
    text = re.sub(r"/\*.*?\*/", "", (ROOT / "ipc/client/kvloft.map").read_text(), flags=re.S)
    return set(re.findall(r"\b(kvl_\w+);", text))


missing, unknown = declared() - exported(), exported() - declared()
for name in sorted(missing):
    print(f"{name} is declared and not in kvloft.map")
for name in sorted(unknown):
    print(f"{name} is in kvloft.map and declared nowhere")
assert len(declared()) > 40, "the headers were not read"
raise SystemExit(bool(missing or unknown))
