"""`start-server`, called as a function URL calls it, over boto3 on moto's EC2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.settings import ROOT
from tests.infra.conftest import ORIGIN, TOKEN
from tests.infra.ec2 import Ec2
from tests.infra.health import Health
from tests.support.aws import Aws

WANTED, COLD_STARTS = "sightline:wanted-at", "sightline:cold-starts"


def event(method: str = "POST", token: str | None = TOKEN, origin: str | None = ORIGIN) -> dict[str, Any]:
    """A function URL's event, payload format 2.0."""
    headers = {"host": "abc.lambda-url.us-east-1.on.aws", "accept": "*/*"}
    if origin is not None:
        headers["origin"] = origin
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/",
        "rawQueryString": "",
        "headers": headers,
        "requestContext": {
            "accountId": "anonymous",
            "domainName": "abc.lambda-url.us-east-1.on.aws",
            "http": {"method": method, "path": "/", "protocol": "HTTP/1.1", "sourceIp": "192.0.2.7", "userAgent": "x"},
            "routeKey": "$default",
            "stage": "$default",
            "timeEpoch": int(time.time() * 1000),
        },
        "isBase64Encoded": False,
    }


def call(method: str = "POST", **given: Any) -> dict[str, Any]:
    from start_server import handler

    answer: dict[str, Any] = handler(event(method, **given), None)
    return answer


def ask(method: str = "POST", **given: Any) -> dict[str, Any]:
    """Calls the function, which must respond with 200; returns the body."""
    answer = call(method, **given)
    assert answer["statusCode"] == 200, answer
    body: dict[str, Any] = json.loads(answer["body"])
    return body


def test_a_stopped_machine_is_started_and_followed_until_the_service_answers(ec2: Ec2, health: Health) -> None:
    assert ask() == {"state": "starting", "eta_s": None, "url": ORIGIN, "message": None}
    assert ec2.state == "running"
    assert ask("GET")["state"] == "starting"  # EC2 says `pending`
    ec2.shows("running")
    assert ask("GET")["state"] == "starting"
    assert health.asked == 1
    health.ready = True
    assert ask("GET") == {"state": "running", "eta_s": 0, "url": ORIGIN, "message": None}
    assert ec2.asked["StartInstances"] == 1


def test_asking_starts_nothing(ec2: Ec2) -> None:
    answer = ask("GET")
    assert answer["state"] == "stopped"
    assert "POST starts it" in answer["message"]
    assert (ec2.state, ec2.asked["StartInstances"]) == ("stopped", 0)


def test_without_a_health_address_running_is_enough(ec2: Ec2) -> None:
    ec2.runs(5)
    assert ask()["state"] == "running"
    assert ec2.asked["StartInstances"] == 0


def test_the_time_to_go_comes_from_the_last_starts(ec2: Ec2, health: Health) -> None:
    ec2.tag(COLD_STARTS, "1763000000=900 1763000001=40 1763000002=50 1763000003=60 1763000004=44 1763000005=52")
    assert ask("GET")["eta_s"] == 50  # the median of the last five
    assert ask()["eta_s"] == 50
    ec2.launched(20)
    assert ask("GET")["eta_s"] in (29, 30)
    ec2.launched(120)
    assert ask("GET")["eta_s"] == 0


def test_a_tag_that_somebody_spoilt_is_read_as_far_as_it_goes(ec2: Ec2) -> None:
    ec2.tag(COLD_STARTS, "nonsense 1763000000=-5 =7 1763000002=48 1763000003=1e9 1763000004=99999")
    assert ask()["eta_s"] == 48


def test_a_machine_being_stopped_is_started_after_that_by_whoever_asks(ec2: Ec2) -> None:
    ec2.shows("stopping")
    first = ask()
    assert first["state"] == "stopping"
    assert "waits its turn" in first["message"]
    assert ask("GET")["state"] == "stopping"
    assert ec2.asked["StartInstances"] == 0
    ec2.shows(None)
    assert ask("GET")["state"] == "starting"
    assert ec2.state == "running"
    assert ask("GET")["state"] == "starting"
    assert ec2.asked["StartInstances"] == 1


def test_a_machine_that_hangs_and_is_switched_off_is_started_for_whoever_waits(ec2: Ec2, health: Health) -> None:
    ec2.runs(2000)
    assert ask()["state"] == "starting"  # it runs, and does not answer
    ec2.shows("stopping")
    assert "waits its turn" in ask("GET")["message"]
    ec2.halts()
    assert ask("GET")["state"] == "starting"
    assert ec2.asked["StartInstances"] == 1


def test_who_only_looks_at_a_machine_being_stopped_is_promised_nothing(ec2: Ec2) -> None:
    ec2.shows("stopping")
    assert ask("GET")["message"] == "It is being switched off."
    ec2.shows(None)
    assert ask("GET")["state"] == "stopped"
    assert ec2.asked["StartInstances"] == 0


