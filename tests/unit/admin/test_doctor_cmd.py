"""secure-slurm doctor as a whole: roles, deadlines, what is shown, exit codes; and connections that are tried."""

from __future__ import annotations

import json
import os
import pwd
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest

from admin import doctor_cmd
from admin.doctor import children, connect, doors_far, plan, scene
from admin.doctor.finding import Silence, ok
from admin.doctor.gather import Door, gather
from admin.doctor.plan import CHECKS, DOORS, Check, chosen, doors_of, judge
from admin.doctor.scene import ROLES, Scene
from admin.main import main
from conf.errors import BackendUnavailable
from conf.site import Doctor, load_site
from tests.unit.hooks.conftest import POLICY, SITE

ROOT = Path(__file__).parents[3]
CONNECT = str(Path(connect.__file__))
NOTHING = Scene(frozenset({"login"}), False, "n1", "/none.yaml", "/none.yaml", None, None)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    for name, text in (("secure-slurm.yaml", SITE.format(user="root", folder=tmp_path)), ("policy.yaml", POLICY)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o644)
    return tmp_path


@pytest.fixture
def a_site(files: Path) -> Scene:
    site = load_site(str(files / "secure-slurm.yaml"))
    return NOTHING._replace(site=site, roles=frozenset({"head"}))


class TestRegistry:
    def test_every_need_has_a_door_and_every_door_a_need(self) -> None:
        assert {name for check in CHECKS for name in check.needs} == DOORS.keys()

    def test_every_role_is_one_and_has_checks(self) -> None:
        assert {role for check in CHECKS for role in check.role.split()} == set(ROLES)

    def test_the_page_explains_every_check_and_no_other(self) -> None:
        page = (ROOT / "docs/doctor.md").read_text(encoding="utf-8")
        told = re.findall(r"^\| `([a-z-]+)` \| ([a-z, ]+) \|", page, re.MULTILINE)
        roles: dict[str, set[str]] = {}
        for check in CHECKS:
            roles.setdefault(check.name, set()).update(check.role.split())
        assert {name: set(words.replace(",", "").split()) for name, words in told} == roles

    def test_a_machine_with_two_roles_has_the_stricter_check(self, a_site: Scene) -> None:
        both = chosen(a_site._replace(roles=frozenset({"head", "compute"})))
        assert len({check.name for check in both}) == len(both)
        assert next(check for check in both if check.name == "swap").role == "compute"

    def test_the_outside_is_tried_only_where_a_role_was_named(self, a_site: Scene) -> None:
        assert "no-way-out" not in {check.name for check in chosen(a_site)}
        assert "no-way-out" in {check.name for check in chosen(a_site._replace(asked=True))}
        assert "no-way-out" not in {
            check.name for check in chosen(a_site._replace(asked=True, roles=frozenset({"vault"})))
        }

    def test_an_admins_token_is_needed_for_one_check_alone(self, a_site: Scene) -> None:
        assert "vault-setup" not in {check.name for check in chosen(a_site)}

    def test_without_a_site_file_it_says_so_and_looks_at_what_it_can(self) -> None:
        checks = chosen(NOTHING._replace(roles=frozenset({"compute"}), asked=True))
        assert {"configuration", "metadata-service", "no-way-out"} <= {check.name for check in checks}
        assert {"vault", "rendered"}.isdisjoint(check.name for check in checks)
        assert "vault-server" not in doors_of(checks, NOTHING)

    def test_all_is_told_after_45_seconds_and_nothing_on_this_machine_is_hurried(self, a_site: Scene) -> None:
        site = a_site.need_site()
        timeout = attrs.fields(type(site.vault)).timeout.default
        shipped = a_site._replace(site=attrs.evolve(site, vault=attrs.evolve(site.vault, timeout=timeout)))
        allowed = {name: door.deadline(shipped) for name, door in DOORS.items()}
        assert max(allowed.values()) <= 45.0
        # an instance that boots is busy, and who is called ill then is given up; these wait for others
        others = {"outside", "endpoints", "ldap-servers", "ldap-groups"}
        assert {name for name, seconds in allowed.items() if seconds < plan.HERE} <= others, allowed


