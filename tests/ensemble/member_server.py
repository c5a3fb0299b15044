"""Endpoints for tests, as a process of its own: how a model behaves is written in its name.

Prints its port. GET /count tells how many requests came. A question "... = X" has X as its answer.
    good          says "The answer is X."            wrong      says "The answer is Z." or its first option
    voted         two thirds right, by the question  slow       good, after three seconds
    dies          good three times, then the process ends
    probs         a letter with log-probabilities    plain      refuses log-probabilities and n > 1
    moody         random without a seed, else its seed
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

seen: Counter[str] = Counter()
lock = threading.Lock()


def answer(model: str, question: str, body: dict[str, Any]) -> str:
    right = question.rsplit("= ", 1)[-1].split(maxsplit=1)[0] if "= " in question else "A"
    if model == "wrong":
        return "The answer is Z."
    if model == "voted":
        return f"The answer is {right if zlib.crc32(question.encode()) % 3 else 'B'}."
    if model == "moody":
        return f"{random.Random(body.get('seed')).random()}"
    return f"The answer is {right}."


class Server(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Quiet."""

    def reply(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.reply(200, {"count": sum(seen.values()), "models": dict(seen)})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model, question = body["model"], body["messages"][-1]["content"]
        with lock:
            seen[model] += 1
            turn = seen[model]
        if model == "dies" and turn > 3:
            os._exit(1)
        if model.startswith("slow"):
            time.sleep(3)
        if model == "pauses":
            time.sleep(0.15)
        if model == "plain" and (body.get("logprobs") or body.get("n", 1) > 1):
            return self.reply(400, {"error": {"message": "not supported"}})
        text = answer(model, question, body)
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if body.get("logprobs"):
            text = choice["message"]["content"] = text.split()[-1].strip(".")
            top = [
                {"token": text, "logprob": -0.2},
                {"token": " B", "logprob": -2.0},
                {"token": "the", "logprob": -3.0},
            ]
            choice["logprobs"] = {"content": [{"token": text, "logprob": -0.2, "top_logprobs": top}]}
        choices = [{"index": place, **choice} for place in range(body.get("n", 1))]
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        made = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": choices,
            "usage": usage,
        }
        return self.reply(200, made)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
