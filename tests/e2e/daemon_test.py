#!/usr/bin/env python3
"""The daemon's life: starting, stopping, dying, coming back; and the operator's commands."""
import os
import pathlib
import signal
import socket
import subprocess
import time

import harness
from harness import BIN, SANITIZED, TINY, Case, decode, finish, restored, run, start_decode


class Restarts(Case):
    def ask(self, *words):
        return self.engine("--prompt-file", self.prompt(300), "--max-tokens", "8", "--hash-logits",
                           *words)

    def test_a_clean_stop_flushes_and_a_restart_finds_everything(self):
        daemon = self.start_daemon()
        first = self.ask()
        self.assertEqual(restored(first), 0)
        self.assertEqual(self.stop(daemon), 0)
        self.start_daemon()
        second = self.ask()
        self.assertEqual(second["restored_tokens"]["disk"], restored(second))
        self.assertGreaterEqual(restored(second), (first["prompt_tokens"] - 1) // 64 * 64)
        self.assertEqual(second["logits_sha256"], first["logits_sha256"])
        self.assertEqual(self.tool("verify")["bad"], 0)

    def test_after_kill_everything_that_was_persisted_is_there(self):
        daemon = self.start_daemon()
        first = self.ask()
        self.wait_until(lambda: self.tool("status")["unpersisted_blocks"] == 0)  # by itself
        self.stop(daemon, signal.SIGKILL)
        self.start_daemon()
        second = self.ask()
        self.assertGreaterEqual(restored(second), (first["prompt_tokens"] - 1) // 64 * 64)
        self.assertEqual(second["logits_sha256"], first["logits_sha256"])

    def test_kill_at_any_moment_leaves_only_whole_blocks(self):
        expected = decode("--prompt-file", self.prompt(300), "--max-tokens", "8", "--hash-logits",
                          "--no-offload")["logits_sha256"]
        for delay in (0.0, 0.02, 0.05, 0.1, 0.2):
            daemon = self.start_daemon()
            engine = self.spawn("--prompt-file", self.prompt(300), "--max-tokens", "8",
                                "--hash-logits")
            time.sleep(delay)
            self.stop(daemon, signal.SIGKILL)
            finish_status = engine.wait(timeout=60)
            self.assertIn(finish_status, (0, 1))  # 1: the daemon was gone before it could connect
            daemon = self.start_daemon()
            self.assertEqual(self.tool("verify")["bad"], 0)
            self.assertEqual(self.ask()["logits_sha256"], expected)
            self.stop(daemon)

    def test_a_stale_socket_file_is_replaced(self):
        daemon = self.start_daemon()
        self.stop(daemon, signal.SIGKILL)
        self.assertTrue((self.folder / "run/kvloft.sock").exists())
        self.start_daemon()
        self.assertEqual(len(self.ask()["output_tokens"]), 8)


class TwoOfThem(Case):
    def second_daemon(self, **sizes):
        done = run(*self.daemon_command(**sizes), check=False, timeout=60)
        self.assertEqual(done.returncode, 1)
        return done.stderr

    def test_two_daemons_on_one_address(self):
        self.start_daemon()
        self.disk = self.folder / "disk2"
        self.assertIn("kvloft.sock", self.second_daemon())
        self.tool("status")

    def test_two_daemons_on_one_folder_names_the_holder(self):
        daemon = self.start_daemon()
        self.address = f"ipc://{self.folder}/run2/kvloft.sock"
        self.assertIn(str(daemon.pid), self.second_daemon())

    def test_embedded_on_a_held_folder_names_the_holder(self):
        daemon = self.start_daemon()
        done = run(BIN / "kvloft-decode", "--model", TINY, "--prompt", "x", "--max-tokens", "1",
                   "--embedded", self.disk, "--device-bytes", "16M", "--host-bytes", "16M",
                   "--disk-bytes", "64M", check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn(str(daemon.pid), done.stderr)


class Embedded(Case):
    def setUp(self):
        super().setUp()
        self.text = self.prompt(300)
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()

    def words(self, disk="disk", tokens=4):
        return ("--prompt-file", self.text, "--max-tokens", tokens, "--hash-logits",
                "--embedded", self.folder / disk, "--device-bytes", "16M", "--host-bytes", "16M",
                "--disk-bytes", "64M")

    def environment(self, **more):
        return {**os.environ, "TMPDIR": str(self.temporary), **more}

    def start(self, disk, **options):
        process = start_decode(*self.words(disk, **options), env=self.environment())
        self.processes.append(process)
        return process

    def is_connected(self, process):
        """Both ends of both connections, and what two of them listen at."""
        try:
            names = [os.readlink(name) for name in pathlib.Path(f"/proc/{process.pid}/fd").iterdir()]
        except OSError:  # one was closed meanwhile
            return False
        return sum(name.startswith("socket:") for name in names) >= 6

    def test_what_one_process_stored_the_next_restores(self):
        first, second = decode(*self.words()), decode(*self.words())
        self.assertGreater(restored(second), 0)
        self.assertEqual(first["logits_sha256"], second["logits_sha256"])

    def test_no_folder_for_a_socket_and_no_tenant_have_to_be_set_up(self):
        for temporary in ("/nonexistent", f"/tmp/{'long' * 30}", str(self.text), "relative"):
            done = decode(*self.words(), env=self.environment(
                TMPDIR=temporary, KVLOFT_TENANT="nobody", KVLOFT_SECRET_FILE="/nonexistent"))
            self.assertEqual(len(done["output_tokens"]), 4)

    def test_many_at_once_and_one_that_is_killed_leave_no_socket(self):
        killed = self.start("killed", tokens=2900)
        self.wait_until(lambda: self.is_connected(killed) and not os.listdir(self.temporary))
        killed.send_signal(signal.SIGSTOP)
        self.assertIsNone(killed.poll())
        engines = [self.start(f"disk{i}") for i in range(6)]
        self.assertEqual(len({finish(engine)["logits_sha256"] for engine in engines}), 1)
        killed.kill()
        self.assertEqual(killed.wait(), -signal.SIGKILL)
        self.assertEqual(os.listdir(self.temporary), [])


class Operating(Case):
    def setUp(self):
        super().setUp()
        self.daemon = self.start_daemon()

    def talk(self, session, words=150, tokens=8, seed=1):
        return self.engine("--session", session, "--prompt-file", self.prompt(words, seed=seed),
                           "--max-tokens", str(tokens), "--hash-logits")

    def test_status_has_its_fields(self):
        self.talk("a")
        status = self.tool("status")
        for tier in ("device", "host", "disk"):
            for field in ("capacity_bytes", "used_bytes", "blocks", "hits", "misses"):
                self.assertIn(field, status["tiers"][tier])
        self.assertGreater(status["tiers"]["device"]["blocks"], 0)
        for tier in status["tiers"].values():
            self.assertLessEqual(tier["used_bytes"], tier["capacity_bytes"])
        self.assertGreater(status["memory_bytes"], status["tiers"]["device"]["used_bytes"])
        if not SANITIZED:  # which has memory of its own
            self.assertLessEqual(status["memory_bytes"], status["memory_bytes_max"])
        self.assertIn(b"device", run(BIN / "kvloft", "status", "--connect", self.address).stdout)

    def test_a_session_goes_on_at_its_token_and_survives_a_restart(self):
        first = self.talk("work")
        second = self.talk("work", words=20, seed=2)
        self.assertEqual(second["prompt_tokens"],
                         first["prompt_tokens"] + len(first["output_tokens"]) + second_prompt(self))
        sessions = self.tool("session", "ls")["sessions"]
        self.assertEqual([s["name"] for s in sessions], ["work"])
        shown = self.tool("session", "show", "work")
        self.assertEqual(shown["tokens"], second["prompt_tokens"] + len(second["output_tokens"]))
        self.assertEqual(self.stop(self.daemon), 0)
        self.daemon = self.start_daemon()
        self.assertEqual(self.tool("session", "show", "work")["tokens"], shown["tokens"])
        third = self.talk("work", words=20, seed=3)
        self.assertGreaterEqual(third["restored_tokens"]["disk"], shown["tokens"] // 64 * 64)

    def test_a_session_has_one_writer(self):
        slow = self.spawn("--session", "one", "--prompt-file", self.prompt(60), "--max-tokens",
                          "3000")
        self.wait_until(lambda: any(s["holder_pid"] for s in
                                    self.tool("session", "ls")["sessions"]) or
                        slow.poll() is not None)
        if slow.poll() is None:
            slow.send_signal(signal.SIGSTOP)
            done = run(*harness.decode_command("--connect", self.address, "--session", "one",
                                               "--prompt", "x", "--max-tokens", "1"), check=False)
            drop = self.tool("session", "drop", "one", check=False)
            slow.send_signal(signal.SIGCONT)
            self.assertEqual(done.returncode, 1)
            self.assertIn(str(slow.pid), done.stderr)
            self.assertEqual(drop.returncode, 1)
        finish(slow)
        self.tool("session", "drop", "one")
        self.assertEqual(self.tool("session", "ls")["sessions"], [])

    def test_clear_stays_clear_after_a_kill(self):
        self.talk("a")
        self.assertGreater(self.tool("clear", "--all")["cleared_blocks"], 0)
        self.stop(self.daemon, signal.SIGKILL)
        self.daemon = self.start_daemon()
        self.assertEqual(self.tool("ls")["blocks"], [])
        self.assertEqual(len(self.tool("session", "ls")["sessions"]), 1)

    def test_pins_survive_and_prefetch_and_demote_move(self):
        self.talk("a")
        self.tool("flush")
        self.assertGreater(self.tool("pin", "--session", "a")["blocks"], 0)
        self.tool("flush")
        self.stop(self.daemon, signal.SIGKILL)
        self.daemon = self.start_daemon()
        self.assertTrue(all(b["pinned"] for b in self.tool("ls")["blocks"]))
        moved = self.tool("prefetch", "--session", "a")
        self.assertEqual(moved["moved"], moved["blocks"])
        self.assertTrue(all("device" in b["tiers"] for b in self.tool("ls")["blocks"]))
        self.tool("demote", "--session", "a", "--tier", "host")
        self.assertTrue(all(b["tiers"] == "host+disk" for b in self.tool("ls")["blocks"]))
        self.tool("demote", "--session", "a", "--tier", "disk")
        self.assertTrue(all(b["tiers"] == "disk" for b in self.tool("ls")["blocks"]))
        self.assertGreater(self.tool("unpin", "--session", "a")["blocks"], 0)

    def test_bits_are_the_same_from_every_tier(self):
        reference = decode("--prompt-file", self.prompt(300), "--max-tokens", "8", "--hash-logits",
                           "--no-offload")["logits_sha256"]
        self.talk("a", words=300)
        for tier in ("host", "disk"):
            self.wait_for_leases()
            self.tool("flush")
            self.tool("demote", "--session", "a", "--tier", tier)
            again = self.engine("--prompt-file", self.prompt(300), "--max-tokens", "8",
                                "--hash-logits")
            self.assertEqual(again["restored_tokens"][tier], restored(again))
            self.assertGreater(restored(again), 0)
            self.assertEqual(again["logits_sha256"], reference)

    def test_garbage_on_the_attach_socket_costs_nothing(self):
        path = str(self.folder / "run/kvloft.sock.attach")
        for payload in (b"", b"\0" * 7, os.urandom(4096)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
                s.connect(path)
                s.send(payload) if payload else None
        self.tool("status")


def second_prompt(case):
    """Tokens of the second turn's prompt."""
    return len(decode("--prompt-file", case.prompt(20, seed=2), "--tokenize")["tokens"])


harness.main()
