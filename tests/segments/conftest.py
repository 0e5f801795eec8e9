"""moto's server for all tests of recorded video. Each test creates buckets, queues and tables of its own in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.aws import Aws, running_aws


@pytest.fixture(scope="session")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with running_aws(tmp_path_factory.mktemp("aws")) as aws:
        yield aws
