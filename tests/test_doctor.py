"""`python -m runnerpool doctor` on the sandbox: green where all is well, and red, with what mends it, for each fault."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from runnerpool.compute import AzureCompute
from runnerpool.doctor import look
from runnerpool.findings import Check, Finding
from sandbox.azurite import Azurite
from sandbox.github import AppIdentity, Group
from tests.azure_sandbox import AZURE, named
from tests.github_fixture import ORG
from tests.whole_sandbox import POOL, Whole, whole

GALLERY = (
    "/subscriptions/00000000-1111-2222-3333-444444444444/resourceGroups/hw-rg/providers/Microsoft.Compute/galleries/g/images/i"
)


@pytest.fixture(scope="module")
def storage() -> Iterator[Azurite]:
    """Of this module alone: the tables have the names that they have."""
    with Azurite() as running:
        yield running


@pytest.fixture
async def place(storage: Azurite, tmp_path: Path) -> AsyncIterator[Whole]:
    async with whole(storage, tmp_path) as running:
        yield running


def levels(lines: list[str]) -> dict[str, list[str]]:
    return {level: [line for line in lines if line.startswith(f"{level:<4}  ")] for level in ("ok", "warn", "FAIL")}


async def test_a_sound_deployment_is_green_from_end_to_end(place: Whole) -> None:
    code, lines = await place.doctor()
    found = levels(lines)
    assert (code, found["FAIL"], found["warn"]) == (0, [], [])
    checked = {line[6:].partition(":")[0] for line in found["ok"]}
    assert checked >= {
        *("settings", "pool file", "Azure credential", "resource group", "Azure permissions", "subnet", "agent's port"),
        *(
            "outbound route",
            "name servers",
            "sizes of linux",
            "image of linux",
            "quota of linux",
            "GitHub credential",
            "GitHub permissions",
        ),
        *("jobs", "runner group", "runner version of linux", "webhook", "deliveries of /orgs/octo-org/hooks/501"),
        *("table runnerpool", "table history", "app", "alert webhook"),
    }
    assert lines[-1].endswith("0 to mend, 0 to know about")


async def test_nothing_is_changed_by_looking(place: Whole) -> None:
    before = await place.ledger.app_rows()
    await place.doctor()
    assert await place.ledger.app_rows() == before
    assert not place.arm.calls["vm.put"] + place.arm.calls["vm.delete"] + place.arm.calls["nic.delete"]
    assert not place.github.world.runners
    assert [hook.url for hook in place.github.deliveries.hooks] == [place.receiver.url]


async def test_no_secret_is_printed(place: Whole) -> None:
    place.github_answers(403, "hooks", message="Resource not accessible by personal access token")
    text = "\n".join((await place.doctor())[1])
    for name in ("GITHUB_TOKEN", "GITHUB_WEBHOOK_SECRET", "RUNNER_AGENT_KEY", "RUNNER_STATUS_TOKEN", "ALERT_WEBHOOK_URL"):
        assert place.env[name] not in text


# ---------------------------------------------------------------------------------------------- every fault

Fault = Callable[[Whole], Awaitable[None] | None]


def around(**wish: Any) -> Fault:
    return lambda place: place.around(**wish)


def env(**values: str) -> Fault:
    return lambda place: place.env.update(values)


def vm(**changes: Any) -> Fault:
    return lambda place: place.write({**POOL, "vm": {**POOL["vm"], **changes}})


def azure(operation: str, status: int, code: str) -> Fault:
    return lambda place: place.azure_fails(operation, status, code)


def hub(status: int, path: str, method: str = "") -> Fault:
    return lambda place: place.github_answers(status, path, method=method)


def hook(**changes: Any) -> Fault:
    def change(place: Whole) -> None:
        for name, value in changes.items():
            setattr(place.github.deliveries.hooks[0], name, value)

    return change


def quotas(**limits: int) -> Fault:
    return lambda place: place.arm.quotas.update({name.replace("_", " "): limit for name, limit in limits.items()})


def answered(*codes: int) -> Fault:
    """The app's answers to further deliveries."""

    async def deliver(place: Whole) -> None:
        for code in codes:
            place.receiver.answers = [code]
            place.github.world.queue(f"{ORG}/backend", ["linux"])
            await place.github.deliveries.settled()

    return deliver


