"""The act of creating: a registration at birth where that is wise, then one PUT, down the ladder of offers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from runnerpool.acting import Acting
from runnerpool.capacity import Rung, architecture, is_capacity, next_rung, rest_after, resting
from runnerpool.errors import Conflict, Misconfigured, NoCapacity, PoolError, RetryLater
from runnerpool.model import Runner, RunnerState
from runnerpool.ports import JitConfig, Registration, RunnerPackage, Vm, VmSpec, VmState
from runnerpool.register import mint, target_of

log = logging.getLogger(__name__)
S = RunnerState

PUT_TIME = timedelta(minutes=2)
"""How long one PUT is tried, again and again, before a later act goes on with it."""
PUT_HORIZON = timedelta(minutes=10)
"""So long after the last PUT left us a 404 is final."""
QUICK_BOOT = 180.0
"""Seconds. Where a pool boots slower, GitHub may drop the idle registration before its runner ever connects."""

PACKAGE_AGE = timedelta(hours=1)
"""GitHub releases a runner every few weeks: an answer of its downloads endpoint serves many VMs."""

RUNNER_ID_TAG = "runnerpool-runner-id"


async def births(acting: Acting, runners: list[Runner]) -> dict[str, datetime]:
    """Which new VMs are registered at birth, each with its token: those made for a job, where the pool boots quickly and GitHub's
    budget allows it at once. The others boot unregistered, and are bound when a job needs them."""
    wanted = [runner.name for runner in runners if runner.state is S.REQUESTED and runner.target is not None]
    if not wanted or (acting.head.boot_seconds or 0.0) > QUICK_BOOT:
        return {}
    now = acting.clock()
    granted = await acting.ledger.take("github-writes", len(wanted), now)
    return dict.fromkeys(wanted[:granted], now)


async def create(acting: Acting, runner: Runner, *, born: datetime | None) -> None:
    """From the claimed intent to a VM that Azure accepted, a refusal, or a later attempt. `born`: the token for registering it."""
    if runner.state is S.CREATING and await adopt(acting, runner):
        return
    if runner.minted_at is not None and born is None:
        # An attempt that was cut short may have registered it: go on as it began. The token comes before any question to GitHub:
        # an act that asks and then finds the budget used up would come back and ask again, and again.
        born = await acting.token("github-writes")
    try:
        left = await _left_behind(acting, runner)
    except Misconfigured as error:  # where a repository is gone for good, nobody would ever hear more
        await _refused(acting, runner, error, sure=False)
        return
    if _used_up(runner, left):
        await acting.fail(runner, "its registration has been in use, and its VM is gone")
        return
    token = await acting.token("arm-writes")
    claimed = await _begin(acting, runner, born=born is not None)
    if claimed is None:
        return
    config: JitConfig | None = None
    try:
        package = await _package(acting, claimed)  # first: without it a registration would be minted in vain
        if born is not None:
            try:
                ready, config = await _register(acting, claimed, born, left)
            except Misconfigured as error:
                await _refused(acting, claimed, error, sure=True)
                return
            if ready is None:
                return
            claimed = ready
        await _put(acting, claimed, token, package, config)
    except Misconfigured as error:
        await acting.rest_whole_pool(str(error))
        await acting.fail(claimed, str(error), refused=True)


async def _refused(acting: Acting, runner: Runner, error: Misconfigured, *, sure: bool) -> None:
    """GitHub does not take our runners where this one would be registered: others need not find that out one by one. `sure`: at
    the first attempt no VM was asked for."""
    await acting.rest_refused(target_of(runner), error)
    await acting.fail(runner, str(error), refused=sure)


async def _begin(acting: Acting, runner: Runner, *, born: bool) -> Runner | None:
    """Writes, before anything is done, that a registration may be minted and a VM may come to exist."""
    now = acting.clock()

    def begun(row: Runner) -> Runner:
        claim = {"claimed_by": row.claimed_by, "claimed_until": row.claimed_until}
        row = row.move(S.CREATING, now, row.reason, **claim, attempts=row.attempts)
        target = row.target if born else None
        return replace(row, target=target, minted_at=row.minted_at or (now if born else None), attempts=row.attempts + 1)

    return await acting.revise(runner, begun)


async def _register(
    acting: Acting, runner: Runner, token: datetime, left: Registration | None
) -> tuple[Runner | None, JitConfig | None]:
    """Mints the JIT config and writes its id before it goes anywhere. Where GitHub throttles, the VM boots unregistered."""
    first = runner.attempts <= 1
    try:
        config = await mint(acting, runner, token, left)
    except Misconfigured:
        if first:
            await acting.revise(runner, lambda row: replace(row, minted_at=None))
        raise
    except RetryLater as error:
        if error.uncertain or not first:
            raise
        return await acting.revise(runner, lambda row: replace(row, minted_at=None, target=None)), None
    return await acting.revise(runner, lambda row: replace(row, github_id=config.runner_id)), config


async def adopt(acting: Acting, runner: Runner) -> bool:
    """After an attempt whose end nobody saw: whether its VM is there, and then what becomes of it."""
    vm = await acting.call(lambda: acting.outside.compute.get_vm(runner.name))
    if vm is None:
        return False
    expected = str(runner.github_id) if runner.github_id is not None else ""
    carried = vm.tags.get(RUNNER_ID_TAG, "")
    if carried != expected:
        # Its JIT config is not the one that the row knows: not ours to trust.
        await acting.fail(runner, f"its VM carries the GitHub runner id {carried or 'none'}, its row {expected or 'none'}")
    elif vm.state is VmState.FAILED:
        await _provisioning_failed(acting, runner, vm)
    else:
        await _accepted(acting, runner, others=True)
    return True


async def _left_behind(acting: Acting, runner: Runner) -> Registration | None:
    """After an attempt whose end nobody saw, and with no VM there: the registration with which a VM was asked for."""
    if not _asked_for(runner):
        return None
    return await acting.call(lambda: acting.outside.github.find_runner(target_of(runner), runner.name))


def _used_up(runner: Runner, left: Registration | None) -> bool:
    """Whether its registration shows that there was a VM, which has been evicted since. What is told of that VM's job must not
    count for another one, so its name is not used again."""
    if left is None:
        return _asked_for(runner) and runner.spot  # of a regular VM GitHub just drops what idles
    return left.online or left.busy


def _asked_for(runner: Runner) -> bool:
    """Whether an earlier attempt may have asked for a VM with a registration."""
    return runner.state is S.CREATING and runner.github_id is not None and runner.put_until is not None


async def _provisioning_failed(acting: Acting, runner: Runner, vm: Vm) -> None:
    if is_capacity(vm.error_code, vm.error):
        key, rest = rest_after(Rung(runner.size, runner.zone, runner.spot), vm.error_code, vm.error, acting.clock())
        await acting.rest(key, rest)
    await acting.fail(runner, f"Azure could not provision it: {vm.error_code} {vm.error}")


async def _put(acting: Acting, runner: Runner, token: datetime | None, package: RunnerPackage, config: JitConfig | None) -> None:
    """Down the ladder: an offer that Azure refuses rests, and the next one is tried at once under the same name. `token`
    is the first PUT's."""
    asked = _Asked(acting, runner, acting.outside.user_data(acting.pool, runner.name, package, config))
    refusal = ""
    rung: Rung | None = Rung(runner.size, runner.zone, runner.spot)
    rest = resting(Rung(runner.size, runner.zone, runner.spot), acting.head.rests, acting.clock())
    if rest is not None:  # another act was refused it meanwhile
        refusal, rung = rest.code, next_rung(acting.pool.vm, acting.head.rests, acting.clock(), regular=bool(runner.regular))
    while rung is not None:
        try:
            sent = await asked.until_answered(rung, prepaid=token)
        except NoCapacity as error:
            refusal = str(error)
            log.warning("pool %s: no capacity for %s: %s", acting.pool.name, rung, error)
            await acting.rest(*rest_after(rung, error.code, error.detail, acting.clock()))
            rung, token = next_rung(acting.pool.vm, acting.head.rests, acting.clock(), regular=bool(runner.regular)), None
        except Conflict:
            if not await adopt(acting, asked.runner):
                raise RetryLater(f"Azure says that a VM {runner.name} exists, and does not show it") from None
            return
        else:
            if sent:
                await _accepted(acting, asked.runner)
            return
    await acting.fail(runner, f"no offer is left: {refusal}", refused=True)


