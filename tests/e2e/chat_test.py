#!/usr/bin/env python3
"""The interactive chat on a terminal: what was said while the daemon was gone is saved too."""
import os
import pty
import signal
import subprocess
import threading

import harness
from harness import BIN, TINY, Case


class Chat:
    """kvloft-decode on a pseudo terminal."""

    def __init__(self, address, session):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [str(word) for word in (BIN / "kvloft-decode", "--model", TINY, "--connect", address,
                                    "--session", session, "--max-tokens", "8")],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.shown = b""
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        while True:
            try:
                piece = os.read(self.master, 4096)
            except OSError:  # the other end is closed
                return
            self.shown += piece

    def turns(self):
        return self.shown.count(b"tokens in context")

    def write(self, text):
        os.write(self.master, text)

    def end(self):
        self.write(b"\x04")
        status = self.process.wait(timeout=60)
        self.reader.join(timeout=10)
        os.close(self.master)
        return status


class ChatTest(Case):
    def chat(self):
        chat = Chat(self.address, "s")
        self.processes.append(chat.process)
        return chat

    def say(self, chat, text):
        before = chat.turns()
        chat.write(text.encode() + b"\n")
        self.wait_until(lambda: chat.turns() > before)

    def saved_tokens(self):
        return self.tool("session", "show", "s")["tokens"]

    def test_a_turn_without_a_daemon_is_saved_when_the_chat_ends(self):
        daemon = self.start_daemon()
        chat = self.chat()
        self.say(chat, "the moon")
        first = self.saved_tokens()
        self.stop(daemon, signal.SIGKILL)
        self.say(chat, "a river of glass")
        self.start_daemon()
        self.assertEqual(chat.end(), 0)
        self.assertGreater(self.saved_tokens(), first + 8)

    def test_a_turn_after_a_restart_in_a_pause_is_saved_at_its_end(self):
        daemon = self.start_daemon()
        chat = self.chat()
        self.say(chat, "the moon")
        first = self.saved_tokens()
        self.stop(daemon, signal.SIGKILL)
        self.start_daemon()
        self.say(chat, "a river of glass")
        self.assertGreater(self.saved_tokens(), first + 8)
        self.assertEqual(chat.end(), 0)

    def test_notices_do_not_land_in_the_answer(self):
        daemon = self.start_daemon()
        chat = self.chat()
        self.say(chat, "the moon")
        self.stop(daemon, signal.SIGKILL)
        self.say(chat, "a river of glass")
        chat.end()
        lines = chat.shown.replace(b"\r", b"").split(b"\n")
        notices = [line for line in lines if b"lost the kvloft daemon" in line]
        self.assertEqual(len(notices), 1, chat.shown)
        self.assertTrue(notices[0].startswith(b"kvloft-decode: "), notices)


harness.main()
