#!/usr/bin/env python3
"""Bad input gets one clear line and loses nothing."""
import json
import os
import shutil
import subprocess
import unittest

import harness
from harness import BIN, TINY, Case, decode, restored, run


class BadInput(Case):
    def refused(self, status, *command, mentions=()):
        done = run(*command, check=False)
        self.assertEqual(done.returncode, status, done.stderr)
        lines = done.stderr.strip().splitlines()
        self.assertEqual(len(lines), 1, done.stderr)
        for text in mentions:
            self.assertIn(str(text), lines[0])

    def decode_refused(self, status, *words, model=TINY, mentions=()):
        self.refused(status, BIN / "kvloft-decode", "--model", model, *words, mentions=mentions)

    def test_a_model_that_is_not_there(self):
        self.decode_refused(1, "--prompt", "x", "--max-tokens", "1", "--no-offload",
                            model=self.folder / "no.gguf", mentions=["no.gguf"])

    def test_a_truncated_model(self):
        short = self.folder / "short.gguf"
        whole = TINY.read_bytes()
        for size in (0, 3, 40, len(whole) // 2, len(whole) - 1):
            short.write_bytes(whole[:size])
            self.decode_refused(1, "--prompt", "x", "--max-tokens", "1", "--no-offload",
                                model=short, mentions=["short.gguf"])

    def test_a_prompt_file_that_is_not_there(self):
        self.decode_refused(1, "--prompt-file", self.folder / "none.txt", "--max-tokens", "1",
                            "--no-offload", mentions=["none.txt"])

    def test_no_prompt_without_a_terminal(self):
        done = run(BIN / "kvloft-decode", "--model", TINY, "--no-offload", check=False)
        self.assertEqual(done.returncode, 2)

    def test_unknown_options_and_commands(self):
        self.assertEqual(run(BIN / "kvloft-decode", "--nonsense", check=False).returncode, 2)
        self.assertEqual(run(BIN / "kvloftd", "--nonsense", check=False).returncode, 2)
        self.assertEqual(run(BIN / "kvloft", "nonsense", check=False).returncode, 2)

    def test_addresses_that_are_none_are_wrong_usage(self):
        for address in ("foo", "ipc://", "inproc://x", "tcp://host"):
            self.refused(2, BIN / "kvloftd", "--listen", address, mentions=["--listen", address])
            self.refused(2, BIN / "kvloft", "status", "--connect", address, mentions=[address])
            self.decode_refused(2, "--prompt", "x", "--connect", address, mentions=[address])
        self.refused(2, BIN / "kvloftd", "--listen", "tcp://127.0.0.1:1",
                     mentions=["--secret-file"])

    def test_a_command_refuses_what_another_takes(self):
        for words in (("status", "--policy", "lru"), ("flush", "--all"), ("ls", "--tier", "host"),
                      ("verify", "--disk-path", self.disk)):
            self.refused(2, BIN / "kvloft", *words, "--connect", self.address,
                         mentions=[words[0], words[1]])

    def test_a_tenant_without_a_daemon_is_refused(self):
        for mode in (["--no-offload"], ["--no-cache"], ["--embedded", self.disk]):
            self.decode_refused(2, "--prompt", "x", *mode, "--tenant", "acme",
                                mentions=["--tenant"])

    def test_empty_names_are_refused(self):
        self.daemon_refused("--disk-path", "", mentions=["empty"])
        self.decode_refused(2, "--prompt", "x", "--embedded", "", mentions=["empty"])
        self.decode_refused(2, "--prompt", "x", "--session", "", mentions=["--session"])

    def test_help_and_version_everywhere(self):
        for program in ("kvloft", "kvloftd", "kvloft-decode"):
            for option in ("--help", "--version"):
                self.assertTrue(run(BIN / program, option).stdout)

    def test_a_prompt_longer_than_the_context_names_both_numbers(self):
        self.decode_refused(1, "--prompt-file", self.prompt(200), "--ctx", "64", "--max-tokens",
                            "1", "--no-offload", mentions=["64"])

    def test_a_context_beyond_what_the_model_allows_names_both_numbers(self):
        for asked in ("4097", "2147483647"):
            self.decode_refused(1, "--prompt", "x", "--ctx", asked, "--max-tokens", "1",
                                "--no-offload", mentions=[asked, "context of 4096"])
        self.decode_refused(2, "--prompt", "x", "--ctx", "2147483648", "--max-tokens", "1",
                            "--no-offload", mentions=["--ctx"])

    def test_a_context_full_in_mid_answer_ends_cleanly(self):
        result = decode("--prompt", "the moon", "--ctx", "64", "--max-tokens", "1000",
                        "--no-offload")
        if result["stop_reason"] != "eos":
            self.assertEqual(result["stop_reason"], "context")
            self.assertEqual(result["prompt_tokens"] + len(result["output_tokens"]), 64)

    def test_invalid_utf8_is_taken_as_bytes(self):
        file = self.folder / "bytes.txt"
        file.write_bytes(b"ok \xff\xfe\xc3 \x80 end\x00\x01")
        result = decode("--prompt-file", file, "--max-tokens", "4", "--no-offload")
        self.assertGreater(result["prompt_tokens"], 5)
        self.assertIsInstance(result["text"], str)

    def test_cuda_is_refused_where_it_is_not_built(self):
        done = run(BIN / "kvloft-decode", "--model", TINY, "--prompt", "x", "--max-tokens", "1",
                   "--no-offload", "--device", "cuda", check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("cuda", done.stderr.lower())

    def daemon_refused(self, *words, mentions):
        self.refused(2, BIN / "kvloftd", "--listen", f"ipc://{self.folder}/d/d.sock", *words,
                     mentions=mentions)

    def test_the_daemons_device_is_checked(self):
        for name in ("cuda:", "cuda:x", "cuda:256", "cudax", "gpu"):
            self.daemon_refused("--device", name, mentions=["it is cpu or cuda[:N]"])
        self.daemon_refused("--device", "cuda:0", "--host-bytes", "0", mentions=["--host-bytes"])

    def test_sizes_that_no_daemon_can_have_are_wrong_usage(self):
        for words in (("--device-bytes", "0"), ("--host-bytes", "1"),
                      ("--disk-path", self.disk, "--disk-bytes", "5M")):
            self.daemon_refused(*words, mentions=[words[-2], "too small"])
            if "--disk-path" not in words:
                self.decode_refused(2, "--prompt", "x", "--embedded", self.disk, *words,
                                    mentions=[words[-2], "too small"])
        self.assertFalse(self.disk.exists())

    def test_options_of_a_disk_need_its_path(self):
        config = self.folder / "kvloftd.json"
        for name, value in (("disk-bytes", "64M"), ("disk-io", "posix")):
            self.daemon_refused("--" + name, value, mentions=[name, "disk-path"])
            config.write_text(json.dumps({name: value}))
            self.daemon_refused("--config", config, mentions=[name, "disk-path"])

    def test_a_tier_too_small_for_one_block_names_the_smallest(self):
        self.decode_refused(1, "--prompt", "x", "--max-tokens", "1", "--embedded", self.disk,
                            "--device-bytes", "4K", "--host-bytes", "1M", "--disk-bytes", "64M",
                            mentions=["device-bytes"])


class BadFolders(Case):
    def embedded(self, folder, **options):
        return run(BIN / "kvloft-decode", "--model", TINY, "--prompt-file", self.prompt(150),
                   "--max-tokens", "2", "--json", "--embedded", folder, "--device-bytes", "16M",
                   "--host-bytes", "16M", "--disk-bytes", "32M", check=False, **options)

    def test_a_file_in_the_folders_place(self):
        (self.folder / "file").write_text("x")
        done = self.embedded(self.folder / "file")
        self.assertEqual(done.returncode, 1)
        self.assertIn("file", done.stderr)

    @unittest.skipUnless(os.geteuid() == 0, "mounting needs root")
    def test_a_read_only_file_system(self):
        mount = self.folder / "ro"
        mount.mkdir()
        if run("mount", "-t", "tmpfs", "-o", "ro,size=1M", "none", mount, check=False).returncode:
            self.skipTest("mount is refused here")
        try:
            done = self.embedded(mount / "disk")
        finally:
            run("umount", mount)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)

    @unittest.skipUnless(os.geteuid() == 0, "mounting needs root")
    def test_a_full_file_system_loses_the_cache_but_not_the_answer(self):
        mount = self.folder / "small"
        mount.mkdir()
        if run("mount", "-t", "tmpfs", "-o", "size=1M", "none", mount, check=False).returncode:
            self.skipTest("mount is refused here")
        try:
            done = self.embedded(mount / "disk")
            alone = decode("--prompt-file", self.prompt(150), "--max-tokens", "2", "--no-offload")
        finally:
            run("umount", "-l", mount)
        if done.returncode == 0:
            self.assertEqual(json.loads(done.stdout)["output_tokens"], alone["output_tokens"])
        else:
            self.assertIn("disk", done.stderr)

    def test_an_unprivileged_user_without_rights(self):
        if os.geteuid() != 0:
            self.skipTest("needs root to become somebody else")
        closed = self.folder / "closed"
        closed.mkdir(mode=0o700)
        self.folder.chmod(0o755)
        if run("true", user=65534, check=False, cwd="/").returncode or not self.readable_by_nobody():
            self.skipTest("the programs are not readable for another user")
        done = self.embedded(closed / "disk", user=65534, cwd="/", env={"HOME": "/nonexistent"})
        self.assertEqual(done.returncode, 1)
        self.assertIn("closed", done.stderr)

    def readable_by_nobody(self):
        try:
            return run(BIN / "kvloft-decode", "--version", user=65534, cwd="/",
                       check=False).returncode == 0
        except PermissionError:
            return False


class OtherModels(Case):
    def test_same_shapes_other_weights_do_not_hit_and_a_renamed_file_does(self):
        self.start_daemon()
        prompt = self.prompt(150)
        self.engine("--prompt-file", prompt, "--max-tokens", "1")
        renamed = self.folder / "renamed.gguf"
        shutil.copy(TINY, renamed)
        hit = self.engine("--prompt-file", prompt, "--max-tokens", "1", model=renamed)
        self.assertGreater(restored(hit), 0)
        other = self.folder / "other.gguf"
        weights = bytearray(TINY.read_bytes())
        weights[-8] ^= 1  # the last bytes are weights
        other.write_bytes(weights)
        miss = self.engine("--prompt-file", prompt, "--max-tokens", "1", model=other)
        self.assertEqual(restored(miss), 0)


harness.main()
