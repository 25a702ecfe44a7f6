"""As much of a W&B server as a run and ``wandb sync`` ask for, until it falls silent."""

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeWandb:
    """``rows``: of a run's history, as they were sent. ``GET /stop``: from then on nothing is answered any more."""

    def __init__(self, status=200):
        self.status, self.rows, self.silent = status, {}, False
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def reply(self, status, content):
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                fake.silent = fake.silent or self.path == "/stop"
                self.reply(200, {})

            def do_POST(self):
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if fake.silent:
                    fake.over.wait()
                    return
                if self.headers.get("Content-Encoding") == "gzip":
                    raw = gzip.decompress(raw)
                if self.path.endswith("/graphql"):
                    self.reply(*fake.answer(json.loads(raw)))
                    return
                if self.path.endswith("/file_stream"):
                    fake.take(json.loads(raw))
                self.reply(200, {"exitcode": None, "limits": {}})

            do_PUT = do_POST

        self.over = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, question):
        if self.status != 200:
            return self.status, {"data": None, "errors": [{"message": "user is not logged in"}]}
        named = re.search(r"(?:query|mutation)\s+(\w+)", question["query"])
        given = question.get("variables") or {}
        project = {"id": "cA==", "name": given.get("project"), "entity": {"id": "ZQ==", "name": "someone"}}
        bucket = {"id": "aWQ=", "name": given.get("name"), "displayName": given.get("displayName"), "config": "{}",
                  "sweepName": None, "historyLineCount": 0, "project": project}  # fmt: skip
        answers = {
            "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
            "Viewer": {"viewer": {"id": "VQ==", "entity": "someone", "username": "someone", "flags": "{}"}},
            "RunResumeStatus": {"model": None},
            "CreateRunFiles": {"createRunFiles": {"runID": "aWQ=", "uploadHeaders": [], "files": []}},
        }
        return 200, {"data": answers.get(named[1] if named else "", {})}

    def take(self, sent):
        for line in sent.get("files", {}).get("wandb-history.jsonl", {}).get("content", []):
            row = json.loads(line)
            self.rows.setdefault(row.pop("_step"), {}).update(row)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
