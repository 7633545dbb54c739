"""Checkpoints, rollback and forks: to the bit where the session stood, or it is left where it stands."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from api_local import gradients
from api_subject import GRADS, SAFETENSORS, WEIGHTS, Subject, assert_equal, assert_refused, receipt_of

from crashing_server import CrashingServer
from raw_safetensors import tensor_file
from reaching import http_client
from server_process import PosingServer, ServerProcess

pytestmark = pytest.mark.usefixtures("on_host")

Stands = tuple[dict[str, torch.Tensor], bytes]


def step(subject: Subject, seed: int, **said: Any) -> None:
    (grads,) = gradients(1, seed=seed, dtype=torch.float32)
    receipt_of(subject.push(grads, **said))


def stands(subject: Subject) -> Stands:
    """Weights and state, without the ETag."""
    state = subject.http.get(f"{subject.path}/state").content
    return subject.pull(), state[8 + int.from_bytes(state[:8], "little") :]


def assert_stands(subject: Subject, wanted: Stands) -> None:
    params, state = stands(subject)
    assert_equal(params, wanted[0])
    assert state == wanted[1]


def trained(subject: Subject, steps: int, first: int = 0) -> list[Stands]:
    """Where it stood behind each step, from its first moment on."""
    stood = [stands(subject)]
    for seed in range(first, first + steps):
        step(subject, seed)
        stood.append(stands(subject))
    return stood


def post(subject: Subject, where: str, said: Any = None, **headers: str) -> httpx.Response:
    body = {} if said is None else {"json": said}
    return subject.http.post(f"{subject.path}/{where}", headers=headers, **body)


def fork(subject: Subject, **said: Any) -> Subject:
    reply = post(subject, "fork", said)
    assert reply.status_code == 201, reply.text
    return Subject(subject.http, reply.headers["Location"])


def kept(subject: Subject) -> dict[str, Any]:
    found: dict[str, Any] = subject.http.get(f"{subject.path}/checkpoints").json()
    return found


def create(http: httpx.Client, **said: Any) -> Subject:
    """A session of Adam with fields that only matter here."""
    params = {name: tensor.tolist() for name, tensor in WEIGHTS.items()}
    reply = http.post("/v1/sessions", json={"optimizer": {"name": "adam", "lr": 0.1}, "params": params, **said})
    assert reply.status_code == 201, reply.text
    return Subject(http, reply.headers["Location"])


@pytest.fixture
def session(http: httpx.Client) -> Subject:
    return create(http)


@pytest.mark.parametrize("back", [0, 1, 3, 5])
def test_a_session_returns_to_the_bit_to_any_step(session: Subject, back: int) -> None:
    stood = trained(session, 5)
    reply = post(session, "rollback", {"step": back})
    assert reply.status_code == 200
    assert reply.json() == {"step": back, "etag": f"{back}.1", "left": "5.0"}
    assert reply.headers["ETag"] == f'"{back}.1"'
    assert_stands(session, stood[back])
    assert [row["step"] for row in session.steps()] == list(range(1, back + 1))


def test_training_goes_on_from_there_as_it_would_have_then(session: Subject, http: httpx.Client) -> None:
    trained(session, 4)
    post(session, "rollback", {"step": 2})
    other = create(http)
    trained(other, 2)
    for seed in (20, 21):
        step(session, seed)
        step(other, seed)
    assert_stands(session, stands(other))
    assert session.etag() == '"4.1"'


def test_schedule_and_hyperparameters_go_back_too(http: httpx.Client) -> None:
    session = create(http, schedule={"name": "exponential", "gamma": 0.5})
    step(session, 0)
    session.http.patch(session.path, json={"optimizer": {"lr": 9.0}, "schedule": None, "name": "late"})
    session.http.put(f"{session.path}/optimizer", json={"name": "sgd"})
    step(session, 1)
    before = session.info()
    post(session, "rollback", {"etag": "1.0"})
    now = session.info()
    assert (before["optimizer"]["name"], now["optimizer"]["name"]) == ("sgd", "adam")
    assert session.http.get(f"{session.path}/steps/1").json()["lr"] == 0.1
    post(session, "rollback", {"step": 0})
    assert session.info()["optimizer"]["lr"] == 0.1
    step(session, 5)
    assert receipt_of(session.push(GRADS))["lr"] == 0.05


def test_an_etag_names_one_of_several_states_of_a_step(session: Subject) -> None:
    trained(session, 2)
    session.http.put(f"{session.path}/params", content=tensor_file(GRADS), headers=SAFETENSORS)
    put = stands(session)
    post(session, "rollback", {"etag": "2.0"})
    assert session.pull()["bias"].tolist() != GRADS["bias"].tolist()
    post(session, "rollback", {"etag": "2.1"})
    assert_stands(session, put)
    assert session.etag() == '"2.3"'


def test_a_checkpoint_of_a_label_can_be_returned_to_from_wherever_the_session_went(session: Subject) -> None:
    stood = trained(session, 3)
    reply = post(session, "checkpoints", {"label": "best"})
    assert (reply.status_code, reply.headers["ETag"]) == (201, '"3.0"')
    assert (reply.json()["step"], reply.json()["labels"]) == (3, ["best"])
    step(session, 10)
    post(session, "rollback", {"step": 1})
    step(session, 11)
    assert post(session, "rollback", {"label": "best"}).json()["etag"] == "3.2"
    assert_stands(session, stood[3])
    assert [row["committed_at"] for row in session.steps()] == sorted(row["committed_at"] for row in session.steps())
    assert [row["step"] for row in session.steps()] == [1, 2, 3]


def test_a_label_names_the_newest_that_was_given_it(session: Subject) -> None:
    step(session, 0)
    post(session, "checkpoints", {"label": "best"})
    step(session, 1)
    second = stands(session)
    post(session, "checkpoints", {"label": "best"})
    assert [found["step"] for found in kept(session)["checkpoints"] if "best" in found["labels"]] == [2]
    step(session, 2)
    post(session, "rollback", {"label": "best"})
    assert_stands(session, second)


def test_the_list_says_what_can_be_returned_to(http: httpx.Client) -> None:
    session = create(http, checkpoint={"keep": 1})
    trained(session, 3)
    assert kept(session)["retained"] == [[0, 3]]
    post(session, "checkpoints", {"label": "early"})
    for seed in (5, 6):
        step(session, seed)
    assert post(session, "checkpoints").json()["labels"] == []
    step(session, 7)
    session.steps()  # until history has them, records stay
    post(session, "checkpoints")
    found = kept(session)
    assert [3, 3] in found["retained"] or found["retained"][0][0] <= 3
    last = found["retained"][-1]
    assert last[1] == 6
    for stretch in found["retained"]:
        for back in stretch:
            assert fork(session, step=back).info()["step"] == back


def test_a_label_can_be_removed_even_where_the_session_stands_on_it(session: Subject) -> None:
    stood = trained(session, 2)
    post(session, "checkpoints", {"label": "best"})
    assert session.http.delete(f"{session.path}/checkpoints/best").status_code == 204
    assert {label for found in kept(session)["checkpoints"] for label in found["labels"]} == set()
    assert_refused(session.http.delete(f"{session.path}/checkpoints/best"), 404, "step-not-retained")
    assert_refused(post(session, "rollback", {"label": "best"}), 404, "step-not-retained")
    assert_stands(session, stood[2])
    assert [event["kind"] for event in session.events()] == ["created", "checkpoint", "checkpoint_removed"]


def test_what_was_left_behind_is_still_on_record(session: Subject) -> None:
    trained(session, 4)
    first = session.steps()
    post(session, "rollback", {"step": 2})
    step(session, 10)
    assert [row["step"] for row in session.steps()] == [1, 2, 3]
    assert session.steps(superseded=True) == first[2:]
    post(session, "rollback", {"step": 0})
    assert [row["step"] for row in session.steps(superseded=True)] == [3, 4, 1, 2, 3]
    page = session.http.get(f"{session.path}/steps?superseded=true&limit=2").json()
    assert [row["step"] for row in page["steps"]] == [3, 4]
    rest = session.http.get(f"{session.path}/steps?superseded=true&after={page['next']}").json()
    assert [row["step"] for row in rest["steps"]] == [1, 2, 3]
    assert rest["next"] is None
    rolled = [event for event in session.events() if event["kind"] == "rolled_back"]
    assert [event["detail"] for event in rolled] == [{"from": "4.0", "to": "2.1"}, {"from": "3.1", "to": "0.2"}]


def test_a_key_behind_the_moment_is_forgotten_and_one_before_it_is_not(session: Subject) -> None:
    for number in range(1, 4):
        session.push(GRADS, key=f"k{number}")
    post(session, "rollback", {"step": 2})
    assert receipt_of(session.push(GRADS, key="k2"))["duplicate"]
    assert_refused(session.push(GRADS, key="k3", if_match='"2.0"'), 412, "stale-step", etag="2.1")
    again = receipt_of(session.push(GRADS, key="k3"))
    assert (again["step"], again["duplicate"]) == (3, False)


def test_pushes_that_wait_for_others_belong_to_the_step_that_they_are_to_make(http: httpx.Client) -> None:
    session = create(http, accumulate={"steps": 2})
    for key in "abc":
        session.push(GRADS, key=key)
    waiting = stands(session)
    post(session, "rollback", {"step": 1})
    assert receipt_of(session.push(GRADS, key="d"))["outcome"] == "buffered"
    assert_stands(session, waiting)


def test_those_who_wait_for_a_newer_version_are_told(session: Subject) -> None:
    trained(session, 1)
    told: list[str] = []

    def wait() -> None:
        headers = {"If-None-Match": '"1.0"', "Prefer": "wait=30"}
        told.append(session.http.get(f"{session.path}/params", headers=headers).headers["etag"])

    waiting = threading.Thread(target=wait)
    waiting.start()
    post(session, "rollback", {"step": 0})
    waiting.join(20)
    assert told == ['"0.1"']


def test_rollback_keeps_to_if_match(session: Subject) -> None:
    stood = trained(session, 2)
    assert_refused(post(session, "rollback", {"step": 1}, **{"If-Match": '"1.0"'}), 412, "stale-step", etag="2.0")
    assert_stands(session, stood[2])
    assert post(session, "rollback", {"step": 1}, **{"If-Match": '"2"'}).status_code == 200


@pytest.mark.parametrize(
    ("said", "status", "slug"),
    [
        ({}, 422, "invalid-field"),
        (None, 422, "invalid-field"),
        ({"step": 1, "label": "best"}, 422, "invalid-field"),
        ({"step": -1}, 422, "invalid-field"),
        ({"step": "1"}, 422, "invalid-field"),
        ({"etag": "1"}, 422, "invalid-field"),
        ({"label": "../../best"}, 422, "invalid-field"),
        ({"steps": 1}, 422, "invalid-field"),
        ({"step": 7}, 404, "step-not-retained"),
        ({"etag": "1.4"}, 404, "step-not-retained"),
        ({"label": "none"}, 404, "step-not-retained"),
    ],
)
def test_a_moment_that_is_none_is_refused_and_changes_nothing(
    subject: Subject, unchanged: None, said: Any, status: int, slug: str
) -> None:
    assert_refused(post(subject, "rollback", said), status, slug)
    if said:
        assert_refused(post(subject, "fork", said), status, slug)


def test_a_session_of_which_nothing_is_kept_says_so(http: httpx.Client) -> None:
    session = create(http, durability="memory")
    trained(session, 2)
    for reply in (
        post(session, "checkpoints"),
        session.http.get(f"{session.path}/checkpoints"),
        post(session, "rollback", {"step": 1}),
        post(session, "fork", {"step": 1}),
    ):
        assert_refused(reply, 422, "invalid-field", field="durability")


def test_a_session_kept_by_checkpoints_returns_to_each(http: httpx.Client) -> None:
    session = create(http, durability="checkpoint", checkpoint={"keep": 3})
    stood = trained(session, 2)
    post(session, "checkpoints")
    step(session, 5)
    assert kept(session)["retained"] == [[0, 0], [2, 2]]
    assert_refused(post(session, "rollback", {"step": 1}), 404, "step-not-retained")
    assert post(session, "rollback", {"step": 2}).json()["etag"] == "2.1"
    assert_stands(session, stood[2])
    step(session, 6)
    assert session.steps()[-1]["durable_step"] == 2
    assert post(session, "rollback", {"etag": "3.0"}).json()["step"] == 3, "what was left is kept to return to"


def test_a_fork_begins_where_the_session_stands(session: Subject) -> None:
    trained(session, 3)
    branch = fork(session, name="other")
    assert_stands(branch, stands(session))
    info = branch.info()
    assert (info["etag"], info["name"], info["origin"]) == (
        "3.0",
        "other",
        {"session": session.path.rpartition("/")[2], "etag": "3.0"},
    )
    for one in (session, branch):
        step(one, 9)
    assert_stands(branch, stands(session))
    assert [row["step"] for row in branch.steps()] == [4]
    assert [event["kind"] for event in session.events()] == ["created", "forked"]
    assert branch.events()[0]["detail"] == {"origin": info["origin"]}


@pytest.mark.parametrize("moment", [{"step": 1}, {"etag": "1.0"}, {"label": "early"}])
def test_a_fork_begins_where_the_session_stood(session: Subject, moment: dict[str, Any]) -> None:
    stood = trained(session, 1)
    post(session, "checkpoints", {"label": "early"})
    trained(session, 2, 5)
    before = session.stands()
    branch = fork(session, **moment)
    assert_stands(branch, stood[1])
    assert branch.info()["origin"]["etag"] == "1.0"
    after = session.stands()
    assert after.pop("events")[:-1] == before.pop("events")
    assert after == before
    receipt_of(branch.push(GRADS, key="own"))


def test_a_fork_remembers_no_keys(session: Subject) -> None:
    session.push(GRADS, key="k")
    assert not receipt_of(fork(session).push(GRADS, key="k"))["duplicate"]


@pytest.mark.parametrize("past", [True, False])
def test_a_fork_with_other_settings_is_what_the_changes_would_have_made(session: Subject, past: bool) -> None:
    trained(session, 2)
    other = fork(session)
    if past:
        step(session, 7)
    settings = {"name": "sgd", "lr": 0.5, "momentum": 0.9, "carry": {"momentum_buffer": "exp_avg"}}
    clip = {"max_norm": 0.1}
    schedule = {"name": "exponential", "gamma": 0.5}
    moment = {"step": 2} if past else {}
    branch = fork(session, **moment, optimizer=settings, clip=clip, schedule=schedule, nonfinite="skip")
    other.http.put(f"{other.path}/optimizer", json=settings)
    other.http.patch(other.path, json={"clip": clip, "schedule": schedule, "nonfinite": "skip"})
    for seed in (20, 21):
        step(branch, seed)
        step(other, seed)
    assert_stands(branch, stands(other))
    same = ("optimizer", "clip", "schedule", "nonfinite", "hyperparameters")
    assert {name: branch.info()[name] for name in same} == {name: other.info()[name] for name in same}


def test_hyperparameters_alone_keep_the_others(session: Subject) -> None:
    trained(session, 1)
    branch = fork(session, optimizer={"lr": 0.7}, groups=[{"name": "default", "eps": 0.5}])
    assert branch.info()["optimizer"]["lr"] == 0.7
    assert branch.info()["hyperparameters"]["default"]["eps"] == 0.5
    assert_stands(branch, stands(session))


@pytest.mark.parametrize("durability", ["step", "checkpoint", "memory"])
@pytest.mark.parametrize("source", ["step", "checkpoint", "memory"])
def test_a_fork_is_kept_as_it_asks(http: httpx.Client, source: str, durability: str) -> None:
    session = create(http, durability=source)
    trained(session, 2)
    branch = fork(session, durability=durability, checkpoint={"keep": 5})
    info = branch.info()
    assert (info["durability"], info["checkpoint"]["keep"]) == (durability, 5)
    assert_stands(branch, stands(session))
    step(branch, 3)


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"optimizer": {"lr": -1.0}}, "lr"),
        ({"optimizer": {"name": "none"}}, "optimizer"),
        ({"groups": [{"name": "none", "lr": 1.0}]}, "groups"),
        ({"storage": {"device": "tpu"}}, "storage.device"),
        ({"durability": "always"}, "durability"),
        ({"tensors": []}, "tensors"),
    ],
)
def test_a_fork_that_is_refused_leaves_no_session(
    subject: Subject, unchanged: None, said: dict[str, Any], field: str
) -> None:
    def count() -> int:
        return len(subject.http.get("/v1/sessions?limit=1000").json()["sessions"])

    before = count()
    reply = post(subject, "fork", said)
    assert reply.status_code in {404, 422}, reply.text
    assert field in reply.text
    assert count() == before


@pytest.mark.parametrize("moment", [{}, {"step": 1}])
@pytest.mark.parametrize("there", ["cuda", "cpu"])
def test_a_fork_may_live_on_another_device(tmp_path: Path, there: str, moment: dict[str, Any]) -> None:
    with PosingServer(tmp_path / "data") as server, http_client(server.url) as http:
        session = create(http, storage={"device": "cpu" if there == "cuda" else "cuda"})
        stood = trained(session, 2)
        branch = fork(session, storage={"device": there}, **moment)
        assert branch.info()["storage"]["device"] == there
        assert_stands(branch, stood[moment.get("step", 2)])
        step(branch, 5)
        assert http.get("/readyz").json()["sessions"] == 2


def test_a_session_kept_by_checkpoints_keeps_a_change_that_no_step_followed(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server, http_client(server.url) as http:
        session = create(http, durability="checkpoint")
        http.patch(session.path, json={"optimizer": {"lr": 0.7}})
    with ServerProcess(tmp_path / "data") as server, http_client(server.url) as http:
        assert Subject(http, session.path).info()["optimizer"]["lr"] == 0.7


def test_a_fork_outlives_its_source(session: Subject) -> None:
    stood = trained(session, 2)
    branch = fork(session, step=1)
    session.http.delete(session.path)
    assert_stands(branch, stood[1])
    assert post(branch, "rollback", {"step": 1}).status_code == 200


def folder_of(data: Path, subject: Subject) -> Path:
    return data / "sessions" / subject.path.rpartition("/")[2]


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("travel") / "data"


@pytest.fixture(scope="module")
def server(data: Path) -> Any:
    with CrashingServer(data) as server:
        yield server


def test_a_rollback_over_a_damaged_record_leaves_the_session_where_it_stood(server: CrashingServer, data: Path) -> None:
    session = create(server.http)
    stood = trained(session, 1)
    (journal,) = folder_of(data, session).glob("journal-*")
    at = journal.read_bytes().rindex(b'"receipt"')
    trained(session, 3, 10)
    standing = stands(session)
    flip(journal, at)
    assert_refused(post(session, "rollback", {"step": 2}), 503, "journal-corrupt")
    assert len(stood) == 2
    # What is in memory is sound, and it steps.
    assert_stands(session, standing)
    step(session, 20)
    assert session.info()["step"] == 5


def test_a_rollback_past_a_damaged_checkpoint_takes_the_one_before(server: CrashingServer, data: Path) -> None:
    session = create(server.http)
    stood = trained(session, 3)
    post(session, "checkpoints")
    step(session, 10)
    newest = max(folder_of(data, session).glob("checkpoint-*"))
    flip(newest, newest.stat().st_size // 2)
    assert post(session, "rollback", {"step": 3}).status_code == 200
    assert_stands(session, stood[3])


@pytest.mark.parametrize(
    ("durability", "failing"),
    # The third checkpoint: one is made at the start, one of where the session stands, one of where it has returned to.
    [("step", "journal.before_write=enospc"), ("checkpoint", "checkpoint.before_rename=enospc@3")],
)
def test_a_full_disk_leaves_the_session_where_it_stood(tmp_path: Path, durability: str, failing: str) -> None:
    with CrashingServer(tmp_path / "data") as server:
        session = create(server.http, durability=durability)
        stood = trained(session, 2)
        post(session, "checkpoints", {"label": "two"})
        step(session, 5)
        if durability == "checkpoint":
            post(session, "checkpoints")
        server.start_again(failing)
        session = Subject(server.http, session.path)
        if durability == "checkpoint":
            step(session, 6)
        before = stands(session)
        reply = post(session, "rollback", {"label": "two"})
        assert (reply.status_code, reply.json()["type"]) == (507, "/problems/disk-full")
        assert_stands(session, before)
        server.start_again()
        session = Subject(server.http, session.path)
        assert_stands(session, before)
        assert post(session, "rollback", {"label": "two"}).status_code == 200
        assert_stands(session, stood[2])


def test_what_a_crash_kept_from_history_behind_a_rollback_is_filled_in(server: CrashingServer) -> None:
    session = create(server.http)
    trained(session, 4)
    left = session.steps()
    post(session, "rollback", {"step": 2})
    step(session, 10)
    step(session, 11)
    server.start_again()  # perhaps before any of it was written
    session = Subject(server.http, session.path)
    now = session.steps()
    assert now[:2] == left[:2]
    assert [row["step"] for row in now] == [1, 2, 3, 4]
    assert [row["grad_norm"] for row in now[2:]] != [row["grad_norm"] for row in left[2:]]
    assert session.steps(superseded=True) == left[2:]


def test_bodies_that_are_no_json_are_refused(subject: Subject, unchanged: None) -> None:
    for where in ("checkpoints", "rollback", "fork"):
        reply = subject.http.post(
            f"{subject.path}/{where}", content=b"[1", headers={"Content-Type": "application/json"}
        )
        assert_refused(reply, 400, "malformed-json")
        reply = subject.http.post(f"{subject.path}/{where}", content=json.dumps({"label": "a"}).encode())
        assert_refused(reply, 415, "unsupported-media-type")