def no_hook(place: Whole) -> None:
    place.github.deliveries.hooks.clear()


def spot(**pool: Any) -> Mapping[str, Any]:
    return {**POOL, "vm": {**POOL["vm"], "priority": "spot"}, "rerun_evicted": True, **pool}


def no_rerun(place: Whole) -> None:
    place.write(spot())
    place.github_answers(403, "/rerun", method="POST", message="Resource not accessible by personal access token")


def spot_quota(place: Whole) -> None:
    place.write(spot(rerun_evicted=False))
    place.arm.quotas["LowPriorityCores"] = 8


def another_key(place: Whole) -> None:
    """The nearest to a missing role: Azurite knows keys only."""
    before, _, after = place.env["AzureWebJobsStorage"].partition("AccountKey=")
    place.env["AzureWebJobsStorage"] = f"{before}AccountKey=AAAA;{after.partition(';')[2]}"


RED: list[tuple[str, Fault, str, str]] = [
    ("a setting is missing", env(RUNNER_AGENT_KEY=""), "settings: RUNNER_AGENT_KEY", "docs/deploy.md#settings"),
    ("a setting is wrong", env(SMTP_PORT="none"), "settings: SMTP_PORT: 'none' is not a whole number", "docs/deploy.md#settings"),
    ("no webhook secret", env(GITHUB_WEBHOOK_SECRET=""), "settings: GITHUB_WEBHOOK_SECRET", "docs/deploy.md#settings"),
    ("a key is unknown", vm(colour="red"), "pool file: ", "python -m runnerpool check"),
    (
        "the token is refused",
        env(GITHUB_TOKEN="gone"),
        "GitHub credential: GitHub answered 401",
        "docs/deploy.md#github-credentials",
    ),
    (
        "Azure refuses the token",
        azure("vm.list", 401, "InvalidAuthenticationToken"),
        "Azure permissions: ",
        "az role assignment create",
    ),
    (
        "no group",
        azure("group.get", 404, "ResourceGroupNotFound"),
        "resource group: ",
        "az group create --name hw-rg --location westus",
    ),
    ("no right to the group", azure("group.get", 403, "AuthorizationFailed"), "resource group: ", "az role assignment create"),
    ("no right to list", azure("vm.list", 403, "AuthorizationFailed"), "Azure permissions: list VMs", "az role assignment create"),
    ("no right to make", around(denied=["*/virtualMachines/write"]), "lacks Microsoft.Compute/virtualMachines/write", "az role"),
    ("no right to join", around(denied=["*/join/action"]), "subnets/join/action", "az role assignment create"),
    ("no subnet", lambda place: place.write(azure={"subnet": "other"}), "subnet: there is no", "az network vnet subnet create"),
    ("no addresses", around(addresses_taken=4_194_298), "room for 1 VMs, the pools may hold 4", "subnet update"),
    ("no security group", lambda place: place.write(azure={"network_security_group": "x"}), "agent's port: there is", "nsg create"),
    ("the agent's port", around(agent_port_open=False), "agent's port: hw-nsg (nothing-else) keeps functions", "nsg rule create"),
    ("no way out", around(nat_gateway=False), "outbound route: hw-subnet has neither", "--nat-gateway"),
    ("a route to nowhere", around(next_hop="None"), "outbound route: the route table", "--nat-gateway"),
    ("names", around(dns_servers=["10.10.9.4"], names_open=False), "keeps runners from 10.10.9.4", "nsg rule create"),
    ("443 is denied", around(web_open=False), "outbound route: hw-nsg (no-web) denies 443", "https://docs.github.com/"),
    ("an unknown size", vm(sizes=["Standard_D5x_v9"]), "Standard_D5x_v9: there is no such size", "az vm list-skus"),
    ("a size not offered", around(not_offered=["Standard_D4ads_v5"]), "not offered to this subscription", "az vm list-skus"),
    ("zones closed", around(closed_zones={"Standard_D4ads_v5": ["1", "2"]}), "any of the zones 1, 2", "az vm list-skus"),
    ("no local disk", vm(sizes=["Standard_D4as_v5"]), "takes no ephemeral OS disk", "az vm list-skus"),
    ("no image", around(images={}), "image of linux: Canonical:ubuntu-24_04-lts:server:latest is not offered", "az vm image list"),
    ("no gallery image", vm(image=GALLERY), "image of linux: ", "az sig image-version update"),
    ("another processor", vm(sizes=["Standard_D4pds_v5"]), "does not run on Standard_D4pds_v5", "one architecture"),
    ("family quota", quotas(standardDADSv5Family=8), "room for 2 of 4 VMs", "https://portal.azure.com/"),
    ("spot quota", spot_quota, "room for 2 of 4 VMs (lowprioritycores 0 of 8", "https://portal.azure.com/"),
    ("regional quota", quotas(Total_Regional_Cores=4), "room for 1 of 4 VMs", "https://portal.azure.com/"),
    ("no right to list runners", hub(403, "/actions/runners[?]"), "GitHub permissions: ", "docs/deploy.md#github-credentials"),
    ("no right to register", hub(403, "generate-jitconfig"), "GitHub permissions: ", "docs/deploy.md#github-credentials"),
    ("no right to read jobs", hub(404, "/actions/runs"), "jobs: ", "docs/deploy.md#github-credentials"),
    ("no right to run again", no_rerun, "jobs: GitHub answered 403", "docs/deploy.md#github-credentials"),
    ("no runner group", lambda place: place.write(runner_group="GPU"), "no runner group 'GPU'", "settings/actions/runner-groups"),
    ("public repositories", lambda place: place.write(allow_public_repositories=True), "closed to public", "runner-groups"),
    ("a version to come", vm(runner_version="9.0.0"), "9.0.0 is pinned, GitHub's latest is 2.330.0", "auto"),
    ("no webhook", no_hook, "webhook: org:octo-org has none", "python -m runnerpool webhook install"),
    ("another event", hook(events=("push",)), "webhook: /orgs/octo-org/hooks/501", "python -m runnerpool webhook install"),
    ("a form", hook(content_type="form"), "its content type is form", "python -m runnerpool webhook install"),
    ("switched off", hook(active=False), "it is switched off", "python -m runnerpool webhook install"),
    ("unsigned", hook(secret=""), "it has no secret", "python -m runnerpool webhook install"),
    ("not https", hook(url="http://app.example.com/github/webhook"), "not https", "python -m runnerpool webhook install"),
    ("a wrong secret", answered(401), "the last one", "the secrets differ"),
    ("a wrong address", answered(404), "failed: 404", "the address is not the app's"),
    ("the app fails", answered(500), "failed: 500", "see whether the app runs"),
    ("storage refuses", another_key, "tables: table runnerpool", "'Storage Table Data Contributor'"),
    ("the queue refuses", another_key, "queue: queue job-demand", "'Storage Queue Data Contributor'"),
    (
        "a stale heartbeat",
        lambda place: place.beat(age=timedelta(minutes=3)),
        "app: its last reconcile pass",
        "when-nothing-happens",
    ),
    ("an app in trouble", lambda place: place.beat(trouble={"azure": "401"}), "in trouble: azure: 401", "when-nothing-happens"),
    (
        "the mail server",
        env(SMTP_HOST="127.0.0.1", SMTP_PORT="1", ALERT_FROM="a@b.c", ALERT_TO="d@e.f"),
        "mail server: ",
        "SMTP_PORT",
    ),
]


