"""The artifact: written, read back strictly, packed."""

import dataclasses
import hashlib
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from acouslic.errors import AcouslicError, ShortageError
from algorithm.model.artifact import load_artifact, pack_artifact, write_artifact
from algorithm.model.file_hashes import hash_file
from algorithm.model.manifest import HalfWay
from algorithm.model.networks import TowerConfig
from algorithm.model.weight_files import FileTensors
from bench.setting.random_artifact import write_random_artifact

CONFIG = TowerConfig(56, 14, 32, 4, 4, 64, 16)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound artifact, not to be changed."""
    folder = tmp_path_factory.mktemp("sound") / "artifact"
    write_random_artifact(folder, CONFIG, members=2, dtype=torch.float16)
    return folder


@pytest.fixture
def artifact(sound, tmp_path):
    """A copy of a sound artifact."""
    return shutil.copytree(sound, tmp_path / "artifact")


def resign(folder):
    """Make the manifest's records fit the files, as somebody who builds an artifact by hand would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name] = {"sha256": hash_file(folder / name), "size_bytes": (folder / name).stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def change_manifest(folder, change):
    """Apply `change` to the manifest's content."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_reads_what_was_written(sound):
    """Tensors come back as they were written, in their precision, and every file is recorded with its sha256."""
    loaded = load_artifact(sound)
    assert loaded.manifest.tower == CONFIG
    assert len(loaded.members) == 2
    assert all(tensor.dtype == torch.float16 for tensor in loaded.tower_state.values())
    assert set(loaded.manifest.files) == {
        "tower.safetensors",
        *(
            f"members/{k}/{name}"
            for k in range(2)
            for name in ("adapter_config.json", "adapter_model.safetensors", "heads.safetensors")
        ),
    }
    content = (sound / "tower.safetensors").read_bytes()
    assert loaded.manifest.files["tower.safetensors"].sha256 == hashlib.sha256(content).hexdigest()
    assert loaded.manifest.files["tower.safetensors"].size_bytes == len(content)


def test_replaces_an_artifact_and_nothing_else(artifact, tmp_path):
    """Writing replaces an older artifact whole, leaves nothing beside it, and never touches another folder."""
    loaded = load_artifact(artifact)
    (artifact / "members" / "7").mkdir()
    (artifact / "members" / "7" / "old").write_text("left from before")
    written = write_artifact(artifact, loaded.manifest, loaded.tower_state, loaded.members)
    assert load_artifact(artifact).manifest == written
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(AcouslicError, match="neither empty nor an artifact"):
        write_artifact(tmp_path / "mine", loaded.manifest, loaded.tower_state, loaded.members)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_what_a_killed_process_of_the_same_number_left_is_no_hindrance(artifact, tmp_path):
    """In a container the same command has the same number each time."""
    loaded = load_artifact(artifact)
    left = tmp_path / f".new.partial-{os.getpid()}"
    (left / "members" / "0").mkdir(parents=True)
    (left / "half").touch()
    write_artifact(tmp_path / "new", loaded.manifest, loaded.tower_state, loaded.members)
    assert load_artifact(tmp_path / "new").manifest.files == loaded.manifest.files
    assert not left.exists()


def test_weights_that_do_not_fit_are_not_written(sound, tmp_path):
    """Weights that contradict the manifest are refused before anything is put in place."""
    loaded = load_artifact(sound)
    state = {**loaded.tower_state, "proj": torch.zeros(32, 17)}
    with pytest.raises(AcouslicError, match="'proj' has shape"):
        write_artifact(tmp_path / "new", loaded.manifest, state, loaded.members)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit_bytes", [1000, 200_000])
def test_a_disk_that_fills_up_is_one_sentence(limit_bytes, artifact, tmp_path):
    """Weights that grow too large at 1000 bytes, a manifest with long notes at 200,000. What was there stays."""
    loaded = load_artifact(artifact)
    before = (artifact / "manifest.json").read_bytes()
    provenance = dataclasses.replace(loaded.manifest.provenance, notes="n" * 300_000)
    manifest = dataclasses.replace(loaded.manifest, provenance=provenance)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limits[1]))
    try:
        with pytest.raises(ShortageError, match=r"artifact could not be written: .*File too large"):
            write_artifact(artifact, manifest, loaded.tower_state, loaded.members)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (artifact / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_missing_folder(tmp_path):
    """An empty or missing folder gets one sentence that says what to mount, or how to name another folder."""
    with pytest.raises(AcouslicError, match=r"manifest\.json is missing: mount .* \(--model, MODEL_DIR\)$"):
        load_artifact(tmp_path / "nothing")
    with pytest.raises(AcouslicError, match=r"manifest\.json is missing: mount"):
        load_artifact(tmp_path)


@pytest.mark.parametrize("name", ["tower.safetensors", "members/1/heads.safetensors", "members/0/adapter_config.json"])
def test_damaged_file_refused_by_name(name, artifact):
    """One flipped bit, a cut end and a missing file are each refused, naming the file."""
    path = artifact / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(AcouslicError, match=rf"{name}(: its sha256 is| is not a readable)"):
        load_artifact(artifact)
    path.write_bytes(content[:-1])
    with pytest.raises(AcouslicError, match=rf"{name} has {len(content) - 1} bytes"):
        load_artifact(artifact)
    path.unlink()
    with pytest.raises(AcouslicError, match=f"{name} is missing"):
        load_artifact(artifact)


@pytest.mark.parametrize("name", ["weights.pt", "members/0/extra.bin", "members/2/heads.safetensors", ".hidden"])
def test_extra_file_refused(name, artifact):
    """A file that no artifact has is refused by name."""
    (artifact / name).parent.mkdir(exist_ok=True)
    (artifact / name).write_text("?")
    with pytest.raises(AcouslicError, match=rf"{name} does not belong"):
        load_artifact(artifact)


def test_a_name_with_control_characters_is_shown_escaped(artifact):
    """A file's name cannot recolour the terminal of whoever reads why the artifact is refused."""
    (artifact / "\x1b[1mfat").write_text("?")
    with pytest.raises(AcouslicError, match=r"\\x1b\[1mfat does not belong") as caught:
        load_artifact(artifact)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "members/0/../../tower.safetensors", "weights.pt"])
