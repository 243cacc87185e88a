"""Files of weights have the bytes of the safetensors library, and no tensor is returned before it is verified."""

from __future__ import annotations

import hashlib
import io

import pytest
import torch
from safetensors.torch import load, save

from diffkit.errors import CheckpointError
from diffkit.runtime.weights_files import (
    digest,
    read_each,
    read_weights,
    to_safetensors,
    weights_record,
    write_weights,
)

CHUNK = 1 << 22

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES += [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def tensors() -> dict[str, torch.Tensor]:
    shapes = [(), (3,), (2, 3), (0, 2), (5, 1, 3)]
    found = {f"{dtype}.{i}": torch.ones(shape).to(dtype) for dtype in DTYPES for i, shape in enumerate(shapes)}
    torch.manual_seed(0)
    square = torch.randn(4, 4)
    return found | {"ünï\n\"'": square, "transposed": square.t(), "tied": square, "part": square[1:, :2]}


def written(state: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    record = write_weights(file, state)
    content = file.getvalue()
    assert record == weights_record(state) == digest(content)
    assert len(content) > CHUNK or record == {"size": len(content), "sha256": sha256(content)}
    return content


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_bytes_are_those_of_the_library():
    assert written(tensors()) == save(to_safetensors(tensors()))
    assert written({}) == save({})
    rare = {"a": torch.ones(2, dtype=torch.complex64), "b": torch.ones(3)}
    assert written(rare) == save(rare)


@pytest.mark.parametrize("size", [7, CHUNK // 4])
def test_what_is_read_is_what_was_written(tmp_path, size):
    state = tensors() | {"large": torch.arange(size, dtype=torch.float64)}
    (tmp_path / "file").write_bytes(content := written(state))
    found = read_weights(tmp_path / "file", weights_record(state))
    assert found.keys() == state.keys() == load(content).keys()
    for name, value in found.items():
        assert torch.equal(value, state[name]) and value.dtype == state[name].dtype
        assert value.untyped_storage().nbytes() == value.nbytes  # memory of its own


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("size", [1 << 17, CHUNK // 8 * 3], ids=["small", "large"])
def test_damage_anywhere_is_found(tmp_path, chunked, size):
    state = {"a": torch.arange(size, dtype=torch.float64), "b": torch.ones(3)}
    content, path = written(state), tmp_path / "file"
    record, chunks = weights_record(state, chunked=chunked), range(0, len(content) - CHUNK, CHUNK)
    path.write_bytes(content)
    changes = [(at, bytes([content[at] ^ 1])) for at in (0, 9, 60, len(content) // 2, len(content) - 1)]
    if len(chunks) == 3:
        one, two = (content[start : start + CHUNK] for start in chunks[1:])
        changes.append((CHUNK, two + one))
    for at, new in changes:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(new)
            with pytest.raises(CheckpointError, match="is damaged: its SHA-256 is not the one that was written"):
                file.flush()
                read_weights(path, record)
            file.seek(at)
            file.write(content[at : at + len(new)])
    read_weights(path, record)
    path.write_bytes(content[:-8])
    with pytest.raises(CheckpointError, match=rf"it has {len(content) - 8} bytes, {len(content)} were written"):
        read_weights(path, record)


def test_the_record_of_a_large_file_is_of_its_chunks_and_an_earlier_one_of_the_whole(tmp_path):
    state, other = {"a": torch.ones(CHUNK // 2)}, {"a": torch.zeros(CHUNK // 2)}
    (tmp_path / "file").write_bytes(content := written(state))
    chunks = [content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]
    digests = b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)
    new, old = weights_record(state), weights_record(state, chunked=False)
    assert new == digest(content) == {"size": len(content), "sha256": sha256(digests), "chunk": CHUNK}
    assert old == {"size": len(content), "sha256": sha256(content)}
    for record in (new, old, weights_record(other) | {"before": new}):
        assert torch.equal(read_weights(tmp_path / "file", record)["a"], state["a"])
    with pytest.raises(CheckpointError, match="has 'chunk' 5; it can only be 4194304"):
        read_weights(tmp_path / "file", new | {"chunk": 5})


def test_the_file_that_a_new_one_replaces_is_accepted_too(tmp_path):
    state, other = {"a": torch.ones(3)}, {"a": torch.zeros(3)}
    (tmp_path / "file").write_bytes(written(state))
    assert torch.equal(
        read_weights(tmp_path / "file", weights_record(other) | {"before": weights_record(state)})["a"], state["a"]
    )


def test_headers_that_the_library_refuses_are_refused(tmp_path):
    content = save({"a": torch.ones(4)})
    for old, new in [(b"[0,16]", b"[0,12]"), (b"[0,16]", b"[4,16]"), (b"F32", b"F99"), (b"[4]", b"[5]"), (b"{", b"[")]:
        assert old in content
        (tmp_path / "file").write_bytes(content.replace(old, new, 1))
        with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
            read_weights(tmp_path / "file")


def test_several_large_files_at_once(tmp_path):
    states = [{"a": torch.full((1 << 18,), float(i), dtype=torch.float64)} for i in range(3)]
    files = []
    for i, state in enumerate(states):
        (tmp_path / str(i)).write_bytes(written(state))
        files.append((tmp_path / str(i), weights_record(state)))
    for state, found in zip(states, read_each(files), strict=True):
        assert torch.equal(found["a"], state["a"])
    (tmp_path / "1").write_bytes((tmp_path / "0").read_bytes())
    with pytest.raises(CheckpointError, match="1 is damaged"):
        read_each(files)
