"""What becomes an alert."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from runnerpool.capacity import POOL, target_key
from runnerpool.errors import Misconfigured
from runnerpool.gather import Gathered
from runnerpool.model import Head, Job, Rest, Runner, RunnerState, Snapshot
from runnerpool.ports import AgentTrouble, Alert
from runnerpool.watch import NAMED, RECHECK, changed, conditions
from tests.made_rows import MINUTE, NOW, config, job, pool, runner

S = RunnerState
HOUR = timedelta(hours=1)


def gathered(*rows: Job | Runner, head: Head | None = None, unreadable: tuple[str, ...] = (), name: str = "linux") -> Gathered:
    jobs = {row.job_id: row for row in rows if isinstance(row, Job)}
    runners = {row.name: row for row in rows if isinstance(row, Runner)}
    return Gathered(pools={name: Snapshot(head or Head(name), jobs, runners, {}, unreadable)})


def found(read: Gathered) -> list[tuple[str, str]]:
    return [(alert.id, alert.area) for alert in conditions(NOW, config(), read)]


RUNS = job("5", runner_name="hw-linux-aaaaaaaaaa", started_at=NOW - 7 * HOUR, age=8 * HOUR)


def resting(key: str, until: timedelta) -> Head:
    return Head("linux", rests={key: Rest(NOW + until, "why")})


@pytest.mark.parametrize(
    ("read", "alerts"),
    [
        (gathered(runner(S.READY), job()), []),
        (gathered(head=resting(POOL, MINUTE)), [("pool-linux", "setup")]),
        (gathered(head=resting("regular", MINUTE)), [("capacity-linux", "provisioning")]),
        (gathered(head=resting("regular Standard_D4ads_v5 zone 3", MINUTE)), []),
        # it is being tried again, and may be refused again: not over yet
        (gathered(head=resting(POOL, MINUTE - RECHECK)), [("pool-linux", "setup")]),
        (gathered(head=resting("regular", MINUTE - RECHECK)), [("capacity-linux", "provisioning")]),
        (gathered(head=resting(POOL, -RECHECK)), []),
        (gathered(head=resting(target_key("repo:octo-org/b"), MINUTE)), [("target-linux-octo-org-b", "auth")]),
        (gathered(head=resting(target_key("repo:octo-org/b"), MINUTE - RECHECK)), [("target-linux-octo-org-b", "auth")]),
        (gathered(head=resting(target_key("repo:octo-org/b"), -RECHECK)), []),
        (gathered(unreadable=("runner:hw-linux-broken",)), [("row-linux-runner-hw-linux-broken", "safety")]),
        (gathered(runner(S.BUSY), job("5", demand=False, runner_name="hw-linux-aaaaaaaaaa")), [("foreign-5", "safety")]),
        (gathered(job("5", demand=False, runner_name="somebody-elses")), []),
        (gathered(runner(S.BUSY), RUNS), [("overdue-5", "safety")]),
        (gathered(RUNS), []),  # its runner is gone
        (gathered(job(unseen_since=NOW), job("2", unseen_since=NOW)), [("unseen-linux", "auth")]),
        (gathered(job(unseen_since=NOW, trusted=False)), [("unseen-linux", "auth")]),
        (gathered(job(unseen_since=NOW, completed_at=NOW)), []),
        (gathered(job(unseen_since=NOW, demand=False)), []),  # it has moved to another pool, say
        (gathered(runner(S.BUSY), job(unseen_since=NOW, runner_name="hw-linux-aaaaaaaaaa", started_at=NOW)), []),
        (gathered(head=resting(POOL, -RECHECK), name="left-the-file"), []),
    ],
)
def test_what_a_person_can_do_something_about(read: Gathered, alerts: list[tuple[str, str]]) -> None:
    assert found(read) == alerts


def test_the_repositories_that_github_does_not_show_are_named() -> None:
    read = gathered(*(job(str(n), repository=f"octo-org/r{n}", unseen_since=NOW) for n in range(9)))
    (alert,) = conditions(NOW, config(), read)
    assert "octo-org/r0, octo-org/r1, " in alert.title
    assert "octo-org/r4 …: " in alert.text
    assert "'Actions: read'" in alert.text


def test_a_repository_where_github_refuses_runners_is_named_and_only_that() -> None:
    rests = {target_key("repo:octo-org/b"): Rest(NOW + MINUTE, "403 at b"), "regular": Rest(NOW + MINUTE, "QuotaExceeded")}
    of_b, of_azure = sorted(conditions(NOW, config(), gathered(head=Head("linux", rests=rests))), key=lambda alert: alert.area)
    assert "octo-org/b" in of_b.title
    assert "403 at b" in of_b.text
    assert "(QuotaExceeded)" in of_azure.text


def test_agents_that_refuse_our_token_are_one_alert_a_pool() -> None:
    read = gathered(*(runner(S.READY, f"{n:010d}") for n in range(9)))
    read.agents = dict.fromkeys(read.runners, AgentTrouble.REFUSED)
    (alert,) = conditions(NOW, config(), read)
    assert (alert.id, alert.area) == ("agents-linux", "auth")
    assert "9 agents" in alert.title
    assert "…" in alert.text
    read.agents = dict.fromkeys(read.runners, AgentTrouble.SILENT)
    assert not conditions(NOW, config(), read)


# ---------------------------------------------------------------------------------------------- what is withdrawn in vain

HELLO, OLD = "repo:octo-org/hello", "repo:octo-org/old"
ONE_REPOSITORY = config(scope="repo", repositories=["hello"])


def retiring(name: str = "aaaaaaaaaa", target: str = OLD, **changes: Any) -> Runner:
    return runner(S.RETIRING, name, **{"age": HOUR + MINUTE, "target": target, "reason": "404: no repo", **changes})


@pytest.mark.parametrize(
    ("row", "told", "untold"),
    [
        (retiring(), ["has left the pool file", "delete the VM in Azure", "404: no repo"], ["take it out"]),
        (retiring(target=HELLO), ["take it out of the pool file", "delete the VM in Azure"], ["has left"]),
        (retiring(absent_since=NOW - MINUTE), ["has left the pool file", "goes by itself"], ["delete the VM"]),
        (retiring(target=HELLO, absent_since=NOW - MINUTE), ["take it out of the pool file"], ["delete the VM"]),
        (retiring(deregistered_at=NOW - HOUR), ["is removed", "its agent", "delete the VM in Azure"], ["has left"]),
    ],
)
def test_a_vm_that_cannot_be_withdrawn_for_an_hour_is_told_with_what_to_do(row: Runner, told: list[str], untold: list[str]) -> None:
    (alert,) = conditions(NOW, ONE_REPOSITORY, gathered(row))
    assert (alert.id, alert.area) == (f"retiring-linux-repo-octo-org-{str(row.target).rpartition('/')[2]}", "safety")
    assert row.name in alert.text
    assert str(row.target) in alert.title
    assert [words for words in told if words not in alert.text] == []
    assert [words for words in untold if words in alert.text] == []


def test_a_vm_that_has_been_retiring_for_less_than_an_hour_is_no_condition() -> None:
    assert not conditions(NOW, ONE_REPOSITORY, gathered(retiring(age=HOUR)))


def test_vms_that_cannot_be_withdrawn_are_one_alert_a_target() -> None:
    rows = [retiring(f"{target[-3:]}{n:07d}", target) for target in (HELLO, OLD) for n in range(30)]
    first, second = conditions(NOW, ONE_REPOSITORY, gathered(*rows))
    assert ("30 VMs" in first.title, "30 VMs" in second.title, "…" in second.text) == (True, True, True)
    assert first.id != second.id


def test_vms_in_another_group_are_one_alert_that_names_both_places_and_no_other_speaks_of_them() -> None:
    rows = [retiring(f"{n:010d}", place=f"sub/old{n % 2}-rg", elsewhere=True) for n in range(30)]
    read = gathered(*rows, runner(S.READY))
    read.place = "sub/new-rg"
    (alert,) = conditions(NOW, ONE_REPOSITORY, read)
    assert (alert.id, alert.area, alert.title) == ("elsewhere", "setup", "30 VMs are in another resource group")
    assert "made in sub/old0-rg and sub/old1-rg" in alert.text
    assert "looks in sub/new-rg" in alert.text
    assert alert.text.count("hw-linux-") == NAMED
    assert "…" in alert.text


# ---------------------------------------------------------------------------------------------- services


def test_a_service_that_refuses_us_is_an_alert_in_its_own_words_and_one_that_is_away_is_none() -> None:
    read = Gathered(trouble={"github": "502", "azure": "403"}, misconfigured={"azure": Misconfigured("403", area="auth")})
    assert found(read) == [("service-azure", "auth")]


def test_only_what_is_new_is_told_and_what_is_no_longer_found_is_over() -> None:
    old, new = Alert("old", "auth", "t", ""), Alert("new", "auth", "t", "")
    assert changed([old, new, new], {"old": "t", "gone": "t"}) == ([new], ["gone"])


def test_a_pool_that_has_another_zone_to_try_has_not_run_out() -> None:
    zonal = config(pool(vm={"sizes": ["Standard_D4ads_v5"], "zones": ["1", "2"]}))
    one_zone = gathered(head=resting("regular Standard_D4ads_v5 zone 1", MINUTE))
    assert not conditions(NOW, zonal, one_zone)