def test_listed_path_outside_refused(name, artifact):
    """A path in `files` that is not one of the artifact's own names is refused, above all one that leads outside."""
    change_manifest(artifact, lambda m: m["files"].update({name: {"sha256": "0" * 64, "size_bytes": 1}}))
    with pytest.raises(AcouslicError, match="is listed but not part of an artifact"):
        load_artifact(artifact)


def test_unlisted_file_refused(artifact):
    """A file of the artifact that `files` does not list is refused: nothing unhashed is read."""
    change_manifest(artifact, lambda m: m["files"].pop("tower.safetensors"))
    with pytest.raises(AcouslicError, match=r"'tower\.safetensors' is not listed"):
        load_artifact(artifact)


def test_a_manifest_of_schema_4_to_8_is_read_as_one_without_what_came_later(artifact):
    """It is read as it was meant; one that says schema 4 to 8 and states a later field is not."""
    expected = load_artifact(artifact).manifest
    rechecked = ("float16_rechecked_consequence", "bfloat16_rechecked_consequence")
    later = (
        (8, "selection", ("circumference_error",)),
        (7, "half_precision", rechecked),
        (6, "scoring", ("rounds", "scale_frames")),
        (5, "selection", ("most_positive_frames",)),
        (4, "selection", ("one_run_a_sweep",)),
    )
    for version, section, names in later:
        change_manifest(artifact, lambda m, version=version: m.update(schema_version=version))
        with pytest.raises(AcouslicError, match=f"schema_version is {version}, this program reads 9"):
            load_artifact(artifact)
        for name in names:
            change_manifest(artifact, lambda m, section=section, name=name: m[section].pop(name))
        assert load_artifact(artifact).manifest == expected
    assert not expected.selection.one_run_a_sweep
    assert expected.selection.most_positive_frames is None
    assert expected.selection.circumference_error is None
    assert expected.half_precision.bfloat16_rechecked_consequence is None
    assert (expected.scoring.rounds, expected.scoring.scale_frames) == (1, 0)


def test_unknown_schema_and_field_refused(artifact):
    """A manifest of another schema, or with a field that this program does not know, is refused."""
    change_manifest(artifact, lambda m: m["tower"].update(register_tokens=4))
    with pytest.raises(AcouslicError, match="unknown field 'register_tokens' in tower"):
        load_artifact(artifact)
    change_manifest(artifact, lambda m: m.update(schema_version=10))
    with pytest.raises(AcouslicError, match="schema_version is 10"):
        load_artifact(artifact)