class TestJudging:
    def test_silence_is_a_fault(self) -> None:
        check = Check("x", "head", ("a", "b"), lambda a, b: ok(f"{a}{b}"))
        assert judge(check, {"a": 1, "b": Silence("no answer within 9 s", "start it")}) == (
            "fail",
            "no answer within 9 s",
            "start it",
        )
        assert judge(check, {"a": 1}).state == "fail"
        assert judge(check, {"a": 1, "b": 2}).seen == "12"

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.name}-{check.role.split()[0]}")
    def test_no_check_is_green_when_nothing_answers(self, check: Check) -> None:
        found = judge(check, dict.fromkeys(check.needs, Silence("no answer")))
        assert found.state == ("warn" if check.name in plan.SOFT else "fail")
        assert found.fix

    def test_a_defect_in_one_is_a_fault_of_that_one(self) -> None:
        def broken(_: object) -> plan.Finding:
            raise KeyError("secret")

        found = judge(Check("x", "head", ("a",), broken), {"a": 1})
        assert (found.state, "KeyError" in found.seen, "secret" in found.seen) == ("fail", True, False)


class TestGathering:
    def test_one_that_hangs_delays_by_its_deadline_alone(self) -> None:
        never, both = threading.Event(), threading.Barrier(2, timeout=60)

        def meet(_: Scene) -> int:
            both.wait()
            return 1

        found = gather(
            {
                "dead": Door(lambda _: never.wait(600), 0.2),
                "late": Door(lambda _: never.wait(600), lambda _: 0.3),
                # these two end only if they run at the same time
                "one": Door(meet, 60.0),
                "two": Door(meet, 60.0),
            },
            NOTHING,
        )
        never.set()
        assert found["one"] == found["two"] == 1
        assert found["dead"] == Silence("no answer within 0.2 s")
        assert isinstance(found["late"], Silence)

    def test_what_goes_wrong_behind_a_door_stays_there(self) -> None:
        def fails(error: Exception) -> Callable[[Scene], object]:
            def look(_: Scene) -> object:
                raise error

            return look

        found = gather(
            {
                "ours": Door(fails(BackendUnavailable("no answer", advice="look")), 60.0),
                "theirs": Door(fails(PermissionError(13, "Permission denied")), 60.0),
                "defect": Door(fails(ValueError("secret")), 60.0),
                "empty": Door(lambda _: (), 60.0),
            },
            NOTHING,
        )
        assert found["ours"] == Silence("no answer", "look")
        assert found["theirs"] == Silence("it cannot be looked at: Permission denied")
        assert "secret" not in str(found["defect"])
        assert found["empty"] == ()


class TestScene:
    def test_roles_by_what_is_there(self, a_site: Scene, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scene, "_UNITS", str(files))
        monkeypatch.setattr(scene, "_serves_vault", lambda: False)
        monkeypatch.setattr(socket, "gethostname", lambda: "login1.example")
        assert scene.roles_here(None, "n1") == {"login"}
        assert scene.roles_here(a_site.site, "n1") == {"login"}
        (files / "node-n1").mkdir()
        assert scene.roles_here(a_site.site, "n1") == {"compute"}
        monkeypatch.setattr(socket, "gethostname", lambda: "head.example")
        assert scene.roles_here(a_site.site, "n1") == {"head", "compute"}
        (files / "secure-slurm-noded.service").touch()
        assert scene.roles_here(None, "n1") == {"compute"}

    def test_the_nodes_name(self, a_site: Scene, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: "ip-10-0-0-17.ec2.internal")
        assert scene.node_name("n7", a_site.site) == "n7"
        assert scene.node_name("", None) == scene.node_name("", a_site.site) == "ip-10-0-0-17"
        (files / "node-queue1-dy-cr-1").mkdir()
        assert scene.node_name("", a_site.site) == "queue1-dy-cr-1"
        (files / "node-queue1-dy-cr-2").mkdir()
        assert scene.node_name("", a_site.site) == "ip-10-0-0-17"


