"""Damaged artifacts, thousands of them: each is refused in one clear sentence, or loads and runs.

    python -m bench.artifact_fuzz                  2,600 artifacts, about five minutes
    python -m bench.artifact_fuzz --count 200 --seed 7

A fault is anything else: an error that is not for the user, a sentence that is long or not printable, more than
LONGEST_S or MOST_BYTES. Damage goes into the manifest, an adapter's settings, the headers and numbers of the
weights, and the folder itself; after most of it the hashes are mended, as by somebody who builds an artifact by hand.
The last line is a JSON object; the exit code is 1 where there are faults. The same seed gives the same damage.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch

from acouslic.errors import AcouslicError
from algorithm.engine.ensemble import Ensemble
from algorithm.judgement.review import load_case_head
from algorithm.model.artifact import load_artifact
from algorithm.model.manifest import MANIFEST_FILE, ScoringConfig
from algorithm.model.networks import CaseHeadConfig, StudentConfig
from bench.setting.command import add_seed, at_least, exit_with
from bench.setting.random_artifact import TOWERS, write_random_artifact

LONGEST_S = 20.0
"""For one artifact. A sound one takes 0.05 s; a busy machine must not make a fault."""
MOST_BYTES = 2 << 30
"""Of address space, above what the program has before the first artifact."""
_LONGEST_SENTENCE = 1000

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, 10**7, 10**100, 0.5, -0.0, 1e-300, 1e308),
    *("", "x", "\x1b[31m", "a" * 5000, "../../etc/passwd", "(", "(a+)+$", ".*", "null", "\u2028", "c_fc"),
    *([], [0], [1, 2, 3], [[]], {}, {"a": 1}, {"(": 1}, {"c_fc": 0}, ["c_fc", None], [1e308, -1e308]),
)
RAW = (
    "1e400",
    "-1e400",
    "9" * 5000,
    "[" * 5000 + "]" * 5000,
    '{"a":' * 2000 + "1" + "}" * 2000,
    "NaN",
    "Infinity",
    "01",
)

Damage = Callable[[Path, random.Random], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Damage, load, count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=at_least(1), default=2600, help="artifacts (default: %(default)s)")
    add_seed(parser, 0)
    args = parser.parse_args(arguments)
    start = time.monotonic()
    counts, faults = fuzz(args.count, args.seed)
    for fault in faults:
        print(fault, file=sys.stderr)
    result = {"artifacts": args.count, "seed": args.seed, "faults": len(faults), **counts}
    print(json.dumps(result | {"seconds": round(time.monotonic() - start, 1)}))
    return 1 if faults else 0


def fuzz(count: int, seed: int) -> tuple[dict[str, int], list[str]]:
    """How many of `count` damaged artifacts were refused and accepted, and a line for each fault."""
    torch.set_num_threads(1)
    counts: Counter[str] = Counter(refused=0, accepted=0)
    faults = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, _bounded():
        sound = [Path(folder) / "with_student", Path(folder) / "with_case_head"]
        gated = ScoringConfig(mode="gated", gate="student", stride=1)
        write_random_artifact(sound[0], TOWERS["tiny"], members=2, scoring=gated, student=StudentConfig(4, (1, 1)))
        write_random_artifact(sound[1], TOWERS["tiny"], members=2, case_head=CaseHeadConfig(3, 2))
        for number in range(count):
            chance = random.Random(f"{seed} {number}")
            damage = chance.choice(DAMAGES)
            copy = Path(folder) / "damaged"
            shutil.copytree(sound[number % len(sound)], copy)
            damage(copy, chance)
            outcome = _load_and_run(copy)
            if outcome in ("refused", "accepted"):
                counts[outcome] += 1
            else:
                faults.append(f"seed {seed}, number {number}, {damage.__name__}: {outcome}")
            shutil.rmtree(copy)
    return dict(counts), faults


def _load_and_run(folder: Path) -> str:
    """`refused`, `accepted`, or what went wrong."""
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        artifact = load_artifact(folder)
        ensemble = Ensemble.from_artifact(artifact, torch.device("cpu"), torch.float32)
        size = ensemble.manifest.tower.image_size
        images = torch.zeros(1, 3, size, size)
        scores = ensemble.score(images)
        ensemble.segment(images)
        head = load_case_head(artifact)
        if head is not None:
            assert scores.embedding is not None
            head(scores.embedding[0], torch.zeros(1), torch.ones(1, dtype=torch.bool), [range(1)])
        if ensemble.manifest.scoring.mode == "gated":
            ensemble.gate(images)
    except AcouslicError as error:
        sentence = str(error)
        if len(sentence) > _LONGEST_SENTENCE or not sentence.isprintable():
            return f"a sentence of {len(sentence)} characters: {sentence[:200]!a}"
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]!a}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "accepted"


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Inside, an alarm is an error, and memory ends MOST_BYTES above what is taken now."""
    alarm = signal.signal(signal.SIGALRM, _too_long)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, alarm)


def _too_long(_: int, __: FrameType | None) -> NoReturn:
    raise TimeoutError(f"more than {LONGEST_S:g} s")


def resign(folder: Path) -> None:
    """Make the manifest's records fit the files that are there."""
    path = folder / MANIFEST_FILE
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for name in manifest["files"]:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    path.write_text(json.dumps(manifest), encoding="utf-8")


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a JSON document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inner for place in ((*path, key), *_places(item, (*path, key)))]