def test_a_half_way_reading_is_read(artifact):
    """From JSON to numbers; the written artifact has none."""
    assert load_artifact(artifact).manifest.selection.half_way is None
    change_manifest(artifact, lambda m: m["selection"].update(half_way={"depth": 0.25, "top_frames": 8}))
    assert load_artifact(artifact).manifest.selection.half_way == HalfWay(0.25, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 1.01}, r"selection.half_way.depth must be a number <= 1.0, not 1.01"),
        ({"top_frames": 0}, "selection.half_way.top_frames must be an integer >= 1, not 0"),
        ({"top_frames": 8.5}, "selection.half_way.top_frames must be an integer"),
        ({"depth": None}, "selection.half_way.depth must be a number, not null"),
        ({"slope": 1.0}, "unknown field 'slope' in selection.half_way"),
    ],
)
def test_a_half_way_reading_that_makes_no_sense_is_refused(change, message, artifact):
    """By field."""
    change_manifest(artifact, lambda m: m["selection"].update(half_way={"depth": 0.25, "top_frames": 8} | change))
    with pytest.raises(AcouslicError, match=message):
        load_artifact(artifact)


REFUSED_FIELDS = {
    "an integer as text": ("tower.width", '"32"', r"tower\.width must be an integer, not '32'$"),
    "true for a number": ("scoring.stride", "true", r"scoring\.stride must be an integer, not True$"),
    "too large": ("tower.layers", "10000000", r"tower\.layers must be an integer <= 256, not 10000000$"),
    "too small": ("members[1].decoder.filters", "0", r"members\[1\]\.decoder\.filters must be an integer >= 1, not 0$"),
    "5,000 digits": (
        "tower.width",
        "9" * 5000,
        r"tower\.width must be an integer, not 'a number of 5,000 characters'$",
    ),
    "no float holds it": ("thresholds.mask", "1e400", r"thresholds\.mask must be a number, not '1e400'$"),
    "no JSON number": ("thresholds.mask", "NaN", "holds NaN, which is no JSON number$"),
    "not an option": ("scoring.mode", '"some"', r"scoring\.mode must be one of 'exhaustive', 'gated', not 'some'$"),
    "an object for an array": ("members", "{}", "members must be an array, not an object$"),
    "an array for an object": ("tower", "[1, 2]", "tower must be an object, not an array of 2$"),
    "an array too short": (
        "preprocessing.mean",
        "[0, 0]",
        r"preprocessing\.mean must be an array of length 3, not an array of 2$",
    ),
    "an item of an array": (
        "preprocessing.std",
        "[1, 1, null]",
        r"preprocessing\.std\[2\] must be a number, not null$",
    ),
    "a key of an object": (
        "files",
        '{"tower.safetensors": {"sha256": "0", "size_bytes": 1}}',
        r"files\['tower\.safetensors'\]\.sha256 must be 64 hexadecimal digits, not '0'$",
    ),
    "nested": ("provenance", "[" * 100_000 + "]" * 100_000, "is nested too deeply to be read$"),
    "not JSON": ("provenance", "{,}", "is not JSON: .* at line 1, column"),
    "a control character": (
        "name",
        r'"\u001b[31mred"',
        r"name must be one line without control characters, not '\\x1b\[31mred'$",
    ),
    "a very long text": ("scoring.mode", f'"{"x" * 100_000}"', "not 'x{80}'[.]{3}$"),
}


@pytest.mark.parametrize("fault", REFUSED_FIELDS)
def test_a_wrong_field_is_one_sentence(fault, artifact):
    """What is wrong, at which field, with what stands there: short, on one line, without control characters."""
    field, value, message = REFUSED_FIELDS[fault]
    manifest = json.loads((artifact / "manifest.json").read_text())
    *path, last = field.replace("[", ".[").split(".")
    section = manifest
    for part in path:
        section = section[int(part[1:-1]) if part.startswith("[") else part]
    section[last] = "HERE"
    (artifact / "manifest.json").write_text(json.dumps(manifest).replace('"HERE"', value))
    with pytest.raises(AcouslicError, match=message) as caught:
        load_artifact(artifact)
    told = str(caught.value)
    assert told.startswith(f"{artifact / 'manifest.json'}")
    assert len(told) < 400
    assert told.isprintable()


def test_a_field_that_is_missing_or_stands_twice(artifact):
    """Also one with a default: a written manifest states every field; and the first of two values is not dropped."""
    change_manifest(artifact, lambda m: m["scoring"].pop("stride"))
    with pytest.raises(AcouslicError, match=r"field 'stride' is missing in scoring$"):
        load_artifact(artifact)
    change_manifest(artifact, lambda m: m["tower"].pop("width"))
    with pytest.raises(AcouslicError, match=r"field 'width' is missing in tower$"):
        load_artifact(artifact)
    text = (artifact / "manifest.json").read_text()
    (artifact / "manifest.json").write_text(text.replace('"name":', '"name": "", "name":'))
    with pytest.raises(AcouslicError, match=r"the field 'name' twice in one object$"):
        load_artifact(artifact)


