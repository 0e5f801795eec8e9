"""moto's server, one for all tests of recorded film: each makes an estate of its own in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.aws import Aws, running_aws


@pytest.fixture(scope="session")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with running_aws(tmp_path_factory.mktemp("aws")) as aws:
        yield aws