@dataclass(slots=True)
class _Asked:
    """A VM that Azure is asked for until it answers; `runner` is the row as it was last written."""

    acting: Acting
    runner: Runner
    data: str

    async def until_answered(self, rung: Rung, *, prepaid: datetime | None) -> bool:
        """PUTs, the first of them for a token that the caller may have taken. False: the row is no longer ours to make a VM for."""
        return await self.acting.paid("arm-writes", lambda: self._send(rung), within=PUT_TIME, prepaid=prepaid)

    async def _send(self, rung: Rung) -> bool:
        """One PUT. A repetition, too, is written down before it leaves, and none leaves when the row has moved on (False): the VM
        of an earlier one that got no answer has had its job since, and may be gone already."""
        try:
            ready = await self.acting.revise(self.runner, _on(rung, self.acting))
        except Conflict as error:  # the row's: Azure's own says that the VM exists
            raise RetryLater(str(error)) from None
        if ready is None:
            return False
        self.runner = ready
        try:
            await self.acting.outside.compute.create_vm(_spec(self.acting, ready, self.data))
        except RetryLater as error:
            if error.uncertain:
                self.acting.doubtful.add(ready.name)
            raise
        return True


def _on(rung: Rung, acting: Acting) -> Callable[[Runner], Runner]:
    """The row, about to be PUT on this rung: from here on its VM may exist."""
    horizon = acting.clock() + PUT_HORIZON
    shape, place = acting.pool.vm.shape, acting.outside.place or None
    return lambda row: replace(row, size=rung.size, zone=rung.zone, spot=rung.spot, shape=shape, place=place, put_until=horizon)


