"""The application behind uvicorn. The path says how it behaves: /BEHAVIOUR[/NUMBER][/anything]."""

import asyncio
import ctypes
import os


async def application(scope, receive, send):
    """ASGI (version 3)."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    while (await receive()).get("more_body"):
        pass
    words = scope["path"].split("/")[1:]
    number = int(words[1]) if len(words) > 1 and words[1].isdigit() else None
    if words[0] == "segv":
        ctypes.string_at(0)
    elif words[0] == "exit":
        os._exit(1 if number is None else number)
    elif words[0] == "slow":
        await asyncio.sleep((number or 100) / 1000)
    elif words[0] == "hang":
        await asyncio.sleep(3600)
    body = b"hello from asyncio\n"
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
