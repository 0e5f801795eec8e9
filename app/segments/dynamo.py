"""A table of DynamoDB, spoken to in plain values: str, int, float, bool. None is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

Values = Mapping[str, Any]


class Table:
    """Every read is consistent, except through an index: DynamoDB has no other there."""

    def __init__(self, client: DynamoDBClient, name: str) -> None:
        self._client = client
        self._name = name

    def get(self, key: Values, *only: str) -> dict[str, Any] | None:
        """The item, or the attributes asked for; None when there is none."""
        names = {f"#n{place}": name for place, name in enumerate(only)}
        more: dict[str, Any] = (
            {"ProjectionExpression": ", ".join(names), "ExpressionAttributeNames": names} if only else {}
        )
        found = self._client.get_item(TableName=self._name, Key=encode(key), ConsistentRead=True, **more)
        return decode(found["Item"]) if "Item" in found else None

    def put_new(self, item: Values, attribute: str) -> bool:
        """Adds an item; False when there is one under its key that has this attribute already."""
        try:
            self._client.put_item(
                TableName=self._name,
                Item=encode(item),
                ConditionExpression="attribute_not_exists(#k)",
                ExpressionAttributeNames={"#k": attribute},
            )
        except ClientError as error:
            return _turned_down(error)
        return True

    def update(self, key: Values, expression: str, condition: str | None, names: Values, values: Values) -> bool:
        """Changes an item; False when the condition does not hold. Names are `#…`, values `:…`, of both expressions."""
        more: dict[str, Any] = {"ConditionExpression": condition} if condition else {}
        if values:
            more["ExpressionAttributeValues"] = encode(values)
        try:
            self._client.update_item(
                TableName=self._name,
                Key=encode(key),
                UpdateExpression=expression,
                ExpressionAttributeNames=dict(names),
                **more,
            )
        except ClientError as error:
            return _turned_down(error)
        return True

    def add_word(self, key: Values, attribute: str, word: str) -> int:
        """Adds a word to a set of them, which is made when it is missing; returns how many it has."""
        answer = self._client.update_item(
            TableName=self._name,
            Key=encode(key),
            UpdateExpression="ADD #a :w",
            ExpressionAttributeNames={"#a": attribute},
            ExpressionAttributeValues={":w": {"SS": [word]}},
            ReturnValues="ALL_NEW",
        )
        return len(answer["Attributes"][attribute]["SS"])

    def delete(self, key: Values) -> None:
        self._client.delete_item(TableName=self._name, Key=encode(key))

    def query(self, name: str, value: str, *, index: str | None = None) -> Iterator[dict[str, Any]]:
        """All items whose partition key has this value."""
        where: dict[str, Any] = {"IndexName": index} if index else {"ConsistentRead": True}
        pages = self._client.get_paginator("query").paginate(
            TableName=self._name,
            KeyConditionExpression="#k = :v",
            ExpressionAttributeNames={"#k": name},
            ExpressionAttributeValues={":v": {"S": value}},
            **where,
        )
        for page in pages:
            for item in page["Items"]:
                yield decode(item)


def encode(values: Values) -> dict[str, Any]:
    """DynamoDB's own form."""
    return {name: _encode(value) for name, value in values.items() if value is not None}


def _encode(value: object) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"BOOL": value}
    if isinstance(value, int | float):
        return {"N": repr(value)}
    return {"S": str(value)}


def decode(item: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values; sets of words as sets."""
    return {name: _decode(value) for name, value in item.items()}


def _decode(value: Mapping[str, Any]) -> Any:
    ((kind, held),) = value.items()
    if kind == "N":
        return float(held)
    return set(held) if kind == "SS" else held


def _turned_down(error: ClientError) -> bool:
    """False where a condition did not hold; any other error goes on."""
    if error.response.get("Error", {}).get("Code") == "ConditionalCheckFailedException":
        return False
    raise error
