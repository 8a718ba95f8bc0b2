"""Pages for people: the dashboard, rendered on the server."""

from fastapi import APIRouter

router = APIRouter(include_in_schema=False)
