"""`infra/template.yaml`: clean by cfn-lint's rules, and in step with the functions that it deploys."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import ROOT

TEMPLATE = ROOT / "infra" / "template.yaml"
FUNCTIONS = {"StartServer", "WatchStart", "StopIdle"}


class _Loader(yaml.SafeLoader):
    """Reads `!Ref X` as `{"Ref": X}`, and so on."""


def _tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        return {suffix: loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {suffix: loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.MappingNode)
    return {suffix: loader.construct_mapping(node, deep=True)}


_Loader.add_multi_constructor("!", _tagged)


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    read: dict[str, Any] = yaml.load(TEMPLATE.read_text(), _Loader)
    return read


def of_type(template: dict[str, Any], kind: str) -> dict[str, Any]:
    """Properties of all resources of a type, by name."""
    return {
        name: resource["Properties"] for name, resource in template["Resources"].items() if resource["Type"] == kind
    }


def statements(template: dict[str, Any], role: str) -> list[dict[str, Any]]:
    (policy,) = template["Resources"][role]["Properties"]["Policies"]
    found: list[dict[str, Any]] = policy["PolicyDocument"]["Statement"]
    return found


def actions(statement: dict[str, Any]) -> set[str]:
    named = statement["Action"]
    return {named} if isinstance(named, str) else set(named)


def test_cfn_lint_has_nothing_to_say_not_even_a_hint() -> None:
    unreachable = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:1")
    command = [str(Path(sys.executable).with_name("cfn-lint")), "--include-checks", "I", "W", "--", str(TEMPLATE)]
    done = subprocess.run(command, env=os.environ | unreachable, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_no_anchors_since_cloudformation_does_not_read_them_everywhere() -> None:
    events = list(yaml.parse(TEMPLATE.read_text()))
    assert not any(isinstance(event, yaml.AliasEvent) for event in events)


def test_every_handler_exists(template: dict[str, Any]) -> None:
    functions = of_type(template, "AWS::Serverless::Function")
    assert set(functions) == FUNCTIONS
    for properties in functions.values():
        module, _, name = properties["Handler"].partition(".")
        assert callable(getattr(importlib.import_module(module), name))
    assert (TEMPLATE.parent / template["Globals"]["Function"]["CodeUri"]).is_dir()


def test_the_functions_are_told_exactly_the_variables_that_they_read(template: dict[str, Any]) -> None:
    told = set(template["Globals"]["Function"]["Environment"]["Variables"])
    for properties in of_type(template, "AWS::Serverless::Function").values():
        told |= set(properties["Environment"]["Variables"])
    source = (ROOT / "infra" / "lambda" / "variables.py").read_text()
    assert told == set(re.findall(r"""(?:\(|get\()"([A-Z][A-Z_]+)\"""", source))


def test_each_function_may_do_what_it_does_and_no_more(template: dict[str, Any]) -> None:
    logs = {"logs:CreateLogStream", "logs:PutLogEvents"}
    expected = {
        "StartServerRole": {"ec2:DescribeInstances", "ec2:StartInstances", "ec2:CreateTags"} | logs,
        "WatchStartRole": {"ec2:DescribeInstances", "ec2:CreateTags"} | logs,
        "StopIdleRole": {"ec2:DescribeInstances", "ec2:StopInstances", "cloudwatch:GetMetricStatistics"} | logs,
        "MachineRole": {"cloudwatch:PutMetricData"},
    }
    assert {name: set().union(*map(actions, statements(template, name))) for name in expected} == expected
    assert set(of_type(template, "AWS::IAM::Role")) == set(expected)


def test_what_changes_the_machine_is_granted_for_this_machine_alone(template: dict[str, Any]) -> None:
    unlimited = {"ec2:DescribeInstances", "cloudwatch:GetMetricStatistics"}  # AWS offers no narrower grant
    for role in of_type(template, "AWS::IAM::Role"):
        for statement in statements(template, role):
            resource = statement["Resource"]
            if resource == "*":
                assert actions(statement) <= unlimited or statement["Condition"]["StringEquals"] == {
                    "cloudwatch:namespace": {"Ref": "ActivityNamespace"}
                }
            elif actions(statement) & {"ec2:StartInstances", "ec2:StopInstances", "ec2:CreateTags"}:
                assert resource["Sub"].endswith(":instance/${InstanceId}")
            if "ec2:CreateTags" in actions(statement):
                (tags,) = statement["Condition"].values()
                assert all(tag.startswith("sightline:") for tag in tags["aws:TagKeys"])


