"""answers.py SIGNAL=TEXT[:CODE]...: says TEXT for each such signal that comes, and ends with CODE if there is one.

Says "up-and-42" when it is ready, and got-LINE for each line that it reads. A shell with traps would miss a signal that
comes between its last look at them and read(2), until somebody types; here a pipe tells (signal.set_wakeup_fd).
"""

import os
import select
import signal
import sys

ANSWERS = {}
for word in sys.argv[1:]:
    name, _, answer = word.partition("=")
    text, _, code = answer.partition(":")
    ANSWERS[getattr(signal, f"SIG{name}")] = text, code

wakes, wake = os.pipe()
os.set_blocking(wake, False)
signal.set_wakeup_fd(wake)
for number in ANSWERS:
    signal.signal(number, lambda *_: None)
os.write(1, b"up-and-42\n")
while True:
    for fd in select.select([0, wakes], [], [])[0]:
        data = os.read(fd, 4096)
        if fd == 0:
            os.write(1, b"got-" + data)
        for number in data if fd == wakes else ():
            text, code = ANSWERS[signal.Signals(number)]
            if text == "size":
                text = "{1} {0}".format(*os.get_terminal_size())
            os.write(1, text.encode() + b"\n")
            if code:
                sys.exit(int(code))