def test_a_manifest_that_is_no_file(artifact):
    """A pipe is not waited for, and a huge file is not read."""
    (artifact / "manifest.json").unlink()
    os.mkfifo(artifact / "manifest.json")
    with pytest.raises(AcouslicError, match=r"manifest\.json is not a regular file"):
        load_artifact(artifact)
    (artifact / "manifest.json").unlink()
    with (artifact / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(AcouslicError, match=r"manifest\.json has 1,099,511,627,776 bytes, more than"):
        load_artifact(artifact)


def test_a_file_without_read_permission(sound, tmp_path, repository):
    """Is there, and said to be: "missing" would send its owner looking for it."""
    names = ("manifest.json", "tower.safetensors", "members/0/adapter_config.json", "members/0/heads.safetensors")
    closed = [*names, "members"]
    for number, name in enumerate(closed):
        (shutil.copytree(sound, tmp_path / str(number)) / name).chmod(0)
    program = (
        "import os; from pathlib import Path\n"
        "from acouslic.errors import AcouslicError; from algorithm.model.artifact import load_artifact\n"
        # Root reads everything. The folders above the test's own are closed to others, so it is entered first.
        f"os.chdir({str(tmp_path)!r})\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"for number in range({len(closed)}):\n"
        "    try: load_artifact(Path(str(number)))\n"
        "    except AcouslicError as error: print(error)\n"
    )
    tmp_path.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    (tmp_path / str(len(names)) / "members").chmod(0o755)
    expected = [f"{number}/{name} cannot be read: Permission denied" for number, name in enumerate(closed)]
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("tower.safetensors", "transformer.resblocks.3.attn.v_proj.bias"),
        ("members/1/heads.safetensors", "optimality.weight"),
        ("members/0/heads.safetensors", "decoder.decoder9.block.2.running_var"),
        (
            "members/0/adapter_model.safetensors",
            "base_model.model.transformer.resblocks.2.mlp.c_fc.lora_B.weight",
        ),
    ],
)
def test_wrong_tensor_refused_by_name(name, tensor, artifact):
    """With hashes in order, a tensor missing, unknown or of another shape is refused, naming file and tensor."""
    tensors = load_file(artifact / name)
    assert tensor in tensors
    stray = tensor.replace("weight", "wait").replace("bias", "buys").replace("var", "far")
    for changed, message in (
        ({key: value for key, value in tensors.items() if key != tensor}, f"{tensor}' is missing"),
        ({**tensors, stray: torch.zeros(1)}, f"unknown tensor '{stray}"),
        ({**tensors, tensor: torch.zeros(5, 5)}, rf"{tensor}' .*\(5, 5\)"),
    ):
        save_file(changed, artifact / name)
        resign(artifact)
        with pytest.raises(AcouslicError, match=rf"{name}: .*{message}"):
            load_artifact(artifact)


@pytest.mark.parametrize(
    ("name", "tensor", "value"),
    [
        ("tower.safetensors", "transformer.resblocks.3.attn.v_proj.bias", float("nan")),
        ("tower.safetensors", "conv1.weight", float("-inf")),
        ("members/1/heads.safetensors", "presence.weight", float("inf")),
        ("members/0/heads.safetensors", "decoder.decoder9.block.2.running_var", float("nan")),
        (
            "members/0/adapter_model.safetensors",
            "base_model.model.transformer.resblocks.2.mlp.c_fc.lora_B.weight",
            float("nan"),
        ),
    ],
)
def test_weights_that_are_not_numbers_are_refused_by_name(name, tensor, value, artifact):
    """With hashes in order, one NaN or infinity in tower, adapter, head or decoder is refused; numbers of an unusual
    kind and negative variances too."""
    tensors = load_file(artifact / name)
    for index, (changed, message) in enumerate(
        (
            (
                tensors[tensor].flatten().index_fill(0, torch.tensor([1]), value).reshape(tensors[tensor].shape),
                "NaN or",
            ),
            (tensors[tensor].to(torch.float8_e5m2), "float8_e5m2, expected float32"),
            (-tensors[tensor].abs(), "negative variances"),
        )
    ):
        if index == 2 and not tensor.endswith("running_var"):
            continue
        save_file({**tensors, tensor: changed}, artifact / name)
        resign(artifact)
        with pytest.raises(AcouslicError, match=rf"{name}: tensor '{tensor}' .*{message}"):
            load_artifact(artifact)