def test_the_tags_granted_are_those_written(template: dict[str, Any]) -> None:
    import machine

    granted = {
        tag
        for role in ("StartServerRole", "WatchStartRole")
        for statement in statements(template, role)
        if "ec2:CreateTags" in actions(statement)
        for tag in statement["Condition"]["ForAllValues:StringEquals"]["aws:TagKeys"]
    }
    assert granted == {machine.WANTED, machine.COLD_STARTS}


def test_every_function_has_an_alarm_and_a_log_that_ends(template: dict[str, Any]) -> None:
    alarms = of_type(template, "AWS::CloudWatch::Alarm").values()
    watched = {alarm["Dimensions"][0]["Value"]["Ref"] for alarm in alarms if alarm["MetricName"] == "Errors"}
    assert watched == FUNCTIONS
    assert all(alarm["AlarmActions"] == [{"Ref": "Alarms"}] for alarm in alarms)
    logs = of_type(template, "AWS::Logs::LogGroup")
    assert {
        function["LoggingConfig"]["LogGroup"]["Ref"]
        for function in of_type(template, "AWS::Serverless::Function").values()
    } == set(logs)
    assert all(log_group["RetentionInDays"] == {"Ref": "LogRetentionDays"} for log_group in logs.values())
    assert len(of_type(template, "AWS::Budgets::Budget")) == 1


def test_starts_are_limited_and_the_schedule_is_denser_than_the_idle_time(template: dict[str, Any]) -> None:
    functions = of_type(template, "AWS::Serverless::Function")
    assert functions["StartServer"]["ReservedConcurrentExecutions"]["If"][1] == {"Ref": "StartConcurrency"}
    assert functions["StartServer"]["FunctionUrlConfig"] == {"AuthType": "NONE"}  # no Cors: the function's own
    assert functions["StopIdle"]["Events"]["Schedule"]["Properties"]["Schedule"] == "rate(5 minutes)"
    assert template["Parameters"]["IdleMinutes"]["MinValue"] >= 5


def test_the_functions_have_time_for_calls_that_are_tried_again(
    template: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Lambda cut a function short, the page would get a 502 instead of "Amazon is busy"."""
    import machine

    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    config = machine.client.__wrapped__("ec2").meta.config  # not kept: others want theirs for moto
    tries = config.retries["total_max_attempts"]
    pauses = sum(2**number for number in range(tries - 1))  # of botocore's `standard` mode, at most
    call_s = tries * (config.connect_timeout + config.read_timeout) + pauses
    functions = of_type(template, "AWS::Serverless::Function")
    stop = functions["StopIdle"]
    assert functions["StartServer"]["Timeout"] > 3 * call_s  # a look, a start, a note of it
    recheck_s = float(stop["Environment"]["Variables"]["RECHECK_SECONDS"])
    assert stop["Timeout"] > 2 * 2 * call_s + recheck_s + call_s  # two looks at two services, and the stop


def test_parameters_are_described_and_refuse_what_would_not_work(template: dict[str, Any]) -> None:
    parameters = template["Parameters"]
    assert all(parameter["Description"] for parameter in parameters.values())
    assert parameters["StartTokens"]["NoEcho"] is True

    def takes(name: str, value: str) -> bool:
        return re.fullmatch(parameters[name]["AllowedPattern"], value) is not None

    assert takes("StartTokens", "")
    assert takes("StartTokens", "sixteen-letters!,another+long/one=")
    assert not takes("StartTokens", "short")
    assert not takes("StartTokens", "sixteen-letters!,short")
    assert takes("InstanceId", "i-0123456789abcdef0")
    assert not takes("InstanceId", "my-machine")
    assert takes("AllowedOrigins", "https://sight.example,http://localhost:8000")
    assert not takes("AllowedOrigins", "https://sight.example/")
    assert not takes("AllowedOrigins", "*")
    assert takes("HealthUrl", "")
    assert not takes("HealthUrl", "sight.example")


def test_parameters_are_checked_as_the_functions_do(template: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from variables import Idle

    monkeypatch.setenv("INSTANCE_ID", "i-0123456789abcdef0")
    for parameter, variable in (("IdleMinutes", "IDLE_MINUTES"), ("GraceMinutes", "GRACE_MINUTES")):
        for limit in ("MinValue", "MaxValue", "Default"):
            monkeypatch.setenv(variable, str(template["Parameters"][parameter][limit]))
            assert Idle.read()


def test_the_service_and_the_stop_speak_of_the_same_metric(template: dict[str, Any]) -> None:
    import stop_idle

    from app import activity
    from app.settings import ActivitySettings

    assert stop_idle.METRIC == activity.METRIC
    assert template["Parameters"]["ActivityNamespace"]["Default"] == ActivitySettings().activity_namespace
