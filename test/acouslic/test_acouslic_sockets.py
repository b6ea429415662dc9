"""Finding the one sweep of a case in the platform's input folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from acouslic.errors import AcouslicError
from acouslic.sockets import SWEEP_FOLDER, SWEEP_SLUG, case_name, find_sweep_input


def _input(folder: Path, *names: str, entries: Any = None) -> Path:
    """An input folder with empty files of these names, and `inputs.json` where entries are given."""
    sweeps = folder / SWEEP_FOLDER
    sweeps.mkdir(parents=True)
    for name in names:
        (sweeps / name).touch()
    if entries is not None:
        (folder / "inputs.json").write_text(json.dumps(entries))
    return folder


def _entry(key: str = "socket", **fields: Any) -> dict[str, Any]:
    socket = {"slug": SWEEP_SLUG, "kind": "Image", "relative_path": SWEEP_FOLDER}
    return {key: socket, "image": {"pk": "1", "name": "case-17.mha"}, "value": None, **fields}


@pytest.mark.parametrize("name", ["x.mha", "X.MHA", "a b.tif", "0f3e.tiff", "sweep.mhd"])
def test_any_name_with_an_accepted_suffix_is_found(tmp_path: Path, name: str) -> None:
    """Without `inputs.json` the case is called as the file, without its suffix."""
    found = find_sweep_input(_input(tmp_path, name))

    assert found.path == tmp_path / SWEEP_FOLDER / name
    assert found.case == name.rsplit(".", 1)[0]


@pytest.mark.parametrize("pixels", ["x.raw", "x.zraw"])
def test_mhd_with_its_pixels_is_one_image(tmp_path: Path, pixels: str) -> None:
    """The `.raw` or `.zraw` beside a `.mhd` is not a second image; hidden files never count."""
    assert find_sweep_input(_input(tmp_path, "x.mhd", pixels, ".x.mha")).path.name == "x.mhd"


@pytest.mark.parametrize("key", ["socket", "interface"])
def test_case_is_named_by_inputs_json(tmp_path: Path, key: str) -> None:
    """New jobs say `socket`, old ones `interface`; other sockets are passed over."""
    other = {"socket": {"slug": "age"}, "value": 3}

    assert find_sweep_input(_input(tmp_path, "0f3e.mha", entries=[other, _entry(key)])).case == "case-17"


def test_null_socket_beside_an_interface_is_passed_over(tmp_path: Path) -> None:
    """`"socket": null` is as good as none."""
    assert find_sweep_input(_input(tmp_path, "x.mha", entries=[_entry("interface", socket=None)])).case == "case-17"


@pytest.mark.parametrize("image", [None, {}, {"name": None}, {"name": ""}, {"name": ".."}, {"name": "/"}])
def test_unusable_image_name_leaves_the_files_own(tmp_path: Path, image: Any) -> None:
    """A case without a name of its own is called as its file."""
    assert find_sweep_input(_input(tmp_path, "x.mha", entries=[_entry(image=image)])).case == "x"


def test_relative_path_of_the_socket_is_followed(tmp_path: Path) -> None:
    """Where `inputs.json` puts the socket in another folder, that one counts."""
    folder = _input(tmp_path, entries=[{"socket": {"slug": SWEEP_SLUG, "relative_path": "images/elsewhere"}}])
    (folder / "images/elsewhere").mkdir()
    (folder / "images/elsewhere/y.mha").touch()

    assert find_sweep_input(folder).path == folder / "images/elsewhere/y.mha"


@pytest.mark.parametrize("relative_path", ["/etc", "../x", "images/../../x", 3, None, "a\0b", "\ud800"])
def test_relative_path_out_of_the_input_is_refused(tmp_path: Path, relative_path: Any) -> None:
    """A path that leaves the input folder, or is none, is an error."""
    entries = [{"socket": {"slug": SWEEP_SLUG, "relative_path": relative_path}}]

    with pytest.raises(AcouslicError, match="leads out of the input folder"):
        find_sweep_input(_input(tmp_path, "x.mha", entries=entries))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "found nothing"),
        (("a.mha", "b.mha"), r"found a\.mha, b\.mha"),
        (("a.mha", "b.tif"), r"found a\.mha, b\.tif"),
        (("scan.nii.gz",), r"found scan\.nii\.gz"),
        (("scan.dcm", "scan2.dcm"), r"found scan\.dcm, scan2\.dcm"),
        (("x.raw",), r"found x\.raw"),
    ],
)
def test_no_image_or_two_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    """The message says what is there."""
    with pytest.raises(AcouslicError, match=message):
        find_sweep_input(_input(tmp_path, *names))


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    """An empty input says which folder is expected."""
    with pytest.raises(AcouslicError, match=SWEEP_FOLDER):
        find_sweep_input(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "not a readable JSON"),
        ("[" * 100_000, "not a readable JSON"),
        ("{}", "list of sockets"),
        ("[3]", "list of sockets"),
        ("[]", "got 0"),
        (json.dumps([_entry(), _entry()]), "got 2"),
        ('[{"socket": "x"}]', "got 0"),
    ],
)
def test_inputs_json_is_read_strictly(tmp_path: Path, text: str, message: str) -> None:
    """Where the file is there it must be a list that names the socket once."""
    folder = _input(tmp_path, "x.mha")
    (folder / "inputs.json").write_text(text)

    with pytest.raises(AcouslicError, match=message):
        find_sweep_input(folder)


def test_symlinked_input_that_changes_is_followed(tmp_path: Path) -> None:
    """The same `/input` shows another case once its symlink moves; the path stays below the symlink."""
    link = tmp_path / "input"
    for case in ("first", "second"):
        _input(tmp_path / case, f"{case}.mha")
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / case)

        found = find_sweep_input(link)

        assert found.case == case
        assert found.path == link / SWEEP_FOLDER / f"{case}.mha"


def test_case_names_lose_only_an_images_suffix() -> None:
    """A dot in a name is not a suffix."""
    assert case_name("a.b.mha") == "a.b"
    assert case_name("v1.2") == "v1.2"
    assert case_name("folder/x.TIFF") == "x"
