"""Doors, of whichever form: what callers are promised does not depend on it."""

from __future__ import annotations

import pytest

from tests.doubles.server_forms import FORMS, Form


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    form: Form = request.param
    return form
