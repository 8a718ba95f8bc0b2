"""The read side: markets, their values and their history."""

from fastapi import APIRouter

router = APIRouter(prefix="/api")