def test_a_wish_is_forgotten_after_ten_minutes_and_once_it_came_true(ec2: Ec2) -> None:
    ec2.tag(WANTED, str(int(time.time()) - 601))
    assert ask("GET")["state"] == "stopped"
    ec2.tag(WANTED, str(int(time.time()) - 300))
    ec2.launched(200)  # it was started since, and stopped again
    assert ask("GET")["state"] == "stopped"
    ec2.tag(WANTED, "whenever")
    assert ask("GET")["state"] == "stopped"
    assert ec2.asked["StartInstances"] == 0


def test_a_crowd_leaves_one_note_a_minute(ec2: Ec2) -> None:
    ec2.shows("stopping")
    for _ in range(5):
        ask()
    assert ec2.asked["CreateTags"] == 1


def test_a_machine_that_begins_to_stop_between_the_two_calls_is_waited_for(ec2: Ec2) -> None:
    ec2.refuse("StartInstances", "IncorrectInstanceState", 400, times=1)
    # `stopped` when looked at, refused, `stopped` again: the wish is kept and the next call starts it.
    assert ask()["state"] == "stopped"
    assert WANTED in ec2.tags
    assert ask("GET")["state"] == "starting"
    assert ec2.state == "running"


def test_many_at_once_start_it_once_and_all_hear_the_same(ec2: Ec2) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(), range(16)))
    assert {answer["state"] for answer in answers} == {"starting"}
    assert ec2.state == "running"
    assert 1 <= ec2.asked["StartInstances"] <= 8  # to start what starts changes nothing
    assert ask("GET")["state"] == "starting"


@pytest.mark.parametrize("state", ["shutting-down", "terminated"])
def test_a_machine_that_is_deleted_is_not_waited_for(ec2: Ec2, state: str) -> None:
    ec2.shows(state)
    answer = call()
    assert answer["statusCode"] == 410  # the page gives up on 4xx
    assert "deleted" in json.loads(answer["body"])["message"]
    assert ec2.asked["StartInstances"] == 0


