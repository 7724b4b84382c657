"""Who comes in, and who does not: TLS, client certificates, tokens, roles, quotas, on a real server."""

from __future__ import annotations

import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from inspectbus.api.v1 import acquisition_pb2 as pb
from inspectbus.api.v1 import acquisition_pb2_grpc
from inspectbus.channels import Access, open_channel
from inspectbus.errors import BadField, NotAllowed, NotIdentified, TooFast, Unreachable
from inspectbus.runtime import quotas
from inspectbus.runtime.identity import Identity, caller
from inspectbus.runtime.roles import Role
from inspectbus.runtime.rpc_server import Door
from inspectbus.runtime.settings import ServiceSettings
from inspectbus.runtime.tokens import Tokens, hash_of, new_token
from inspectbus_client import Client, Shot
from tests.doubles.certificates import Authority, Papers
from tests.doubles.server_forms import Form, serve

SERVICE = "inspectbus.api.v1.AcquisitionService"
PATIENCE_S = 10.0
JPEG = b"\xff\xd8\xff\xe0"
Stub = acquisition_pb2_grpc.AcquisitionServiceStub


class Noting(acquisition_pb2_grpc.AcquisitionServiceServicer):
    """Answers everything and notes who asked."""

    def __init__(self) -> None:
        self.callers: list[Identity] = []

    def GetStation(self, request: pb.GetStationRequest, context: Any) -> pb.GetStationResponse:
        self.callers.append(caller.get())
        return pb.GetStationResponse(station=pb.Station(line=request.line))

    def StartStation(self, request: pb.StartStationRequest, context: Any) -> pb.StartStationResponse:
        self.callers.append(caller.get())
        return pb.StartStationResponse()

    def PublishFrames(self, request_iterator: Any, context: Any) -> Iterator[pb.PublishFramesResponse]:
        for position, _ in enumerate(request_iterator):
            yield pb.PublishFramesResponse(position=position)

    def InspectStream(self, request_iterator: Any, context: Any) -> Any:
        raise NotImplementedError

    def WatchGate(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    ListStations = StopStation = Inspect = GetStation  # type: ignore[assignment] # never called


Open = Callable[..., AbstractContextManager[tuple[Door, Noting]]]


@pytest.fixture
def open_door(form: Form) -> Open:
    @contextmanager
    def open_door(registry: CollectorRegistry | None = None, **told: Any) -> Iterator[tuple[Door, Noting]]:
        service = Noting()
        contracts: dict[str, Callable[[grpc.Server], None]] = {
            SERVICE: lambda server: acquisition_pb2_grpc.add_AcquisitionServiceServicer_to_server(service, server)
        }
        with serve(form, ServiceSettings(drain_s=5, **told), registry or CollectorRegistry(), contracts) as door:
            yield door, service

    return open_door


def ask(address: str, access: Access, line: str = "line-1") -> str:
    with open_channel(address, access) as channel:
        return Stub(channel).GetStation(pb.GetStationRequest(line=line), timeout=PATIENCE_S).station.line


def refusal_of(address: str, access: Access) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        ask(address, access)
    return caught.value.code(), caught.value.details() or ""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="module")
def papers(authority: Authority) -> Papers:
    return authority.issue("acquisition")


def tls(papers: Papers, client_ca: Path | None = None) -> dict[str, Any]:
    return {"tls_certificate": papers.certificate, "tls_key": papers.key, "tls_client_ca": client_ca}


@pytest.fixture
def identities(tmp_path: Path) -> dict[str, str]:
    """Tokens by name, as tokens.yaml knows them."""
    return {name: new_token() for name in ("viewer", "station", "reviewer", "engineer", "admin")}


@pytest.fixture
def tokens(tmp_path: Path, identities: dict[str, str]) -> Path:
    file = tmp_path / "tokens.yaml"
    file.write_text(
        "".join(f"{name}: {{role: {name}, sha256: {hash_of(token)}}}\n" for name, token in identities.items())
    )
    return file


# TLS.

