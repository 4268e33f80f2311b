"""What the first cowengine wrote is still listed, verified and restored."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest

from cowengine.backup import list_backups, load_documents, restore, restore_stream, verify_backup

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("version", ["v1"])
def test_a_golden_target_is_read(tmp_path: Path, version: str) -> None:
    target = tmp_path / "target"
    with zipfile.ZipFile(GOLDEN / f"{version}.zip") as packed:
        packed.extractall(target)
    contents = json.loads((target / "contents.json").read_text())
    backups = list_backups(target)
    assert [backup.kind for backup in backups] == ["full", "incremental", "differential", "copy"]
    assert [backup.id for backup in backups] == list(contents)
    report = verify_backup(target)
    assert report.ok, report.problems
    for backup in backups:
        assert load_documents(target, backup.id) == {"components": [{"writer": "golden", "name": "main"}]}
        restored = restore(target, backup.id, tmp_path / backup.id)
        found = {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in restored.items()}
        assert found == contents[backup.id]
    streams = [(target / "chains" / "nightly" / backup.id / "stream").read_bytes() for backup in backups[:2]]
    restored = restore_stream(io.BytesIO(b"".join(streams)), tmp_path / "piped")
    assert hashlib.sha256(Path(restored["main"]).read_bytes()).hexdigest() == contents[backups[1].id]["main"]
