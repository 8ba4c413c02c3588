#!/usr/bin/env python3
"""A disk that is slow or hangs, a daemon that hangs, a clock that jumps: everything goes on.

The daemon runs with a preloaded library that delays each of its reads, writes and syncs, LMDB's
included (tests/fault/slow_disk.c). With a delay of an hour whatever waits for the disk would wait
for ever, so these tests measure no time; bench/stall.py does."""
import mmap
import signal
import struct
import sys
import time

import harness
from harness import BIN, SANITIZED, Case, decode, finish, restored, run

LIBRARY = BIN.parent / "lib/libkvl_slow_disk.so"
HANGS = 3_600_000
SLOW = 200
# 170 blocks of the tiny model in each memory tier.
SMALL = {"device": "2M", "host": "2M", "disk": "64M"}


class SlowDisk(Case):
    def setUp(self):
        super().setUp()
        control = self.folder / "slow"
        control.write_bytes(bytes(16))
        with control.open("r+b") as file:
            self.control = mmap.mmap(file.fileno(), 16)
        self.env = {"LD_PRELOAD": str(LIBRARY), "KVL_SLOW_FOLDER": str(self.disk),
                    "KVL_SLOW_CONTROL": str(control)}

    def tearDown(self):
        self.slow(0)
        super().tearDown()
        self.control.close()

    def slow(self, milliseconds):
        self.control[0:4] = struct.pack("<I", milliseconds)

    def set_clock_off(self, seconds):
        self.control[4:8] = struct.pack("<i", seconds)

    def delayed_calls(self):
        return struct.unpack("<Q", self.control[8:16])[0]

    def start(self, *extra, **sizes):
        daemon = self.start_daemon(env=self.env, extra=["--disk-io", "posix", *extra],
                                   **{**SMALL, **sizes})
        self.wait_until(lambda: self.tool("status")["loaded"])  # before the disk may hang
        return daemon

    def words(self, seed, prompt_words=300, tokens=8):
        return ["--prompt-file", self.prompt(prompt_words, f"p{seed}.txt", seed), "--max-tokens",
                str(tokens), "--hash-logits"]

    def check(self, seed, *words, **prompt):
        """Runs an engine against the daemon; its bits are those it has alone."""
        result = self.engine(*self.words(seed, **prompt), *words, timeout=120)
        alone = decode(*self.words(seed, **prompt), "--no-offload")
        self.assertEqual(result["logits_sha256"], alone["logits_sha256"])
        return result

    def test_a_disk_that_hangs_costs_persistence_only(self):
        daemon = self.start()
        self.check(1)
        self.tool("flush")
        self.slow(HANGS)
        last, deadline = 1, time.monotonic() + 300
        while self.tool("status")["shed_blocks"] < 50:
            self.assertLess(time.monotonic(), deadline)
            last += 1
            self.check(last, "--session", f"s{last}")
        self.assertGreater(restored(self.check(last)), 0)
        self.assertGreater(self.delayed_calls(), 0)
        self.assertGreater(self.tool("status")["unpersisted_blocks"], 0)
        self.wait_for_leases(0)
        self.assertEqual(len(self.tool("session", "ls")["sessions"]), last - 1)
        self.slow(0)
        self.tool("flush")
        self.assertEqual(self.tool("status")["unpersisted_blocks"], 0)
        self.assertEqual(self.stop(daemon), 0)
        self.start_daemon(**SMALL)
        self.assertEqual(self.tool("verify")["bad"], 0)
        self.assertEqual(len(self.tool("session", "ls")["sessions"]), last - 1)
        self.assertGreater(restored(self.check(last)), 0)

    def test_a_slow_disk_does_everything_slowly(self):
        self.slow(SLOW)
        daemon = self.start()
        self.check(1, "--session", "one")
        self.check(2)
        self.tool("flush")
        self.tool("demote", "--session", "one", "--tier", "disk")
        self.assertGreater(self.check(1)["restored_tokens"]["disk"], 0)
        self.assertEqual(self.tool("verify")["bad"], 0)
        self.tool("session", "drop", "one")
        self.tool("clear", "--all")
        self.assertEqual(self.stop(daemon), 0)
        self.start()
        self.assertEqual(self.tool("ls")["blocks"], [])

    def lost_at_the_stop(self, daemon):
        """Stops a daemon whose disk hangs; the log's last line."""
        since = time.monotonic()
        self.assertEqual(self.stop(daemon), 1)
        return self.log().splitlines()[-1], time.monotonic() - since

    def check_it_starts_again(self):
        self.slow(0)
        self.start_daemon(**SMALL)
        self.assertEqual(self.tool("verify")["bad"], 0)
        self.check(1)

    def test_a_stop_ends_in_time_and_says_what_is_lost(self):
        daemon = self.start("--stop-seconds", "1")
        self.check(1)
        self.tool("flush")
        self.slow(HANGS)
        self.check(2)
        line, seconds = self.lost_at_the_stop(daemon)
        self.assertRegex(line, r"--stop-seconds 1: [1-9]\d* blocks, .* may be lost")
        self.assertGreaterEqual(seconds, 1)
        self.check_it_starts_again()

    def test_a_second_signal_ends_it_at_once(self):
        daemon = self.start("--stop-seconds", "0")
        self.slow(HANGS)
        self.check(1)
        daemon.send_signal(signal.SIGTERM)
        self.wait_until(lambda: not (self.folder / "run/kvloft.sock").exists())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # still the first one
            daemon.send_signal(number)
        time.sleep(1.1)
        self.assertIsNone(daemon.poll())
        line, _ = self.lost_at_the_stop(daemon)
        self.assertIn("second signal", line)
        self.check_it_starts_again()

    def test_a_start_that_hangs_can_be_stopped(self):
        daemon = self.start()
        self.check(1)
        self.stop(daemon)
        self.slow(HANGS)
        before = self.delayed_calls()
        daemon = self.spawn_daemon(
            self.env, extra=["--disk-io", "posix", "--stop-seconds", "1"], **SMALL)
        self.wait_until(lambda: self.delayed_calls() > before)
        line, _ = self.lost_at_the_stop(daemon)
        self.assertIn("the disk hangs", line)
        self.check_it_starts_again()

    def test_the_wall_clock_may_jump(self):
        daemon = self.start()
        self.check(1, "--session", "a")
        for seed, offset in enumerate((-86400, 86400 * 365, -86400 * 365, 0), start=2):
            self.set_clock_off(offset)
            self.check(seed, "--session", "a%d" % seed)
            self.assertGreater(restored(self.check(1)), 0)
            self.tool("flush")
            self.assertLess(self.tool("status")["uptime_ms"], 600_000)
        self.assertEqual(self.tool("verify")["bad"], 0)
        self.assertEqual(self.stop(daemon), 0)
        self.start()
        self.assertGreater(self.check(1)["restored_tokens"]["disk"], 0)


if SANITIZED:
    print("skipped: a preloaded library and a sanitizer's do not mix")
    sys.exit(77)
harness.main()
