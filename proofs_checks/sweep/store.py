"""The folder of a sweep, which a killed sweep leaves in order.

    design.json     the design and its SHA-256; another design in the same folder is refused
    rows.jsonl      one JSON object per finished case, appended the moment it is finished: this is the truth
    rows.parquet, rows.csv      the same rows in the order of the cases, written whole when a sweep ends or is stopped

A kill in the middle of an append leaves a last line without an end; it is cut off when the sweep goes on, and its
case is computed again. If a case has several lines the last one counts (it was tried again on request).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet

from specbound.files import replacing, write_text

from .design import Case, Design, cases
from .results import COLUMNS, Row, with_fractions

FORMAT, VERSION = "specbound.sweep", 1
SCHEMA = pyarrow.schema(
    [pyarrow.field(name, pyarrow.type_for_alias(kind), metadata={"text": text}) for name, kind, text in COLUMNS]
)


class Store:
    """A sweep's folder, open for writing by this process alone. Use as a context manager.

    Attributes:
        rows: finished rows by case id.

    Raises:
        ValueError: the folder holds another design, a damaged file, or is being written to by another sweep.
    """

    def __init__(self, folder: str | Path, design: Design) -> None:
        self.folder, self.design = Path(folder), design
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = open(self.folder / "rows.jsonl", "ab", buffering=0)  # noqa: SIM115 - closed in __exit__
        try:
            fcntl.flock(self.journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.journal.close()
            raise ValueError(f"another sweep is writing to {folder}; wait for it, or choose another folder") from None
        try:
            self._check_design()
            self.rows, end = _read_journal(self.folder)
            self.journal.truncate(end)
        except BaseException:
            self.journal.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.journal.close()

    def append(self, row: Row) -> None:
        """Keep a finished row; once this returns, no kill loses it."""
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        while line:
            line = line[self.journal.write(line) :]
        self.rows[row["id"]] = row

    def write_tables(self, everything: Sequence[Case]) -> None:
        """Write rows.parquet and rows.csv, each whole or not at all."""
        table = pyarrow.Table.from_pylist(in_order(self.rows, everything), schema=SCHEMA)
        for name, write in (("rows.parquet", pyarrow.parquet.write_table), ("rows.csv", pyarrow.csv.write_csv)):
            with replacing(self.folder / name) as partial:
                write(table, partial)

    def _check_design(self) -> None:
        stored = read_design(self.folder)
        if stored is None:
            if os.fstat(self.journal.fileno()).st_size:
                raise ValueError(f"{self.folder} holds rows.jsonl but no design.json; choose another folder")
            _write_design(self.folder, self.design)
            return
        if stored.version != self.design.version:
            raise ValueError(
                f"{self.folder} was computed by specbound {stored.version}, this is {self.design.version}; "
                "go on with that version, or choose another folder"
            )
        wanted = self.design.to_dict()
        for name, value in stored.to_dict().items():
            if value != wanted[name]:
                raise ValueError(
                    f"{self.folder} holds a sweep with {name} {_short(value)}, not {_short(wanted[name])}; "
                    "choose another folder, or give --out alone to continue it"
                )


def read(folder: str | Path) -> tuple[Design, list[Row]]:
    """The design and the finished rows of a sweep, in the order of its cases, whether or not it is complete.

    Raises:
        ValueError: there is no sweep in the folder, or a file of it is damaged.
    """
    folder = Path(folder)
    design = read_design(folder)
    if design is None:
        raise ValueError(f"{folder} holds no sweep (no design.json)")
    return design, in_order(_read_journal(folder)[0], cases(design))


def in_order(rows: Mapping[str, Row], everything: Sequence[Case]) -> list[Row]:
    """Those of the rows that there are, in the order of the cases, with their fractions."""
    return with_fractions([rows[case.id] for case in everything if case.id in rows])


def read_design(folder: Path) -> Design | None:
    """The design of the sweep in a folder, None if there is none.

    Raises:
        ValueError: design.json is damaged or was edited.
    """
    file = folder / "design.json"
    if not file.exists():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if (data["format"], data["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {data['format']!r} version {data['version']!r}")
        if _hash(data["design"]) != data["sha256"]:
            raise ValueError("its SHA-256 is not that of its design; it was edited")
        return Design.from_dict(data["design"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not the design of a sweep: {error}") from None


def _write_design(folder: Path, design: Design) -> None:
    plain = design.to_dict()
    data = {"format": FORMAT, "version": VERSION, "sha256": _hash(plain), "design": plain}
    write_text(folder / "design.json", json.dumps(data, indent=1) + "\n")


def _hash(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _read_journal(folder: Path) -> tuple[dict[str, Row], int]:
    """Rows by case id, and the length of the file without an unfinished last line."""
    file = folder / "rows.jsonl"
    text = file.read_bytes() if file.exists() else b""
    end = text.rfind(b"\n") + 1
    rows: dict[str, Row] = {}
    for number, line in enumerate(text[:end].splitlines(), start=1):
        try:
            row = json.loads(line)
            if set(row) != {column.name for column in COLUMNS}:
                raise ValueError("other columns")
            rows[row["id"]] = row
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{file}, line {number} is no row ({error}); delete it to compute its case again"
            ) from None
    return rows, end


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