async def _accepted(acting: Acting, runner: Runner, *, others: bool = False) -> None:
    """`others`: the PUT was not this attempt's own, so nobody knows whether a repetition of it is still on its way."""
    now = acting.clock()

    def booting(row: Runner) -> Runner:
        # Where the first attempt's every PUT was answered none can be on its way, so a later 404 is final at once.
        sole = runner.attempts <= 1 and runner.name not in acting.doubtful and not others
        horizon = None if sole else row.put_until
        if row.state is S.CREATING:
            return row.move(S.BOOTING, now, "Azure accepted it", accepted_at=now, put_until=horizon)
        return replace(row, accepted_at=row.accepted_at or now, put_until=horizon)

    await acting.ledger.revise_runner(runner, booting)


async def _package(acting: Acting, runner: Runner) -> RunnerPackage:
    """The runner that the bootstrap downloads where the image has none: GitHub's own choice, or the pinned version."""
    system, arch = ("win" if acting.pool.vm.os == "windows" else "linux"), architecture(runner.size)
    async with acting.alone(f"runner package for {system} on {arch}"):
        asked_at, offered = acting.outside.packages.get((system, arch), (None, None))
        if offered is None or asked_at is None or acting.clock() - asked_at > PACKAGE_AGE:
            if (refusal := acting.no_packages.get((system, arch))) is not None:
                raise refusal
            try:
                offered = await _offered(acting, runner, system, arch)
            except PoolError as error:
                acting.no_packages[system, arch] = error
                raise
            acting.outside.packages[system, arch] = (acting.clock(), offered)
    pinned = acting.pool.vm.runner_version
    if pinned in ("auto", offered.version):
        return offered
    return RunnerPackage(version=pinned, url=offered.url.replace(offered.version, pinned), sha256="")


async def _offered(acting: Acting, runner: Runner, system: str, arch: str) -> RunnerPackage:
    """GitHub's answer is the same everywhere, so a repository that refuses to give it stops nobody else's VM."""
    outside = acting.outside
    first = [] if runner.target is None else [runner.target]
    *others, last = dict.fromkeys([*first, outside.anchor, *outside.others])
    for target in others:
        try:
            return await acting.ask_github(lambda target=target: outside.github.runner_package(target, system, arch))  # type: ignore[misc]
        except Misconfigured as error:
            if error.area != "auth" or error.everywhere:
                raise
    return await acting.ask_github(lambda: outside.github.runner_package(last, system, arch))


def _spec(acting: Acting, runner: Runner, data: str) -> VmSpec:
    vm = acting.pool.vm
    tags = {**acting.outside.tags, "runnerpool-pool": acting.pool.name}
    if runner.github_id is not None:
        tags[RUNNER_ID_TAG] = str(runner.github_id)
    return VmSpec(
        name=runner.name,
        size=runner.size,
        zone=runner.zone,
        spot=runner.spot,
        image=vm.image,
        ephemeral_disk=vm.os_disk.ephemeral,
        disk_gb=vm.os_disk.size_gb,
        admin_username=vm.admin_username,
        ssh_public_key=vm.ssh_public_key,
        os=vm.os,
        custom_data=data,
        tags=tags,
    )