KEPT_OUT: dict[str, tuple[Callable[[Path, Papers], Access], str]] = {
    "without TLS": (lambda *_: Access(), "speaks TLS, and was called without: name its authority in INSPECTBUS_TLS_CA"),
    "without a certificate": (lambda ca, _: Access(ca=ca), "asks for a certificate and was shown none: name yours in "),
    "with a stranger's": (
        lambda ca, papers: Access(ca=ca, certificate=papers.certificate, key=papers.key),
        "does not take the certificate ",
    ),
}


@pytest.mark.parametrize("way", KEPT_OUT)
@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.station("line-1", "top"),
        lambda client: next(client.gate("line-1", "top")),
        lambda client: next(client.publish_frames([Shot(JPEG)], line="l", station="s", patience_s=1.0)),
    ],
    ids=["a call", "a watch", "a conversation"],
)
def test_whom_tls_keeps_out_the_client_tells_why_and_not_that_nobody_is_there(
    open_door: Open,
    authority: Authority,
    stranger: Authority,
    papers: Papers,
    way: str,
    call: Callable[[Client], object],
) -> None:
    make, words = KEPT_OUT[way]
    access = make(authority.file, stranger.issue("camera"))
    with (
        open_door(**tls(papers, authority.file)) as (door, _),
        Client(acquisition=door.address, timeout_s=1.0, access=access) as client,
        pytest.raises(Unreachable) as caught,
    ):
        call(client)
    assert caught.value.message.startswith(f"the acquisition service does not let us in: {door.address} {words}")


def test_a_client_that_trusts_the_authority_is_answered(open_door: Open, authority: Authority, papers: Papers) -> None:
    with open_door(**tls(papers)) as (door, _):
        assert ask(door.address, Access(ca=authority.file)) == "line-1"


def test_a_server_of_another_authority_is_refused_by_the_client(
    open_door: Open, stranger: Authority, papers: Papers
) -> None:
    with open_door(**tls(papers)) as (door, _):
        code, words = refusal_of(door.address, Access(ca=stranger.file))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "CERTIFICATE_VERIFY_FAILED" in words
        with (
            Client(acquisition=door.address, timeout_s=1.0, access=Access(ca=stranger.file)) as client,
            pytest.raises(Unreachable, match=f"is not of the authority in {stranger.file}"),
        ):
            client.station("line-1", "top")


def test_a_servers_expired_certificate_is_refused_by_the_client(open_door: Open, authority: Authority) -> None:
    with open_door(**tls(authority.issue("acquisition", expired=True))) as (door, _):
        code, words = refusal_of(door.address, Access(ca=authority.file))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "expired" in words


def test_a_client_without_tls_is_not_answered(open_door: Open, papers: Papers) -> None:
    with open_door(**tls(papers)) as (door, service):
        assert refusal_of(door.address, Access())[0] is grpc.StatusCode.UNAVAILABLE
        assert service.callers == []


@pytest.mark.parametrize("kind", ["none", "of a stranger", "expired"])
def test_a_client_is_refused_whose_certificate_is(
    open_door: Open, kind: str, authority: Authority, stranger: Authority, papers: Papers
) -> None:
    shown = {
        "none": None,
        "of a stranger": stranger.issue("results"),
        "expired": authority.issue("results", expired=True),
    }[kind]
    own: dict[str, Any] = {"certificate": shown.certificate, "key": shown.key} if shown else {}
    with open_door(**tls(papers, authority.file)) as (door, service):
        assert refusal_of(door.address, Access(ca=authority.file, **own))[0] is grpc.StatusCode.UNAVAILABLE
        assert service.callers == []


