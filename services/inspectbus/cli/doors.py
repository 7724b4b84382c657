"""Which service a command talks to: each talks to one, so each has one --address. And how: with which certificates, as
whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from inspectbus.channels import Access
    from inspectbus_client import Client

TIMEOUT_S = 5.0
"""Somebody waits at a terminal; what these commands ask is answered in milliseconds."""


def _option(service: str, variable: str, port: int) -> object:
    default = f"127.0.0.1:{port}"
    return typer.Option(
        "--address", metavar="HOST:PORT", envvar=variable, show_default=default, help=f"The {service} service."
    )


AcquisitionAddress = Annotated[str | None, _option("acquisition", "INSPECTBUS_ACQUISITION_ADDRESS", 50051)]
PreprocessingAddress = Annotated[str | None, _option("preprocessing", "INSPECTBUS_PREPROCESSING_ADDRESS", 50052)]
ModelsAddress = Annotated[str | None, _option("training", "INSPECTBUS_MODELS_ADDRESS", 50054)]
ResultsAddress = Annotated[str | None, _option("results", "INSPECTBUS_RESULTS_ADDRESS", 50055)]


def client_of(service: str, address: str | None) -> Client:
    """A client whose service stands at the address, or at its default. Raises BadField for an address that is none."""
    from inspectbus_client import Client

    return Client.connect({service: address} if address else {}, timeout_s=TIMEOUT_S, access=access())


def access() -> Access:
    """How this command calls services, from the environment. Raises BadField for half of it."""
    from inspectbus.channels import Access

    return Access.from_environment()