def test_a_pointer_in_place_of_weights(artifact):
    """A clone without Git LFS holds pointers: that is said, not that the file is damaged."""
    (artifact / "tower.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    resign(artifact)
    with pytest.raises(AcouslicError, match=r"tower\.safetensors is a Git LFS pointer, not the weights"):
        load_artifact(artifact)


class Explosive:
    """Leaves a trace when unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("name", ["tower.safetensors", "members/0/heads.safetensors"])
def test_pickle_is_never_read(name, artifact, monkeypatch, tmp_path):
    """A pickle under a right name and hash is refused by name, and nothing in it runs."""
    monkeypatch.chdir(tmp_path)
    (artifact / name).write_bytes(pickle.dumps(Explosive()))
    resign(artifact)
    with pytest.raises(AcouslicError, match=f"{name} is not a readable safetensors file"):
        load_artifact(artifact)
    assert not (tmp_path / "exploded").exists()


def test_loading_imports_no_compiler(sound, repository):
    """From the folder to the first mask nothing imports torch's compiler: 900 modules, seconds of a cold start."""
    program = (
        "import sys, torch; from pathlib import Path\n"
        "from algorithm.model.artifact import load_artifact; from algorithm.engine.ensemble import Ensemble\n"
        f"ensemble = Ensemble.from_artifact(load_artifact(Path({str(sound)!r})), torch.device('cpu'), torch.bfloat16)\n"
        "images = torch.zeros(1, 3, 56, 56); ensemble.score(images); ensemble.segment(images)\n"
        "print(sorted({'torch._dynamo', 'torch._inductor', 'sympy', 'open_clip', 'peft', 'timm'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert done.stderr == ""


def test_without_hashes_sizes_still_count(artifact):
    """verify_hashes=False skips the hashes and nothing else."""
    change_manifest(artifact, lambda m: m["files"]["tower.safetensors"].update(sha256="0" * 64))
    with pytest.raises(AcouslicError, match="sha256"):
        load_artifact(artifact)
    load_artifact(artifact, verify_hashes=False)
    change_manifest(artifact, lambda m: m["files"]["tower.safetensors"].update(size_bytes=1))
    with pytest.raises(AcouslicError, match="the manifest says 1"):
        load_artifact(artifact, verify_hashes=False)


def test_packing_is_deterministic_and_extracts_to_a_sound_artifact(sound, artifact, tmp_path):
    """The same weights give the same archive bytes wherever and whenever they lie, safely extractable."""
    os.utime(artifact / "tower.safetensors", (1, 1))
    (artifact / "manifest.json").chmod(0o600)
    pack_artifact(sound, tmp_path / "one.tar.gz")
    pack_artifact(artifact, tmp_path / "two.tar.gz")
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "one.tar.gz") as archive:
        entries = archive.getmembers()
        archive.extractall(tmp_path / "extracted", filter="data")
    assert {(entry.mtime, entry.uid, entry.gid, entry.mode) for entry in entries} == {(0, 0, 0, 0o644)}
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    assert load_artifact(tmp_path / "extracted").manifest == load_artifact(sound).manifest


def test_damaged_artifact_is_not_packed(artifact, tmp_path):
    """An artifact that would be refused at run time is refused before it is uploaded."""
    (artifact / "tower.safetensors").write_bytes(b"")
    with pytest.raises(AcouslicError, match="has 0 bytes"):
        pack_artifact(artifact, tmp_path / "model.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_loaded_artifact_stays_itself_where_another_takes_its_place(artifact, monkeypatch):
    """A server merges float32 members when its first case asks for them: the tower is that of the model it has loaded,
    not half of it the one that has been exported to the same folder since."""
    monkeypatch.setattr(FileTensors, "MAPPED_BYTES", 0)
    loaded = load_artifact(artifact)
    before = {name: tensor.clone() for name, tensor in loaded.tower_state.items()}
    write_artifact(artifact, loaded.manifest, {name: tensor + 1 for name, tensor in before.items()}, loaded.members)
    assert all(torch.equal(loaded.tower_state[name], tensor) for name, tensor in before.items())
    after = load_artifact(artifact).tower_state
    assert torch.equal(after["conv1.weight"], before["conv1.weight"] + 1)
    opened = len(list(Path("/dev/fd").iterdir()))
    del loaded, after
    assert len(list(Path("/dev/fd").iterdir())) == opened - 2
