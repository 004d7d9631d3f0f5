"""What a full disk, or whatever else MindSpore refuses, is called."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from ms_prefstream import CacheError
from ms_prefstream.cache.columns import Column
from ms_prefstream.cache.mindrecord import RecordFile

pytestmark = pytest.mark.mindspore
COLUMNS = {"ids": Column(dtype="int32", most=400)}
RULE = "-" * 66
FULL = f"""Exception thrown from dataset pipeline. Refer to 'Dataset Pipeline Error Message'. \n
{RULE}
- Dataset Pipeline Error Message: \n{RULE}
[ERROR] No free disk to be used while writing mindrecord files, available free disk size: 1

{RULE}
- C++ Call Stack: (For framework developers) \n{RULE}
mindspore/ccsrc/minddata/mindrecord/io/shard_writer.cc(586).\n\n
"""
META = f"""Exception thrown from dataset pipeline. Refer to 'Dataset Pipeline Error Message'. \n
{RULE}
- Framework Unexpected Exception Raised: \n{RULE}
This exception is caused by framework's unexpected error. Please create an issue at some place to get help.

{RULE}
- Dataset Pipeline Error Message: \n{RULE}
[ERROR] [Internal ERROR] Failed to write mindrecord meta files.

{RULE}
- C++ Call Stack: (For framework developers) \n{RULE}
mindspore/ccsrc/minddata/mindrecord/io/shard_index_generator.cc(577).\n\n
"""
IN_LINE = "Invalid data, raw data is wrong.Line of code : 535\nFile         : mindspore/ccsrc/shard_writer.cc"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FULL, "(No free disk to be used while writing mindrecord files, available free disk size: 1); "),
        (META, "(Failed to write mindrecord meta files); "),
        (FULL.partition("[ERROR]")[0], "(RuntimeError); "),
        (IN_LINE, "(Invalid data, raw data is wrong); "),
        ("[ParamTypeError]: error_msg: rows must be a list.", "([ParamTypeError]: error_msg: rows must be a list); "),
        ("", "(RuntimeError); "),
    ],
)
def test_the_line_that_says_something(
    error: str, said: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError(error)

    file = RecordFile(str(tmp_path / "x.mindrecord"), COLUMNS, 1)
    monkeypatch.setattr(file, "_write", refuse)
    with pytest.raises(CacheError) as caught:
        file.write([{"ids": np.zeros(1, np.int32)}])
    message = str(caught.value)
    assert f"MindSpore could not write the file {said}" in message
    assert "MB are free there" in message
    assert (" writes nothing below 10 MB." in message) == (error == FULL)
    assert "ccsrc" not in message
    assert "\n" not in message


PROGRAM = """
import sys
import numpy as np
from ms_prefstream import CacheError
from ms_prefstream.cache.columns import Column
from ms_prefstream.cache.mindrecord import RecordFile
folder = sys.argv[1]
for free, whole in ((10 << 20, True), ((10 << 20) - 4096, False), (40 << 10, False)):
    with open(folder + "/rest", "wb") as rest:
        rest.write(bytes((64 << 20) - free))
    try:
        with RecordFile(f"{folder}/{free}.mindrecord", {"ids": Column(dtype="int32", most=400)}, 300) as file:
            file.write([{"ids": np.arange(10, dtype=np.int32)}] * 10)
        assert whole, free
    except CacheError as error:
        assert not whole, free
        assert "(No free disk to be used" in str(error) and "nothing below 10 MB" in str(error), error
"""


@pytest.mark.long
def test_mindspore_stops_before_the_disk_is_full(tmp_path: pathlib.Path) -> None:
    """On a disk of its own, which not every user may mount."""
    mount = f"mount -t tmpfs -o size=64m none {tmp_path}"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "sh", "-c", mount], check=False).returncode:
        pytest.skip("needs to mount a file system")
    command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$0" -c "$1" {tmp_path}', sys.executable, PROGRAM]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2])
    assert ran.returncode == 0, ran.stderr[-2000:]