class TestCommand:
    @pytest.fixture
    def facts(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
        """Facts in the place of what the doors would give; the checks are two."""
        found: dict[str, object] = {"a": "fine", "b": "fine"}
        state = {"fine": "ok", "so so": "warn", "bad": "fail"}

        def check(seen: str) -> plan.Finding:
            return plan.Finding(state[seen], seen, "" if seen == "fine" else "mend it")  # type: ignore[arg-type]

        checks = [Check("first", "login", ("a",), check), Check("second", "login", ("b",), check)]
        monkeypatch.setattr(doctor_cmd, "chosen", lambda _: checks)
        monkeypatch.setattr(doctor_cmd, "doors_of", lambda *_: {})
        monkeypatch.setattr(doctor_cmd, "gather", lambda *_: found)
        return found

    @pytest.mark.parametrize(("seen", "code"), [("bad", 1), ("so so", 0), ("fine", 0)])
    def test_exit_codes_and_json(
        self, facts: dict[str, object], capsys: pytest.CaptureFixture[str], seen: str, code: int
    ) -> None:
        facts["b"] = seen
        assert main(["doctor", "--role", "login", "--json"]) == code
        told = json.loads(capsys.readouterr().out)
        assert told.keys() == {"checks"}
        assert [each["check"] for each in told["checks"]] == ["first", "second"]
        assert all(each.keys() == {"check", "state", "seen", "fix"} for each in told["checks"])

    def test_quiet(self, facts: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", "--role", "login", "--quiet"]) == 0
        assert capsys.readouterr().out == ""
        facts["a"] = "bad"
        assert main(["doctor", "--role", "login", "--quiet"]) == 1
        told = capsys.readouterr().out
        assert "mend it" in told
        assert "second" not in told
        assert main(["doctor", "--role", "login", "--quiet", "--json"]) == 1
        assert [each["check"] for each in json.loads(capsys.readouterr().out)["checks"]] == ["first"]

    def test_the_table(self, facts: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
        facts["b"] = "bad"
        assert main(["doctor", "--role", "login"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["CHECK", "SEEN", "FIX"]
        assert lines[2].split() == ["fail", "second", "bad", "mend", "it"]
        assert lines[3] == "login: 1 ok, 0 warnings, 1 failed"

    @pytest.mark.parametrize("role", ["head", "compute"])
    def test_only_root_checks_a_node(self, monkeypatch: pytest.MonkeyPatch, role: str) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1001)
        assert main(["--config", "/none.yaml", "doctor", "--role", role]) == 1

    def test_a_role_that_is_none(self) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["doctor", "--role", "file-server"])


class TestChildren:
    def test_one_that_is_late_is_killed(self) -> None:
        with pytest.raises(BackendUnavailable, match=r"no answer within 0\.5 s"):
            children.ask(children.NOBODY, ["/bin/sleep", "600"], 0.5)

    @pytest.mark.parametrize("argv", [["/bin/echo", "no JSON"], ["/bin/false"], ["/no/such/program"]])
    def test_what_is_no_answer(self, argv: list[str]) -> None:
        with pytest.raises(BackendUnavailable):
            children.ask(children.NOBODY, argv, 60.0)

    def test_what_it_complains_of_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(BackendUnavailable, match="as nobody"):
            children.probe(children.NOBODY, ["vault-server", str(tmp_path / "none.yaml")], 60.0)

    @pytest.mark.skipif(os.geteuid() != 0, reason="root alone can be somebody else")
    def test_it_is_the_account_and_has_no_power(self) -> None:
        code = "import json, os; print(json.dumps([os.getuid(), open('/proc/self/status').read()]))"
        uid, status = children.ask(children.NOBODY, [sys.executable, "-IS", "-c", code], 60.0)
        assert uid == pwd.getpwnam("nobody").pw_uid
        assert re.search(r"CapEff:\t0+\nCapBnd:\t0+\n", status)
        with pytest.raises(BackendUnavailable, match="no account"):
            children.ask("no-such-account", ["/bin/true"], 60.0)


class TestConnections:
    """Real sockets, on loopback alone."""

    @pytest.fixture
    def listening(self) -> Iterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield server.getsockname()[1]

    def tried(self, *targets: str, patience: str = "30") -> dict[str, str]:
        argv = [sys.executable, "-IS", CONNECT, patience, *targets]
        said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout
        return {each["target"]: each["result"] for each in json.loads(said)}

    def test_what_answers_what_refuses_and_what_is_no_name(self, listening: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            closed = gone.getsockname()[1]
        targets = {
            f"127.0.0.1:{listening}": "open",
            f"127.0.0.1:{closed}": "refused",
            "no..name:80": "not resolved",
        }
        assert self.tried(*targets) == targets

    def test_nothing_is_sent_over_a_connection(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            where = f"127.0.0.1:{server.getsockname()[1]}"
            assert self.tried(where) == {where: "open"}
            connection, _ = server.accept()
            with connection:
                connection.settimeout(60)
                assert connection.recv(1) == b""

    def test_a_name_is_told_from_an_address(self, listening: int) -> None:
        assert connect.attempt(f"localhost:{listening}", 30.0)["resolved"]
        assert connect.attempt(f"127.0.0.1:{listening}", 30.0)["resolved"] == []

    def test_ntp_is_heard_over_udp(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", 0))
            server.settimeout(60)
            monkeypatch.setattr(connect, "NTP", server.getsockname()[1])
            heard: list[bytes] = []

            def answer() -> None:
                said, peer = server.recvfrom(512)
                heard.append(said)
                server.sendto(said, peer)

            thread = threading.Thread(target=answer)
            thread.start()
            found = connect.attempt(f"127.0.0.1:{connect.NTP}", 30.0)
            thread.join()
        assert found["result"] == "open"
        assert heard == [b"\x23" + bytes(47)]

    def test_an_address_that_never_answers_is_silent(self) -> None:
        """A listener whose queue is full drops what comes (tcp(7)), as a firewall does."""
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen(0)
            where = server.getsockname()
            waiting = [socket.socket() for _ in range(8)]
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(where)
            time.sleep(0.1)
            try:
                assert self.tried(f"127.0.0.1:{where[1]}", patience="0.5") == {f"127.0.0.1:{where[1]}": "silent"}
            finally:
                for one in waiting:
                    one.close()

    @pytest.mark.parametrize(
        ("target", "parts"), [("1.1.1.1:53", ("1.1.1.1", 53)), ("[fd00:ec2::254]:80", ("fd00:ec2::254", 80))]
    )
    def test_targets(self, target: str, parts: tuple[str, int]) -> None:
        assert connect.split(target) == parts

    def test_what_is_tried_unless_the_site_says_otherwise(self) -> None:
        ports = {connect.split(each)[1] for each in Doctor().outside}
        # DNS, HTTP and HTTPS, NTP; and a name, which has to be resolved first
        assert ports == {53, 80, 443, connect.NTP}
        assert any(not each[0].isdigit() for each in Doctor().outside)

    @pytest.mark.parametrize(
        ("named", "region", "first"),
        [
            ((), "", None),
            ((), "eu-central-1", "s3.eu-central-1.amazonaws.com:443"),
            ((), "us-gov-west-1", "s3.us-gov-west-1.amazonaws.com:443"),
            ((), "cn-north-1", "s3.cn-north-1.amazonaws.com.cn:443"),
            ((), "eusc-de-east-1", "s3.eusc-de-east-1.amazonaws.eu:443"),
            ((), "us-isob-east-1", "s3.us-isob-east-1.sc2s.sgov.gov:443"),
            (("s3.example:443",), "eu-central-1", "s3.example:443"),
        ],
    )
    def test_endpoints(self, named: tuple[str, ...], region: str, first: str | None) -> None:
        assert next(iter(doors_far.endpoint_targets(named, region, role=False)), None) == first

    def test_sts_only_where_nodes_log_in_as_a_role(self) -> None:
        said = {
            role: any("sts." in each for each in doors_far.endpoint_targets((), "us-east-1", role=role))
            for role in (False, True)
        }
        assert said == {False: False, True: True}


def test_a_password_that_is_refused_is_tried_at_one_server_only(a_site: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    import attrs

    asked = []

    def refuses(_account: str, words: list[str], _seconds: float) -> dict[str, object]:
        asked.append(words[-1])
        told = {
            "uri": words[-1],
            "asked": 1,
            "missing": [],
            "problem": "INVALID_CREDENTIALS",
            "advice": "",
            "refused": True,
        }
        return told if words[-1].endswith("b") else {**told, "problem": "SERVER_DOWN", "refused": False}

    assert a_site.site is not None
    uris = ("ldaps://a", "ldaps://b", "ldaps://c")
    site = attrs.evolve(a_site.site, ldap=attrs.evolve(a_site.site.ldap, uris=uris))
    monkeypatch.setattr(doors_far, "children", SimpleNamespace(probe=refuses))
    policy: object = object()
    found = doors_far.ldap_groups(a_site._replace(site=site, policy=policy))  # type: ignore[arg-type]
    assert found.problem == "INVALID_CREDENTIALS"
    assert asked == ["ldaps://a", "ldaps://b"]