@pytest.mark.parametrize(("fault", "finding", "mend"), [case[1:] for case in RED], ids=[case[0] for case in RED])
async def test_each_fault_is_red_and_says_what_mends_it(place: Whole, fault: Fault, finding: str, mend: str) -> None:
    begun = fault(place)
    if begun is not None:
        await begun
    code, lines = await place.doctor()
    red = [line for line in levels(lines)["FAIL"] if finding in line]
    assert code == 1
    assert red, lines
    assert mend in red[0].partition(" → ")[2]


WARNED: list[tuple[str, Fault, str]] = [
    ("one zone closed", around(closed_zones={"Standard_D4ads_v5": ["1"]}), "only in zones 2, not in 1"),
    ("one size of two", vm(sizes=["Standard_D4ads_v5", "Standard_D5x_v9"]), "Standard_D5x_v9: there is no such size"),
    ("runners reach each other", around(runners_apart=False), "lets runners reach each other"),
    ("no function subnet", around(function_subnet=False), "no subnet delegated to a function app"),
    ("default outbound access", around(nat_gateway=False, default_outbound=True), "relies on Azure's default outbound access"),
    (
        "permissions cannot be seen",
        azure("permissions.list", 403, "AuthorizationFailed"),
        "Microsoft.Authorization/permissions/read",
    ),
    ("an older runner", vm(runner_version="2.300.0"), "2.300.0 is pinned"),
    ("webhooks cannot be seen", hub(403, "/hooks"), "webhook: cannot be looked at"),
    ("failed before", answered(500, 202), "1 of the last 3 failed (1 × 500)"),
    ("no alerts", env(ALERT_WEBHOOK_URL=""), "nobody is told"),
    ("no status token", env(RUNNER_STATUS_TOKEN=""), "/runner/status answers nobody"),
]


