"""The application behind gunicorn and uWSGI. The path says how it behaves: /BEHAVIOUR[/NUMBER][/anything]."""

import ctypes
import os
import time


def number(words, otherwise):
    """The number in the path, if there is one."""
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else otherwise


def eat_memory():
    """Takes memory, and touches it, until somebody stops this."""
    held = []
    while True:
        held.append(b"x" * (1 << 20))


def application(environ, start_response):
    """WSGI (PEP 3333)."""
    words = environ["PATH_INFO"].split("/")[1:]
    behaviour = words[0]
    if behaviour == "segv":
        ctypes.string_at(0)
    elif behaviour == "abort":
        os.abort()
    elif behaviour == "exit":
        os._exit(number(words, 1))
    elif behaviour == "hang":
        time.sleep(3600)
    elif behaviour == "slow":
        time.sleep(number(words, 100) / 1000)
    elif behaviour == "eat-memory":
        eat_memory()
    elif behaviour == "status":
        body = b"the application's own words\n"
        start_response("%d Not So Good" % number(words, 502), [("Content-Length", str(len(body)))])
        return [body]
    elif behaviour == "big-header":
        start_response("200 OK", [("Set-Cookie", "session=" + "x" * 65536), ("Content-Length", "0")])
        return [b""]
    elif behaviour == "truncate":
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "1000")])
        return [b"only the beginning"]
    body = b"hello from python\n"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
