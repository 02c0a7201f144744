#!/usr/bin/env python3
"""socket.send: hand a secret to another process, and receive one, without a copy in Python.

The kernel copies from secret memory into its own buffers, and from them to the receiver. `secret.write_to(socket)`
sends all of it, `Secret.read(socket)` receives up to the end; `recv_into` fills what has a length of its own.
"""

import socket

from secretfs import Secret

LENGTH = 32
ours, theirs = socket.socketpair()

with Secret.random(LENGTH) as token:
    with token.reveal() as view:
        sent = ours.send(view)
        while sent < LENGTH:  # send() may take less
            sent += ours.send(view[sent:])
    with Secret(LENGTH) as received:
        with received.reveal(write=True) as view:
            got = theirs.recv_into(view, LENGTH, socket.MSG_WAITALL)
        assert got == LENGTH
        assert received == token

    token.write_to(ours)
    ours.shutdown(socket.SHUT_WR)
    with Secret.read(theirs) as received:
        assert received == token
ours.close()
theirs.close()
print(f"ok: {LENGTH} bytes sent and received, twice")