@pytest.mark.parametrize(("fault", "finding"), [case[1:] for case in WARNED], ids=[case[0] for case in WARNED])
async def test_what_works_and_may_disappoint_is_a_warning_and_no_failure(place: Whole, fault: Fault, finding: str) -> None:
    begun = fault(place)
    if begun is not None:
        await begun
    code, lines = await place.doctor()
    (line,) = [line for line in levels(lines)["warn"] if finding in line]
    assert line.partition(" → ")[2]
    assert (code, levels(lines)["FAIL"]) == (0, [])


# ---------------------------------------------------------------------------------------------- other ways to deploy


async def test_a_route_through_an_appliance_and_a_proxy_are_ways_out(place: Whole) -> None:
    place.around(nat_gateway=False, next_hop="VirtualAppliance")
    assert "ok    outbound route: hw-subnet sends everything to 10.10.2.4 (VirtualAppliance)" in (await place.doctor())[1]
    place.around(next_hop="")
    place.write({**POOL, "vm": {**POOL["vm"], "proxy": {"http_proxy": "http://proxy.example.com:3128"}}})
    assert "ok    outbound route: every pool has its http_proxy" in (await place.doctor())[1]


async def test_a_gallery_image_is_known_by_its_version_in_the_region(place: Whole) -> None:
    place.around(images={GALLERY: "x64"})
    place.write({**POOL, "vm": {**POOL["vm"], "image": GALLERY}})
    code, lines = await place.doctor()
    assert code == 0
    assert f"ok    image of linux: {GALLERY} (1.0.0, x64)" in lines


async def test_our_own_vms_take_nothing_from_the_room_for_themselves(place: Whole) -> None:
    place.arm.quotas["standardDADSv5Family"] = 16
    compute = AzureCompute(
        subscription_id=place.arm.subscription_id, azure=AZURE, endpoint=place.env["ARM_ENDPOINT"], credential=None
    )
    tags = {"runnerpool": "hw", "runnerpool-pool": "linux"}
    await compute.create_vm(replace(named("x"), name="hw-linux-aaaaaaaaaa", tags=tags))
    await place.arm.lifecycle.settle()
    await compute.close()
    code, lines = await place.doctor()
    assert code == 0
    (line,) = [line for line in lines if "quota of linux" in line]
    assert "room for all 4 VMs" in line
    assert "standarddadsv5family 4 of 16 vCPUs used" in line


