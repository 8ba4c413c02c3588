#!/usr/bin/env python3
"""Fails on an include that points up, or on a dependency's header outside its folder.

The second argument is a file of `target: libraries` lines, written by CMake: links that point up
fail too.

Folders may include: core -> nothing of ours; tiers -> core; ipc -> core; engine -> the public
client headers only; cli -> everything; nothing includes tests or bench."""
import pathlib
import re
import sys

ROOT = pathlib.Path(sys.argv[1])
PUBLIC = {"kvloft.h", "kvl_err.h", "kvl_key.h", "kvl_types.h"}
MAY_INCLUDE = {
    "core": {"core"},
    "tiers": {"core", "tiers"},
    "ipc": {"core", "ipc"},
    "engine": {"engine"},
    "cli": {"core", "tiers", "ipc", "engine", "cli"},
}
# Where a dependency's headers may appear.
OWNERS = {
    r"liburing\.h": {"tiers/disk"},
    r"lmdb\.h": {"tiers/disk"},
    r"zstd.*\.h": {"tiers/disk"},
    r"nanomsg/.*": {"ipc"},
    r"cuda.*\.h": {"tiers/device_cuda", "engine/cuda"},
    r"pcre2\.h": {"engine"},
    r"jansson\.h": {"cli", "engine"},
    r"xxhash\.h": {"core", "tiers"},
    r"openssl/.*": {"core", "engine", "ipc"},
}
# What a folder's targets may link of ours.
MAY_LINK = {
    "kvloft_core": set(),
    "kvloft_tiers": {"kvloft_core"},
    "kvloft_wire": {"kvloft_core"},
    "kvloft": {"kvloft_core", "kvloft_wire"},
    "kvloft_static": {"kvloft_core", "kvloft_wire"},
    "kvloft_server": {"kvloft_core", "kvloft_wire"},
    "kvloft_engine": {"kvloft", "kvloft_static"},
}
INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]', re.M)


def headers_by_name():
    found = {}
    for folder in list(MAY_INCLUDE) + ["tests", "bench"]:
        for path in (ROOT / folder).rglob("*.h"):
            found.setdefault(path.name, []).append(path.relative_to(ROOT))
    return found


def own_target(source, name, headers):
    """The header of ours that an include means, or None."""
    base = pathlib.PurePath(name).name
    candidates = [h for h in headers.get(base, []) if str(h).endswith(name.lstrip("./"))]
    same_folder = [h for h in candidates if h.parent == source.parent]
    same_top = [h for h in candidates if h.parts[0] == source.parts[0]]
    for group in (same_folder, same_top, candidates):
        if group:
            return group[0]
    return None


def check(source, headers):
    top = source.parts[0]
    text = (ROOT / source).read_text(errors="replace")
    for bracket, name in INCLUDE.findall(text):
        for pattern, folders in OWNERS.items():
            if bracket == "<" and re.fullmatch(pattern, name):
                if not any(str(source).startswith(folder + "/") for folder in folders):
                    yield f"{source}: {name} belongs to {', '.join(sorted(folders))}"
        if bracket == "<":
            continue
        target = own_target(source, name, headers)
        if target is None:
            yield f"{source}: includes {name}, which is none of ours"
        elif target.parts[0] in ("tests", "bench"):
            yield f"{source}: includes {target}: nothing includes tests or bench"
        elif target.name not in PUBLIC and target.parts[0] not in MAY_INCLUDE[top]:
            yield f"{source}: includes {target}, which points up"
        elif top == "tiers" and target.parts[0] == "tiers":
            ours, theirs = source.parts[1], target.parts[1]
            if ours != theirs:
                yield f"{source}: includes {target}: tiers never include one another"


def check_links(lines):
    seen = 0
    for line in lines:
        target, _, libraries = line.partition(": ")
        if target not in MAY_LINK:
            continue
        seen += 1
        for name in re.findall(r"\bkvloft\w*", libraries):
            if name != target and name not in MAY_LINK[target]:
                yield f"target {target} links {name}, which points up"
    if seen != len(MAY_LINK):
        yield f"{seen} of the {len(MAY_LINK)} layered targets were found"


def main():
    headers = headers_by_name()
    problems = list(check_links(pathlib.Path(sys.argv[2]).read_text().splitlines()))
    files = 0
    for folder in MAY_INCLUDE:
        for path in sorted((ROOT / folder).rglob("*.[ch]")) + sorted((ROOT / folder).rglob("*.cu")):
            files += 1
            problems += check(path.relative_to(ROOT), headers)
    print("\n".join(problems))
    print(f"{files} files, {len(problems)} problems")
    return 1 if problems or files == 0 else 0


sys.exit(main())
