#!/usr/bin/env python3
"""Damaged files in the disk folder while nobody serves: the daemon serves what is whole, at the third
start at the latest, and no wrong bit comes back."""
import os
import random
import struct
import subprocess
import time

import harness
from harness import Case


class Damage(Case):
    words = 300

    def ask(self):
        return self.engine("--prompt-file", self.prompt(self.words), "--max-tokens", "4", "--hash-logits")

    def fill(self, words=300):
        self.words = words
        daemon = self.start_daemon(disk="32M")
        result = self.ask()
        self.assertEqual(self.stop(daemon), 0)
        return result["logits_sha256"]

    def start_once(self):
        """A daemon that serves, or None: LMDB may crash on what it reads."""
        with open(self.folder / "damaged.log", "ab") as stream:
            daemon = subprocess.Popen(self.daemon_command(disk="32M"), stderr=stream)
        self.processes.append(daemon)
        for _ in range(3000):
            ready = self.tool("status", check=False)
            if daemon.poll() is not None or isinstance(ready, dict) and ready["loaded"]:
                break
            time.sleep(0.02)
        return daemon if daemon.poll() is None else None

    def check_start(self, expected, restored=True):
        """Serves at the third start at the latest, and everything is there and right."""
        daemon = self.start_once() or self.start_once() or self.start_once()
        self.assertIsNotNone(daemon, (self.folder / "damaged.log").read_text())
        result = self.ask()
        self.assertEqual(result["logits_sha256"], expected)
        if restored:
            self.assertGreater(harness.restored(result), 0)
        self.assertEqual(self.tool("verify")["bad"], 0)
        warnings = self.tool("status")["warnings"]
        self.stop(daemon)
        return warnings

    def damage(self, pages, content):
        index = self.disk / "index/data.mdb"
        with open(index, "r+b") as file:
            for page in pages:
                file.seek(page * 4096)
                file.write(content)

    def test_an_index_without_its_head(self):
        expected = self.fill()
        self.damage([0, 1], bytes(4096))
        warnings = self.check_start(expected)
        self.assertTrue(any("rebuilt from the segments" in line for line in warnings), warnings)
        (self.disk / "index/data.mdb").unlink()
        self.check_start(expected)
        self.assertFalse(any("rebuilt" in line for line in self.check_start(expected)))

    def test_a_rebuild_by_hand(self):
        expected = self.fill()
        words = ("verify", "--rebuild", "--disk-path", self.disk)
        before = self.tool(*words)
        self.assertGreater(before["blocks"], 0)
        self.assertEqual(before["bad"], 0)
        self.assertEqual(before["left_out"], 0)
        (self.disk / "index/data.mdb").write_bytes(b"nonsense" * 5000)
        self.assertEqual(self.tool(*words), before)
        daemon = self.start_daemon(disk="32M")
        result = self.ask()
        self.assertEqual(result["logits_sha256"], expected)
        self.assertGreater(harness.restored(result), 0)
        refused = self.tool(*words, check=False)
        self.assertEqual(refused.returncode, 1)
        self.assertIn("is held by process %d" % daemon.pid, refused.stderr)
        self.stop(daemon)
        (self.disk / "segments/journal").unlink()
        refused = self.tool(*words, check=False)
        self.assertEqual(refused.returncode, 1)
        self.assertIn("nothing to rebuild from", refused.stderr)
        self.check_start(expected)
        self.assertEqual(harness.run(harness.BIN / "kvloft", "verify", "--rebuild", check=False)
                         .returncode, 2)
        nowhere = harness.run(harness.BIN / "kvloft", "verify", "--rebuild", "--disk-path",
                              self.folder / "nowhere", check=False)
        self.assertEqual(nowhere.returncode, 1)
        self.assertIn("is no disk folder", nowhere.stderr)

    def leaves(self):
        """Pages of the index with many entries, in order of their first keys."""
        data = (self.disk / "index/data.mdb").read_bytes()
        found = []
        for page in range(2, len(data) // 4096):
            at = page * 4096
            flags, lower, upper, first = struct.unpack_from("<4H", data, at + 10)
            if flags == 2 and 32 <= lower <= upper <= 4096 and first < 4000:
                found.append((data[at + first + 8:at + first + 40], page))
        return [page for _, page in sorted(found)]

    def test_index_pages_that_contradict_each_other(self):
        expected = self.fill(words=1100)
        leaves = self.leaves()
        self.assertGreater(len(leaves), 1)
        whole = (self.disk / "index/data.mdb").read_bytes()
        for page in leaves[-8:]:  # stale copies among them
            self.damage([page], bytes(4096))
            self.check_start(expected)
            (self.disk / "index/data.mdb").write_bytes(whole)

    def test_flipped_segments(self):
        expected = self.fill()
        random.seed(1)
        for segment in sorted((self.disk / "segments").glob("*.seg")):
            with open(segment, "r+b") as file:
                for _ in range(200):
                    file.seek(random.randrange(min(os.path.getsize(segment), 1 << 20)))
                    file.write(b"\x5a")
        self.check_start(expected, restored=False)


harness.main()