def app_key(permissions: dict[str, str], events: tuple[str, ...] = ("workflow_job",)) -> tuple[AppIdentity, dict[str, str]]:
    """An App, and the settings that use it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    settings = {"GITHUB_TOKEN": "", "GITHUB_APP_ID": "4711", "GITHUB_APP_INSTALLATION_ID": "77"}
    return AppIdentity(4711, 77, public.decode(), permissions, events), {**settings, "GITHUB_APP_PRIVATE_KEY": private.decode()}


@pytest.mark.parametrize(
    ("permissions", "events", "finding"),
    [
        ({"organization_self_hosted_runners": "write", "actions": "read"}, ("workflow_job",), ""),
        (
            {"organization_self_hosted_runners": "read", "actions": "read"},
            ("workflow_job",),
            "lacks organization_self_hosted_runners",
        ),
        ({"organization_self_hosted_runners": "write", "actions": "read"}, ("push",), "the App is not subscribed to workflow_job"),
    ],
)
async def test_an_app_is_known_by_its_permissions_and_events(
    storage: Azurite, tmp_path: Path, permissions: dict[str, str], events: tuple[str, ...], finding: str
) -> None:
    app, settings = app_key(permissions, events)
    async with whole(storage, tmp_path, app=app, hook_on="app") as place:
        place.env |= settings
        code, lines = await place.doctor()
    assert code == (1 if finding else 0), lines
    assert [line for line in levels(lines)["FAIL"] if finding in line] == levels(lines)["FAIL"]
    assert bool(levels(lines)["FAIL"]) is bool(finding)


async def test_every_repository_of_the_scope_needs_its_webhook(storage: Azurite, tmp_path: Path) -> None:
    names = [f"{ORG}/backend", f"{ORG}/website"]
    async with whole(storage, tmp_path, repositories=names, hook_on="repo") as place:
        place.write(scope="repo", repositories=["backend", "website"])
        place.github.deliveries.hooks.pop()
        _, lines = await place.doctor()
    assert [line.partition(" → ")[0] for line in levels(lines)["FAIL"]] == [
        "FAIL  webhook: repo:octo-org/website has none that ends in /github/webhook"
    ]


async def test_a_runner_group_for_some_repositories_is_worth_a_look(storage: Azurite, tmp_path: Path) -> None:
    async with whole(storage, tmp_path, groups=[Group(1, "Default", frozenset())]) as place:
        _, lines = await place.doctor()
    assert any("Default admits chosen repositories" in line for line in levels(lines)["warn"])


# ---------------------------------------------------------------------------------------------- when services do not answer


async def test_a_service_that_hangs_costs_its_own_checks_their_time_and_no_other_check_anything(place: Whole) -> None:
    place.arm.faults.add({"kind": "hang", "seconds": 60.0})
    code, lines = await place.doctor(seconds=2.0)
    assert code == 1
    assert "FAIL  resource group: no answer within 2 s" in "\n".join(lines)
    assert [line for line in levels(lines)["ok"] if "webhook" in line]


async def test_a_broken_pool_file_leaves_storage_and_settings_to_look_at(place: Whole) -> None:
    place.pool_file.write_text("pools: 3")
    _, lines = await place.doctor()
    assert "ok    table runnerpool: can be read" in lines
    assert any("Azure and GitHub: not looked at" in line for line in levels(lines)["warn"])


async def test_a_check_with_a_defect_of_its_own_says_so() -> None:
    async def broken() -> list[Finding]:
        raise ZeroDivisionError("oops")

    (finding,) = await look(Check("this", broken, "that"))
    assert str(finding) == "FAIL  this: the check itself failed: ZeroDivisionError: oops → that"