def _damage_json(path: Path, chance: random.Random) -> None:
    """One value replaced, removed, added or repeated; sometimes by text that is no JSON."""
    content = json.loads(path.read_text(encoding="utf-8"))
    *outer, last = chance.choice(_places(content))
    section = content
    for key in outer:
        section = section[key]
    kind = chance.choice(("replace", "replace", "replace", "remove", "add", "raw", "twice"))
    if kind == "remove":
        del section[last]
    elif kind == "add" and isinstance(section, dict):
        section[chance.choice(("extra", "r", "\x07", "use_dora", "b" * 3000))] = chance.choice(HOSTILE)
    elif kind == "raw":
        section[last] = "HERE"
        path.write_text(json.dumps(content).replace('"HERE"', chance.choice(RAW)), encoding="utf-8")
        return
    else:
        section[last] = chance.choice(HOSTILE)
    text = json.dumps(content)
    if kind == "twice" and isinstance(last, str):
        text = text.replace(f"{json.dumps(last)}:", f"{json.dumps(last)}: 0, {json.dumps(last)}:", 1)
    path.write_text(text, encoding="utf-8")


def damage_manifest(folder: Path, chance: random.Random) -> None:
    """A field of the manifest."""
    _damage_json(folder / MANIFEST_FILE, chance)


def damage_adapter_settings(folder: Path, chance: random.Random) -> None:
    """A field of an adapter's settings, hashes mended."""
    path = folder / "members" / chance.choice("01") / "adapter_config.json"
    if chance.random() < 0.5:
        content = json.loads(path.read_text(encoding="utf-8"))
        fields = ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_to_transform")
        content[chance.choice((*fields, "layers_pattern", "r", "lora_alpha", "peft_type"))] = chance.choice(HOSTILE)
        path.write_text(json.dumps(content), encoding="utf-8")
    else:
        _damage_json(path, chance)
    resign(folder)


def damage_bytes(folder: Path, chance: random.Random) -> None:
    """A few bytes of any file, or its end; hashes mended, except the manifest's own, which stands nowhere."""
    path = chance.choice(sorted(one for one in folder.rglob("*") if one.is_file()))
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 3, 30))):
        # The header is what is parsed: half of the damage goes there.
        content[chance.randrange(min(len(content), 400) if chance.random() < 0.5 else len(content))] = chance.randrange(
            256
        )
    if chance.random() < 0.3:
        del content[chance.randrange(len(content)) :]
    path.write_bytes(content)
    if path.name != MANIFEST_FILE and chance.random() < 0.8:
        resign(folder)


def damage_header(folder: Path, chance: random.Random) -> None:
    """The JSON header of a file of weights: types, shapes, places, names; hashes mended."""
    path = chance.choice(sorted(folder.rglob("*.safetensors")))
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = chance.choice([key for key in header if key != "__metadata__"])
    kind = chance.choice(("dtype", "shape", "data_offsets", "rename", "remove", "length"))
    if kind == "dtype":
        header[name]["dtype"] = chance.choice(("F64", "F16", "I32", "BOOL", "F8_E4M3", "F8_E8M0", "C64", "X9", 3))
    elif kind in ("shape", "data_offsets"):
        header[name][kind] = chance.choice(([], [0], [2**40], [2**62, 4], [-1], [1.5], "x", None, [8, 4], [0, 2**63]))
    elif kind == "rename":
        header[chance.choice(("x", "\x1b[2J", "n" * 4000, "presence.weight"))] = header.pop(name)
    elif kind == "remove":
        del header[name]
    text = json.dumps(header).encode()
    size = chance.choice((0, 1, len(content), 2**31, 2**63)) if kind == "length" else len(text)
    path.write_bytes(size.to_bytes(8, "little") + text + content[8 + length :])
    resign(folder)


def damage_numbers(folder: Path, chance: random.Random) -> None:
    """NaN, infinity or huge numbers in one place of the weights; hashes mended."""
    path = chance.choice(sorted(folder.rglob("*.safetensors")))
    content = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    at = begin + 4 * chance.randrange((len(content) - begin) // 4)
    words = (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f", b"\0\0\x80\xc7")
    content[at : at + 4] = chance.choice(words)
    path.write_bytes(content)
    resign(folder)


def damage_folder(folder: Path, chance: random.Random) -> None:
    """A file missing, too many, or something else in its place."""
    path = chance.choice(sorted(one for one in folder.rglob("*") if one.is_file()))
    kind = chance.choice(("remove", "extra", "folder", "loop", "pipe", "device", "pointer", "pickle", "empty", "swap"))
    if kind == "extra":
        (path.parent / chance.choice(("notes.txt", "weights.pt", "\x1b[1mfat", "adapter_model.bin"))).write_bytes(b"?")
        return
    if kind == "swap":
        other = chance.choice(sorted(one for one in folder.rglob("*") if one.is_file()))
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)
    else:
        path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n", encoding="utf-8")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"weight": 1}))
    elif kind == "empty":
        path.write_bytes(b"")
    if (folder / MANIFEST_FILE).is_file() and path.name != MANIFEST_FILE and kind != "swap" and chance.random() < 0.7:
        resign(folder)


DAMAGES: tuple[Damage, ...] = (
    damage_manifest,
    damage_manifest,
    damage_adapter_settings,
    damage_adapter_settings,
    damage_bytes,
    damage_header,
    damage_numbers,
    damage_folder,
)

if __name__ == "__main__":
    exit_with(main)
