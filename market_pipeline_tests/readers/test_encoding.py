"""Frames as bytes: every dtype that readers use comes back as it was, what is unknown stays so."""

import io
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from market_pipeline.readers.encoding import ENCODERS, encode_json, list_records

TIMES = pd.DatetimeIndex(["2024-02-29T23:59:59.999999Z", "2024-03-01T00:00:00Z"], name="open_time")
FRAME = pd.DataFrame(
    {
        "symbol": pd.array(["BTC-USD", None], dtype="str"),
        "close": [0.1, float("nan")],
        "n_returns": pd.array([3, None], dtype="Int64"),
        "dataset_version": [7, 8],
        "is_assumed": [True, False],
        "as_of": pd.array(["2024-02-29T00:00Z", None], dtype="datetime64[us, UTC]"),
    },
    index=TIMES.as_unit("us"),
)
FRAME.attrs["dataset_version"] = 8
READERS = {
    "arrow": lambda body: pa.ipc.open_stream(body).read_all(),
    "parquet": lambda body: pq.read_table(io.BytesIO(body)),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("frame", [FRAME, FRAME.iloc[:0]], ids=["rows", "none"])
def test_pandas_gets_its_own_dtypes_again(kind: str, frame: pd.DataFrame) -> None:
    """With the index as the first column, and what the frame tells of itself."""
    table = READERS[kind](b"".join(ENCODERS[kind](frame)))
    pd.testing.assert_frame_equal(table.to_pandas(), frame.reset_index(), check_flags=False)
    assert table.schema.metadata[b"market_pipeline.dataset_version"] == b"8"


@pytest.mark.parametrize("kind", READERS)
def test_what_is_unknown_is_null(kind: str) -> None:
    """Never NaN, also for those who read without pandas."""
    table = READERS[kind](b"".join(ENCODERS[kind](FRAME)))
    unknown = dict.fromkeys(("symbol", "close", "n_returns", "as_of"))
    row = table.to_pylist()[1]
    assert {name: row[name] for name in unknown} == unknown
    assert (row["dataset_version"], row["is_assumed"]) == (8, False)


def test_json_has_the_values_of_every_dtype() -> None:
    """ISO 8601 times, numbers and booleans as such, null for what is unknown."""
    assert json.loads(encode_json(list_records(FRAME))) == [
        {
            "open_time": "2024-02-29T23:59:59.999999Z",
            "symbol": "BTC-USD",
            "close": 0.1,
            "n_returns": 3,
            "dataset_version": 7,
            "is_assumed": True,
            "as_of": "2024-02-29T00:00:00Z",
        },
        {
            "open_time": "2024-03-01T00:00:00Z",
            "symbol": None,
            "close": None,
            "n_returns": None,
            "dataset_version": 8,
            "is_assumed": False,
            "as_of": None,
        },
    ]


def test_csv_is_the_same_in_one_piece_or_several() -> None:
    """A header once; nothing between pieces."""
    long = pd.concat([FRAME] * 3_000)
    pieces = list(ENCODERS["csv"](long))
    lines = b"".join(pieces).decode().splitlines()
    assert (len(pieces), len(lines)) == (2, 1 + 6_000)
    assert lines[1:3] * 3_000 == lines[1:]