def test_a_client_with_a_certificate_of_the_authority_is_answered(
    open_door: Open, authority: Authority, papers: Papers
) -> None:
    own = authority.issue("results")
    with open_door(**tls(papers, authority.file)) as (door, _):
        access = Access(ca=authority.file, certificate=own.certificate, key=own.key)
        assert ask(door.address, access) == "line-1"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize(("version", "answered"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_tls_older_than_1_2_is_refused(
    open_door: Open, version: str, answered: bool, authority: Authority, papers: Papers
) -> None:
    context = ssl.create_default_context(cafile=authority.file)
    # Otherwise our own library would refuse to try the old version.
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    context.set_alpn_protocols(["h2"])
    with open_door(**tls(papers)) as (door, _):
        host, _, port = door.address.rpartition(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as plain:
            if answered:
                with context.wrap_socket(plain, server_hostname=host) as secure:
                    assert secure.selected_alpn_protocol() == "h2"
            else:
                with pytest.raises((ssl.SSLError, ConnectionError)):  # it hangs up, with a word or without
                    context.wrap_socket(plain, server_hostname=host)


def test_a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_is_not(
    open_door: Open, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    files = Papers(tmp_path / "tls.crt", tmp_path / "tls.key")
    renewed = stranger.issue("acquisition")
    for source, target in zip(astuple(authority.issue("acquisition")), astuple(files), strict=True):
        shutil.copy(source, target)
    with open_door(**tls(files)) as (door, _), capture_logs() as logs:
        assert ask(door.address, Access(ca=authority.file)) == "line-1"

        files.certificate.write_bytes(renewed.certificate.read_bytes())  # half of it: the key is still the old one
        assert ask(door.address, Access(ca=authority.file)) == "line-1"
        assert "certificate not read, the last good one stays" in [entry["event"] for entry in logs]

        files.key.write_bytes(renewed.key.read_bytes())
        assert ask(door.address, Access(ca=stranger.file)) == "line-1"
        assert refusal_of(door.address, Access(ca=authority.file))[0] is grpc.StatusCode.UNAVAILABLE


def astuple(papers: Papers) -> tuple[Path, Path]:
    return papers.certificate, papers.key


def test_a_callers_renewed_certificate_and_token_are_used_without_a_restart(
    open_door: Open,
    authority: Authority,
    stranger: Authority,
    papers: Papers,
    tmp_path: Path,
    identities: dict[str, str],
    tokens: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inspectbus.channels.LOOK_S", 0.0)
    files, token_file = Papers(tmp_path / "own.crt", tmp_path / "own.key"), tmp_path / "token"
    for source, target in zip(astuple(stranger.issue("results")), astuple(files), strict=True):
        shutil.copy(source, target)
    token_file.write_text(identities["viewer"] + "\n")
    access = Access(ca=authority.file, certificate=files.certificate, key=files.key, token_file=token_file)
    with (
        open_door(**tls(papers, authority.file), tokens=tokens) as (door, service),
        open_channel(door.address, access) as channel,
    ):
        call = Stub(channel).GetStation
        with pytest.raises(grpc.RpcError):
            call(pb.GetStationRequest(), timeout=PATIENCE_S)

        for source, target in zip(astuple(authority.issue("results")), astuple(files), strict=True):
            shutil.copy(source, target)
        call(pb.GetStationRequest(), timeout=PATIENCE_S)
        token_file.write_text(identities["admin"])
        call(pb.GetStationRequest(), timeout=PATIENCE_S)

        assert [each.name for each in service.callers] == ["viewer", "admin"]


def test_certificates_that_cannot_be_used_stop_the_start_and_say_why(
    open_door: Open, authority: Authority, papers: Papers
) -> None:
    other = authority.issue("results")
    with (
        pytest.raises(BadField, match="do not fit each other"),
        open_door(**tls(Papers(papers.certificate, other.key))),
    ):
        pass
    with (
        pytest.raises(BadField, match=r"cannot read .*absent.pem"),
        open_door(**tls(Papers(Path("absent.pem"), papers.key))),
    ):
        pass
    with pytest.raises(BadField, match=r"cannot read absent.token"), open_door(token_file="absent.token"):
        pass


# Tokens and roles.


@pytest.mark.parametrize(
    ("role", "may"),
    [("viewer", False), ("station", False), ("reviewer", False), ("engineer", True), ("admin", True)],
)
def test_a_role_opens_what_it_includes_and_nothing_more(
    open_door: Open, role: str, may: bool, tokens: Path, identities: dict[str, str]
) -> None:
    registry = CollectorRegistry()
    with (
        open_door(registry, tokens=tokens) as (door, service),
        Client(acquisition=door.address, access=Access(token=identities[role])) as client,
        capture_logs() as logs,
    ):
        client.station("line-1", "top")
        if may:
            client.start_station("line-1", "top")
        else:
            with pytest.raises(NotAllowed, match=f"StartStation needs role engineer; {role} has role {role}"):
                client.start_station("line-1", "top")
    assert [(each.name, each.role) for each in service.callers] == [(role, Role(role))] * (2 if may else 1)
    denied = [entry for entry in logs if entry["event"] == "call denied"]
    method = f"/{SERVICE}/StartStation"
    assert [(entry["method"], entry["caller"], entry["peer"]) for entry in denied] == [(method, role, "127.0.0.1")] * (
        not may
    )
    count = registry.get_sample_value("inspectbus_rpc_denied_total", {"method": method, "reason": "NotAllowed"})
    assert count == (None if may else 1)
    assert identities[role] not in str(logs)


@pytest.mark.parametrize(
    "token", ["", "ibt_" + "A" * 43, "hunter2", "ümlaut"], ids=["none", "unknown", "a password", "text"]
)
def test_who_has_no_token_that_is_known_is_told_so(
    open_door: Open, token: str, tokens: Path, identities: dict[str, str]
) -> None:
    with tokens.open("a") as file:
        file.write(f"careless: {{role: admin, sha256: {hash_of('hunter2')}}}\n")
    with open_door(tokens=tokens) as (door, service), grpc.insecure_channel(door.address) as channel:
        shown = (("authorization", f"Bearer {token}".encode().decode("latin-1")),) if token else ()
        if token == "ümlaut":
            shown = (("authorization", "Basic dXNlcg=="),)
        with pytest.raises(grpc.RpcError) as caught:
            Stub(channel).GetStation(pb.GetStationRequest(), timeout=PATIENCE_S, metadata=shown)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert ("has no token" if not token else "not known here") in str(caught.value.details())
        assert service.callers == []
        with Client(acquisition=door.address) as client, pytest.raises(NotIdentified):
            client.station("line-1", "top")


def test_a_probe_needs_no_token_and_reflection_does_or_is_not_there(open_door: Open, tokens: Path) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    def listed(address: str) -> grpc.StatusCode:
        with grpc.insecure_channel(address) as channel:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.ServerReflectionInfo(iter([asked]), timeout=PATIENCE_S))
            return caught.value.code()

    with open_door(tokens=tokens) as (door, _):
        with grpc.insecure_channel(door.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=PATIENCE_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert listed(door.address) is grpc.StatusCode.UNAUTHENTICATED
    with open_door(reflection=False) as (door, _):
        assert listed(door.address) is grpc.StatusCode.UNIMPLEMENTED


def test_a_token_that_is_withdrawn_or_given_holds_from_the_next_call_and_a_broken_file_changes_nothing(
    open_door: Open, tokens: Path, identities: dict[str, str]
) -> None:
    access, registry = Access(token=identities["viewer"]), CollectorRegistry()

    def outdated() -> float | None:
        return registry.get_sample_value("inspectbus_tokens_outdated", {"file": str(tokens)})

    with open_door(registry, tokens=tokens) as (door, _), capture_logs() as logs:
        whole = tokens.read_text()
        assert ask(door.address, access) == "line-1"
        assert outdated() == 0

        tokens.write_text("viewer: {role: viewr, sha256: []}\n")
        assert outdated() == 1  # before anybody called
        assert ask(door.address, access) == "line-1"
        assert "the last good ones stay" in [entry["event"] for entry in logs][-1]

        tokens.write_text("".join(line for line in whole.splitlines(keepends=True) if not line.startswith("viewer")))
        assert refusal_of(door.address, access)[0] is grpc.StatusCode.UNAUTHENTICATED
        assert outdated() == 0

        tokens.unlink()
        assert ask(door.address, Access(token=identities["admin"])) == "line-1"
        assert outdated() == 1

        tokens.write_text(whole)
        assert ask(door.address, access) == "line-1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("viewer: {role: viewer}", "viewer: it has neither sha256 nor certificate"),
        ("viewer: {role: chief, sha256: X}", "viewer.role: must be viewer, station, reviewer, engineer or admin"),
        ("viewer: {role: anybody, sha256: X}", "viewer.role: must be viewer, station, reviewer, engineer or admin"),
        ("viewer: {role: [viewer], sha256: X}", "viewer.role: must be"),
        ("local: {role: viewer, sha256: X}", "'local' cannot be an identity's name"),
        ("a: {role: viewer, sha256: X}\nb: {role: admin, sha256: X}", "b has another identity's sha256"),
        ("a: {role: viewer, token: secret}", "a.token"),
        ("a: {role: station, sha256: X, speaks_for: [Line 1]}", "a.speaks_for"),
        ("a: secret", "a: "),
    ],
)
def test_a_tokens_file_that_is_wrong_stops_the_start_and_says_where(
    open_door: Open, tmp_path: Path, text: str, words: str
) -> None:
    file = tmp_path / "tokens.yaml"
    file.write_text(text.replace("X", hash_of("x")))
    with pytest.raises(BadField) as caught, open_door(tokens=file):
        pass
    assert words in caught.value.message
    assert "secret" not in caught.value.message


def test_a_tokens_file_that_everybody_may_change_is_refused(open_door: Open, tokens: Path) -> None:
    tokens.chmod(0o666)
    with pytest.raises(BadField, match="chmod o-w"), open_door(tokens=tokens):
        pass


def test_a_client_certificate_names_an_identity_and_a_token_wins_over_it(
    open_door: Open, authority: Authority, papers: Papers, tokens: Path, identities: dict[str, str]
) -> None:
    with tokens.open("a") as file:
        file.write("results: {role: viewer, certificate: results.plant.svc}\n")
    own = authority.issue("results.plant.svc")
    shown: dict[str, Any] = {"ca": authority.file, "certificate": own.certificate, "key": own.key}
    with open_door(**tls(papers, authority.file), tokens=tokens) as (door, service):
        ask(door.address, Access(**shown))
        ask(door.address, Access(**shown, token=identities["admin"]))
        assert refusal_of(door.address, Access(**shown, token="ibt_" + "A" * 43))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert [each.name for each in service.callers] == ["results", "admin"]


def test_a_token_never_goes_to_another_machine_in_the_clear() -> None:
    with pytest.raises(BadField, match="in the clear"):
        open_channel("plant.example:50051", Access(token=new_token()))
    open_channel("plant.example:50051", Access(token=new_token(), allow_plaintext=True)).close()
    assert "ibt_" not in repr(Access(token=new_token()))


# Quotas.


def test_a_caller_that_sends_too_fast_is_told_when_to_come_again_and_others_are_served(
    open_door: Open, tokens: Path, identities: dict[str, str]
) -> None:
    told: dict[str, Any] = {"tokens": tokens, "identity_calls_per_s": 0.5}
    with (
        open_door(**told) as (door, service),
        Client(acquisition=door.address, timeout_s=1.0, access=Access(token=identities["viewer"])) as client,
    ):
        client.station("line-1", "top")
        with pytest.raises(TooFast, match="viewer sends more than one caller may: try again in"):
            client.station("line-1", "top")
        assert ask(door.address, Access(token=identities["admin"])) == "line-1"
        assert [each.name for each in service.callers] == ["viewer", "admin"]


def test_a_stream_that_sends_too_much_is_read_no_faster_and_loses_nothing(
    open_door: Open, tokens: Path, identities: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    asked = iter([0.0, 0.01, 0.01, 0.0, 0.0])

    def take(self: object, name: str, size: int) -> float:
        waits.append(next(asked))
        return waits[-1]

    monkeypatch.setattr(quotas.Quotas, "take", take)
    with (
        open_door(tokens=tokens) as (door, _),
        open_channel(door.address, Access(token=identities["station"])) as channel,
    ):
        requests = [pb.PublishFramesRequest(line="line-1")] * 3
        answers = list(Stub(channel).PublishFrames(iter(requests), timeout=PATIENCE_S))
    assert [answer.position for answer in answers] == [0, 1, 2]
    assert waits == [0.0, 0.01, 0.01, 0.0, 0.0]


def test_one_caller_has_half_of_the_streams_at_most_and_others_find_a_place(
    open_door: Open, tokens: Path, identities: dict[str, str]
) -> None:
    over = threading.Event()

    def held() -> Iterator[pb.PublishFramesRequest]:
        yield pb.PublishFramesRequest(line="line-1")
        over.wait(PATIENCE_S)

    def stream(name: str) -> Iterator[pb.PublishFramesResponse]:
        channel = house.enter_context(open_channel(door.address, Access(token=identities[name])))
        return iter(Stub(channel).PublishFrames(held(), timeout=PATIENCE_S))

    with ExitStack() as house:
        door, _ = house.enter_context(open_door(tokens=tokens, rpc_threads=6))  # four places for streams
        house.callback(over.set)
        opened = [stream("station") for _ in range(2)]
        for each in opened:
            next(each)
        with pytest.raises(grpc.RpcError) as caught:
            next(stream("station"))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "station has 2 streams open, and one caller may have no more" in str(caught.value.details())
        next(stream("admin"))


def test_callers_without_a_name_leave_streams_to_those_who_have_one(
    open_door: Open, tokens: Path, identities: dict[str, str]
) -> None:
    with ExitStack() as house:
        door, _ = house.enter_context(open_door(tokens=tokens, rpc_threads=32))  # 24 places for streams, 3 for them
        watch = "/grpc.health.v1.Health/Watch"
        strangers: list[grpc.UnaryStreamMultiCallable[bytes, bytes]] = [
            house.enter_context(grpc.insecure_channel(door.address)).unary_stream(watch, None, None) for _ in range(2)
        ]
        watches = [strangers[each % 2](b"", timeout=PATIENCE_S) for each in range(3)]
        for each in watches:
            next(each)
        with pytest.raises(grpc.RpcError) as caught:
            next(strangers[0](b"", timeout=PATIENCE_S))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "callers without a name have 3 streams open" in str(caught.value.details())
        channel = house.enter_context(open_channel(door.address, Access(token=identities["admin"])))
        request = pb.PublishFramesRequest(line="line-1")
        assert next(iter(Stub(channel).PublishFrames(iter([request]), timeout=PATIENCE_S)))
        for each in watches:
            each.cancel()


def test_calls_that_are_denied_meet_a_limit_too_and_do_not_fill_the_log(open_door: Open, tokens: Path) -> None:
    registry = CollectorRegistry()
    with capture_logs() as entries, open_door(registry, tokens=tokens, identity_calls_per_s=10.0) as (door, _):
        codes = {refusal_of(door.address, Access())[0] for _ in range(60)}
    assert codes == {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert 0 < sum(entry["event"] == "call denied" for entry in entries) < 30
    method = f"/{SERVICE}/GetStation"
    labels = {"method": method, "reason": "NotIdentified"}
    assert registry.get_sample_value("inspectbus_rpc_denied_total", labels) == 60


def test_rights_that_are_mended_let_the_file_be_read_though_it_is_the_same(
    tokens: Path, identities: dict[str, str]
) -> None:
    known = Tokens(tokens)
    tokens.write_text(f"only: {{role: viewer, sha256: {hash_of('another')}}}\n")
    tokens.chmod(0o666)
    before = known.now()
    tokens.chmod(0o600)
    assert known.now() is not before


def test_a_message_that_is_none_is_the_callers_fault_in_calls_and_streams(
    open_door: Open, tokens: Path, identities: dict[str, str]
) -> None:
    broken = b"\xff\xff\xff\xff"
    shown = (("authorization", f"Bearer {identities['admin']}"),)
    with open_door(tokens=tokens) as (door, _), grpc.insecure_channel(door.address) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/GetStation")
        with pytest.raises(grpc.RpcError) as caught:
            call(broken, timeout=PATIENCE_S, metadata=shown)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        stream: Any = channel.stream_stream(f"/{SERVICE}/PublishFrames")
        with pytest.raises(grpc.RpcError) as caught:
            list(stream(iter([broken]), timeout=PATIENCE_S, metadata=shown))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
