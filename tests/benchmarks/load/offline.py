"""Part (a): a classifier through the service, between a loop that scores each request alone and the offline limit."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from tests.benchmarks.load.reward_model import Alone, Offline, compare, ratio, report, save_model, service
from tests.benchmarks.load.settings import Settings

AIM_ALONE = 3.0
AIM_OFFLINE = 0.85


def run(settings: Settings) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        asyncio.run(_run(save_model(Path(folder), settings.device), settings))


async def _run(model: str, settings: Settings) -> None:
    async with service(model, settings) as served:
        results = await compare([Alone("each alone", model), served, Offline("offline", model)], settings)
    report(results)
    print(
        f"The service scores {ratio(results, 'service', 'each alone'):.2f} × the completions of the loop "
        f"(aim: {AIM_ALONE:g}) and {ratio(results, 'service', 'offline'):.0%} of the limit (aim: {AIM_OFFLINE:.0%})."
    )
