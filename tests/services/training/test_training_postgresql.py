"""Does a training outlive the restart of its PostgreSQL?"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from inspectbus.api.v1 import training_pb2 as pb
from inspectbus.domain.model_version import ModelCard
from inspectbus.errors import StorageAway
from inspectbus.training.aliases import Aliases, Standing
from tests.doubles.postgres import Postgres
from tests.doubles.scripted_training import ScriptedTraining
from tests.doubles.training_service import PATIENCE_S, Open

pytestmark = pytest.mark.postgresql


@pytest.fixture
def database_url(postgres: Postgres) -> Iterator[str]:
    yield postgres.new_database()
    postgres.restart()


def test_a_training_that_ends_while_the_database_is_away_is_registered_once_it_is_back(
    open_one: Open, training: ScriptedTraining, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = threading.Event()

    standing = Aliases.standing

    def telling(aliases: Aliases, card: ModelCard) -> Standing:
        try:
            return standing(aliases, card)
        except StorageAway:
            refused.set()
            raise

    monkeypatch.setattr(Aliases, "standing", telling)
    with open_one(training, lease_s=60.0) as service:
        job = service.start()
        training.begun.get(timeout=PATIENCE_S)

        postgres.kill()
        training.epoch()
        training.succeed()
        assert refused.wait(PATIENCE_S)
        postgres.start()

        done = service.outcome(job.job_id)
        assert (done.state, done.error) == (pb.JOB_STATE_SUCCEEDED, "")
        assert service.model("parts", alias="production").version == done.model_version