def test_a_machine_that_nobody_knows_is_not_waited_for(ec2: Ec2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTANCE_ID", "i-0123456789abcdef0")
    answer = call()
    assert answer["statusCode"] == 410
    assert "does not exist" in json.loads(answer["body"])["message"]


def test_no_machine_free_is_said_plainly_and_tried_again_by_whoever_asks(ec2: Ec2) -> None:
    ec2.refuse("StartInstances", "InsufficientInstanceCapacity", 500, times=3)  # boto3 tries three times
    answer = call()
    assert (answer["statusCode"], answer["headers"]["Retry-After"]) == (503, "30")
    assert "no such machine free" in json.loads(answer["body"])["message"]
    assert ec2.asked["StartInstances"] == 3
    assert ask("GET")["state"] == "starting"
    assert ec2.state == "running"


def test_throttling_is_retried_and_then_said(ec2: Ec2) -> None:
    ec2.refuse("DescribeInstances", "RequestLimitExceeded", 503, times=2)
    assert ask("GET")["state"] == "stopped"
    assert ec2.asked["DescribeInstances"] == 3
    ec2.refuse("DescribeInstances", "RequestLimitExceeded", 503, times=3)
    answer = call()
    assert (answer["statusCode"], answer["headers"]["Retry-After"]) == (503, "5")
    assert "busy" in json.loads(answer["body"])["message"]
    assert answer["headers"]["Access-Control-Allow-Origin"] == ORIGIN
    assert ec2.state == "stopped"


def test_amazon_out_of_reach_is_said_as_well(ec2: Ec2) -> None:
    ec2.hang_up("DescribeInstances", times=3)
    answer = call()
    assert (answer["statusCode"], answer["headers"]["Retry-After"]) == (503, "5")
    assert ec2.asked["DescribeInstances"] == 3
    assert ask()["state"] == "starting"


def test_a_throttled_start_is_made_by_the_next_call(ec2: Ec2) -> None:
    ec2.refuse("StartInstances", "RequestLimitExceeded", 503, times=3)
    ec2.refuse("CreateTags", "RequestLimitExceeded", 503, times=3)
    assert call()["statusCode"] == 503
    assert ask("GET")["state"] == "stopped"  # not even the note could be left
    ec2.refuse("StartInstances", "RequestLimitExceeded", 503, times=3)
    assert call()["statusCode"] == 503
    assert ask("GET")["state"] == "starting"


def test_what_only_the_owner_can_mend_ends_in_an_error_that_an_alarm_sees(ec2: Ec2) -> None:
    from botocore.exceptions import ClientError

    ec2.refuse("StartInstances", "UnauthorizedOperation", 403, times=1)
    with pytest.raises(ClientError, match="UnauthorizedOperation"):
        call()


def test_a_start_that_takes_too_long_says_so(ec2: Ec2, health: Health) -> None:
    ec2.runs(1000)
    answer = ask("GET")
    assert (answer["state"], answer["eta_s"]) == ("starting", None)
    assert "longer than it should" in answer["message"]


def test_addresses_may_follow_the_machine(ec2: Ec2, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_URL", "http://{ip}:8000")
    ec2.runs(5)
    (reservation,) = aws.client("ec2").describe_instances(InstanceIds=[ec2.instance_id])["Reservations"]
    address = reservation["Instances"][0]["PublicIpAddress"]
    assert ask()["url"] == f"http://{address}:8000"


def test_the_token_is_asked_for(ec2: Ec2) -> None:
    for token in (None, "a-token-for-the-star", "", "ä"):
        answer = call(token=token)
        assert answer["statusCode"] == 401
        assert answer["headers"]["Www-Authenticate"] == "Bearer"
        assert "token" in json.loads(answer["body"])["message"]
    assert sum(ec2.asked.values()) == 0
    assert call(origin=None)["statusCode"] == 200  # no browser, but the token


def test_any_of_several_tokens_opens(ec2: Ec2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("START_TOKENS", "old-one, new-one")
    assert [call("GET", token=token)["statusCode"] for token in ("old-one", "new-one", TOKEN)] == [200, 200, 401]


def test_b5_the_tokens_come_from_a_file(ec2: Ec2, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from variables import WrongVariable

    (tmp_path / "tokens").write_text("old-one\nnew-one\n")
    monkeypatch.setenv("START_TOKENS_FILE", str(tmp_path / "tokens"))
    with pytest.raises(WrongVariable, match=r"START_TOKENS and START_TOKENS_FILE=.* are both set"):
        call("GET")
    monkeypatch.setenv("START_TOKENS", "")
    assert [call("GET", token=token)["statusCode"] for token in ("old-one", "new-one", TOKEN)] == [200, 200, 401]
    for content, why in ((b"\n", "empty"), (b"\xff", "no UTF-8 text"), (b"x" * 70_000, "too large")):
        (tmp_path / "tokens").write_bytes(content)
        with pytest.raises(WrongVariable, match=f"START_TOKENS_FILE='{tmp_path}/tokens': {why}"):
            call("GET")
    (tmp_path / "tokens").unlink()
    with pytest.raises(WrongVariable, match="No such file"):
        call("GET")


def test_everybody_may_only_where_that_was_said(ec2: Ec2, monkeypatch: pytest.MonkeyPatch) -> None:
    from variables import WrongVariable

    monkeypatch.setenv("START_TOKENS", "")
    with pytest.raises(WrongVariable, match="START_TOKENS=''"):
        call(token=None)
    monkeypatch.setenv("ALLOW_ANONYMOUS", "true")
    assert ask("GET", token=None)["state"] == "stopped"


def test_the_browser_is_let_in_from_the_configured_origin_alone(ec2: Ec2) -> None:
    allowed = call("OPTIONS", token=None)
    assert (allowed["statusCode"], allowed["body"]) == (204, "")
    assert allowed["headers"]["Access-Control-Allow-Origin"] == ORIGIN
    assert allowed["headers"]["Access-Control-Allow-Methods"] == "GET, POST"
    assert "authorization" in allowed["headers"]["Access-Control-Allow-Headers"]
    for method in ("OPTIONS", "POST", "GET"):
        refused = call(method, origin="https://evil.example")
        assert refused["statusCode"] == 403
        assert "Access-Control-Allow-Origin" not in refused["headers"]
        assert refused["headers"]["Vary"] == "Origin"
    assert sum(ec2.asked.values()) == 0


def test_other_methods_are_told_which_there_are(ec2: Ec2) -> None:
    answer = call("DELETE")
    assert (answer["statusCode"], answer["headers"]["Allow"]) == (405, "GET, POST")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("INSTANCE_ID", "", "INSTANCE_ID='': should be an EC2 instance, for example i-0123456789abcdef0"),
        ("INSTANCE_ID", "web-1", "INSTANCE_ID='web-1'"),
        ("SERVICE_URL", "sight.example", "SERVICE_URL='sight.example': should be a web address"),
        ("HEALTH_URL", "ftp://x", "HEALTH_URL='ftp://x'"),
    ],
)
def test_a_wrong_variable_is_named(ec2: Ec2, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    from variables import WrongVariable

    monkeypatch.setenv(name, value)
    with pytest.raises(WrongVariable) as error:
        call()
    assert str(error.value).startswith(said)


def test_the_functions_stand_alone(ec2: Ec2, tmp_path: Any) -> None:
    """As Lambda has them: a process that knows their folder and nothing of this repository."""
    script = (
        "import json, sys, start_server, stop_idle, watch_start\n"
        "print(json.dumps(start_server.handler(json.load(sys.stdin), None)))\n"
        "assert 'app' not in sys.modules\n"
    )
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("AWS_") or name in ("INSTANCE_ID", "ALLOWED_ORIGINS", "START_TOKENS", "SERVICE_URL", "PATH")
    }
    environment["PYTHONPATH"] = str(ROOT / "infra" / "lambda")
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        input=json.dumps(event()),
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(json.loads(done.stdout)["body"])["state"] == "starting"
    assert ec2.state == "running"
