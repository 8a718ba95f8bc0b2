"""Dagster over its GraphQL: the one door through which the API starts and watches runs."""

from dataclasses import dataclass

import httpx

TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class DagsterClient:
    """Questions to Dagster's webserver.

    Attributes:
        url: Its address, without a slash at the end.
    """

    url: str

    def link_run(self, run_id: str) -> str:
        """Return where a run is shown to people."""
        return f"{self.url}/runs/{run_id}"

    async def is_reachable(self, timeout_seconds: float = TIMEOUT_SECONDS) -> bool:
        """Tell whether the webserver answers."""
        async with httpx.AsyncClient(timeout=timeout_seconds, trust_env=False) as client:
            try:
                return (await client.get(f"{self.url}/server_info")).is_success
            except httpx.HTTPError:
                return False
