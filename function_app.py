"""Triggers only: what each function is bound to, and the one call that it makes.

Our own modules are imported inside the functions: an error in one of them, or in a setting or the pool file, must not keep the host
from finding the functions, and the webhook must not wait for the SDKs that only `provision` and `reconcile` use.
"""

from __future__ import annotations

import json

import azure.functions as func

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)

STORAGE = "AzureWebJobsStorage"


@app.route(route="github/webhook", methods=["POST"])
@app.queue_output(arg_name="wakeup", queue_name="job-demand", connection=STORAGE)
@app.table_output(arg_name="fact", table_name="runnerpool", connection=STORAGE)
async def webhook(req: func.HttpRequest, fact: func.Out[str], wakeup: func.Out[str]) -> func.HttpResponse:
    from runnerpool import front

    receipt = front.receive(req.get_body(), req.headers)
    if receipt.row is not None:
        fact.set(json.dumps(receipt.row))
    if receipt.wakeup is not None:
        wakeup.set(json.dumps(receipt.wakeup))
    return _answer(receipt.status, receipt.body)


@app.queue_trigger(arg_name="message", queue_name="job-demand", connection=STORAGE)
async def provision(message: func.QueueMessage) -> None:
    from runnerpool.app import current

    await current().provision(message.get_body(), message.id or "", message.dequeue_count or 1)


@app.timer_trigger(arg_name="tick", schedule="*/30 * * * * *", run_on_startup=False, use_monitor=False)
async def reconcile(tick: func.TimerRequest) -> None:
    from runnerpool.app import current

    await current().reconcile()


@app.route(route="runner/status", methods=["GET"])
async def runner_status(req: func.HttpRequest) -> func.HttpResponse:
    from runnerpool import front

    status, body = await front.runner_status(req.headers)
    return _answer(status, body)


def _answer(status: int, body: object) -> func.HttpResponse:
    return func.HttpResponse(json.dumps(body), status_code=status, mimetype="application/json")
