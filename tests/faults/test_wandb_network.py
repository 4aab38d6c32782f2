"""A service of Weights & Biases that answers at first, and then no more, takes nothing from a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


def fault(what, outcome):
    return pytest.mark.fault(what, outcome)


class Service(ThreadingHTTPServer):
    """What wandb asks before, during and after a run, as far as it needs answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.url = f"http://127.0.0.1:{self.server_port}"
        #: None; "silent": every connection is taken and no request answered, "mute": no question, "gone".
        self.state: str | None = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.serve_forever)
        self.thread.start()

    def go(self) -> None:
        """Take no more connections."""
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """Who asked may be gone when the silence is over."""

    def answer(self, path: str, body: bytes) -> dict:
        if path != "/graphql":
            return {}
        question = json.loads(body)
        names = question.get("variables") or {}
        if "upsertBucket" in question["query"]:
            project = {"id": "p", "name": "x", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": names["name"], "displayName": "a run", "config": None, "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "createRunFiles" in question["query"]:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in names["files"]]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
        if "viewer" in question["query"]:
            viewer = {"id": "v", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}
            return {"data": {"viewer": viewer, "serverInfo": {"cliVersionInfo": {}}}}
        return {"data": {"model": None}}


class Requests(BaseHTTPRequestHandler):
    server: Service

    def respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        service = self.server
        if service.state == "silent" or (service.state == "mute" and self.path == "/graphql"):
            service.over.wait()
        if self.path in ("/silent", "/mute", "/gone"):
            service.state = self.path[1:]
        content = json.dumps(service.answer(self.path, body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        if self.path == "/gone":
            threading.Thread(target=service.go).start()

    do_GET = do_POST = do_PUT = respond  # noqa: N815

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def service():
    service = Service()
    yield service
    service.over.set()
    service.go()
    service.thread.join()


LEAVES_A_RUN = """
import sys, urllib.request
import wandb
from mixsize.recipes.callbacks.wandb_deadline import Deadline
url = sys.argv[1]
run = wandb.init(project="x", mode="online")
Deadline(run, 2.0)
urllib.request.urlopen(url + "/silent").close()
for step in range(5):
    run.log({"step": step})
"""


def wandb_processes_of(folder: Path) -> list[str]:
    """Those that live, by their number."""

    def is_one(process: Path) -> bool:
        try:
            is_core = (process / "comm").read_text() == "wandb-core\n"
            return is_core and f"WANDB_DIR={folder}".encode() in (process / "environ").read_bytes()
        except OSError:
            return False  # It has ended.

    return [process.name for process in Path("/proc").glob("[0-9]*") if is_one(process)]


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(
            how,
            marks=fault(
                f"Weights & Biases {words} during a run",
                "trains to the same weights, and ends within two minutes of it; all that was logged is on disk, and "
                "the log says where",
            ),
        )
        for how, words in (("silent", "takes requests and answers none"), ("gone", "cannot be reached any more"))
    ],
)
def test_a_service_that_stops_answering_takes_a_bounded_time_and_nothing_else(runs, whole, service, wandb_runs, how):
    finished = runs.start(f"service:{how}@{service.url}", "output.wandb.project=x", "output.save_every=never")
    assert finished.code == 0, finished
    assert runs.weights() == whole.weights()
    assert runs.record()["accuracy"] == whole.record()["accuracy"]
    (file,) = runs.folder.glob("wandb/run-*/*.wandb")
    assert "Weights & Biases has not ended its run within 3 s" in finished.printed
    assert f"what was logged is in {file.parent}; send it with wandb sync {file.parent}" in finished.printed
    assert "Traceback" not in finished.printed
    (logged,) = wandb_runs()
    steps = [row["_step"] for row in logged["history"] if "loss/train/total" in row]
    assert steps == list(range(20))
    assert logged["summary"]["steps"] == 20
    assert wandb_processes_of(runs.folder) == []


@fault("Weights & Biases answers no question at the start", "trains, with an offline run; said in the log")
def test_a_service_that_answers_no_question_gets_an_offline_run(runs, whole, service, wandb_runs):
    finished = runs.start(f"service:mute@{service.url}", "output.wandb.project=x", "output.save_every=never")
    assert finished.code == 0, finished
    assert runs.weights() == whole.weights()
    assert "Weights & Biases answers no question (Run initialization has timed out" in finished.printed
    (unbegun,) = runs.folder.glob("wandb/run-*/*.wandb")
    unbegun.unlink()
    (logged,) = wandb_runs()
    assert len(list(runs.folder.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert logged["summary"]["steps"] == 20
    # The one that asked in vain is gone; that of the offline run ends when it finds its parent gone.
    assert len(wandb_processes_of(runs.folder)) <= 1


def test_an_interpreter_that_exits_within_a_run_is_not_held_up_either(service, tmp_path, wandb_runs):
    environment = os.environ | {"WANDB_BASE_URL": service.url, "WANDB_API_KEY": "0" * 40, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", LEAVES_A_RUN, service.url],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Weights & Biases has not ended its run within 2 s" in done.stderr
    assert "Traceback" not in done.stderr
    (logged,) = wandb_runs()
    assert [row["step"] for row in logged["history"]] == list(range(5))
    assert wandb_processes_of(tmp_path) == []
