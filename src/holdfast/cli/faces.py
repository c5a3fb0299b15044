"""``holdfast faces``: one mask for all photos of a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from holdfast.cli.common import Common, emit, method_app, this_command, with_knobs
from holdfast.core.errors import DataError, MissingExtra, RunError, UsageError
from holdfast.core.knobs import knob
from holdfast.faces.method import MASKS, MaskMethod
from holdfast.faces.recipe import Checking
from holdfast.models.engine import Engine

if TYPE_CHECKING:
    from holdfast.faces.protect import Outcome, Owner

Flat = Parameter(name="*")

faces = App(name="faces", help="One mask for all photos of a person: recognisers lose them, and a key undoes it.")

PRESETS: dict[str, tuple[float, float]] = {"subtle": (0.97, 8.0), "balanced": (0.94, 16.0), "strong": (0.90, 24.0)}


def require_faces() -> None:
    """Say which extra to install when a library of this part is missing.

    Raises:
        MissingExtra: it is.
    """
    import importlib.util

    for package in ("torch", "PIL"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra("faces", "pillow" if package == "PIL" else package)


@dataclass(frozen=True)
class LearnFlags:
    """What a mask is learned from, and where the key goes."""

    out: Path | None = knob(None, "file to write the key to, for example me.p3; without it, it stays in the run")
    preset: Literal["subtle", "balanced", "strong"] = knob(
        "balanced",
        "visibility: SSIM .97 and 8 grey levels, .94 and 16, or .90 and 24; --ssim and --budget go before it",
    )
    recognisers: tuple[str, ...] = knob(
        ("mobileface-v2", "openvino-0095"), "recognisers to learn from: shipped names or folders"
    )
    others: str = knob("drawn", "faces of other people: drawn, or a folder of photos")
    seed: int = knob(0, "seed of every draw", low=0)


def _names(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())


def _preset(method: MaskMethod, preset: str) -> MaskMethod:
    """The method at a preset's visibility, where its own was not given."""
    plain = type(method)()
    ssim, budget = PRESETS[preset]
    changes = {"ssim": ssim} if method.ssim == plain.ssim else {}
    changes |= {"budget": budget} if method.budget == plain.budget else {}
    return replace(method, **changes)  # type: ignore[type-var]


def _learn(method: MaskMethod) -> Callable[..., int]:
    def command(
        *photos: Path,
        flags: Annotated[LearnFlags, Flat] = LearnFlags(),
        engine: Annotated[Engine, Flat] = Engine(),
        common: Annotated[Common, Flat] = Common(),
    ) -> int:
        """Learn the mask of the person whom photos show: 5 to 20 photos, or folders of them.

        Args:
            photos: photos of one person, or folders that hold them; others in the photos do not matter.
        """
        require_faces()
        from holdfast.faces.learn import LearnMask, key_of_run, photos_of
        from holdfast.faces.mask import load_key

        request = LearnMask(
            _preset(method, flags.preset), tuple(photos_of(photos)), _names(flags.recognisers), flags.others, flags.seed
        )
        _check_out(flags.out)
        request.validate()
        with common.sink() as sink:
            run = request.make(common.store, engine, sink)
        place = key_of_run(run)
        key = load_key(place)
        if flags.out is not None:
            from holdfast.faces.mask import save_key

            save_key(key, flags.out)
            place = flags.out
        seen = key.card["seen"]
        text = (
            f"key: {place}\n"
            f"{len(key)} mask{'s' if len(key) > 1 else ''} from {key.card['photos']} photos; SSIM {seen['ssim']:.3f}, "
            f"{seen['psnr']:.1f} dB\n"
            "Keep the key private: whoever has it can take the mask off again, and it holds your face as recognisers "
            "see it."
        )
        result = {"key": str(place), "masks": len(key), "photos": key.card["photos"], "seen": seen}
        emit(common, result, text, run=run.path, then=f"holdfast faces protect {place} PHOTOS --out protected")
        return 0

    return command


def _check_out(out: Path | None) -> None:
    if out is None:
        return
    if out.suffix != ".p3":
        raise UsageError(f"--out {out}: a key's name ends in .p3", hint=f"--out {out.with_suffix('.p3')}")
    if out.exists():
        raise UsageError(f"{out} is there already, and it may be the only copy of a key", hint="name a new file")
    if not out.parent.is_dir():
        raise UsageError(f"no folder {out.parent}", hint=f"mkdir -p {out.parent}")


learn = method_app("learn", "Learn the mask of the person whom photos show.", MASKS, _learn)
learn.default(with_knobs(MASKS.load("chameleon"), _learn))
faces.command(learn)


@dataclass(frozen=True)
class OutFlags:
    """Where photos go, and how they are written."""

    out: Path = knob(doc="folder to write to; originals are never changed")
    overwrite: bool = knob(False, "replace photos that are already in that folder")
    drop_location: bool = knob(False, "leave out where a photo was taken")
    quality: int | None = knob(None, "of JPEG and WebP; none: as the original", low=1, high=100)


def _owner(key: str, common: Common) -> Owner:
    """The owner of a key file, or of a run's key; warns where others can read the file."""
    import sys

    from holdfast.faces.learn import key_of_run
    from holdfast.faces.mask import load_key, readable_by_others
    from holdfast.faces.protect import Owner

    place = Path(key)
    if place.is_dir() or not (place.exists() or place.suffix == ".p3"):
        place = key_of_run(common.store.find(key))
    if place.is_file() and readable_by_others(place) and not common.quiet:
        print(f"warning: others on this machine can read {place}\n  hint: chmod 600 {place}", file=sys.stderr)
    return Owner.of(load_key(place))


@faces.command
def protect(
    key: str,
    *photos: Path,
    flags: Annotated[OutFlags, Flat],
    every_face: bool = False,
    min_ssim: float | None = None,
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Put the mask on photos: only the owner's own face changes, everything else stays.

    Args:
        key: the .p3 file, or the run that learned it.
        photos: photos, or folders that hold them.
        every_face: put the mask on all faces.
        min_ssim: weaken the mask on a photo until its face keeps this SSIM.
    """
    from holdfast.faces.protect import Protecting

    if min_ssim is not None and not 0 <= min_ssim <= 1:
        raise UsageError(f"--min-ssim {min_ssim:g} is outside 0 to 1", hint="for example --min-ssim 0.97")
    how = Protecting(every_face, min_ssim, flags.overwrite, flags.drop_location, flags.quality)
    return _each(key, photos, flags.out, how, common, reveal=False)


@faces.command
def reveal(
    key: str, *photos: Path, flags: Annotated[OutFlags, Flat], common: Annotated[Common, Flat] = Common()
) -> int:
    """Take the mask off photos again: recognition works as before, up to what JPEG lost.

    Args:
        key: the .p3 file, or the run that learned it.
        photos: protected photos, or folders that hold them.
    """
    from holdfast.faces.protect import Protecting

    how = Protecting(False, None, flags.overwrite, flags.drop_location, flags.quality)
    return _each(key, photos, flags.out, how, common, reveal=True)


def _each(key: str, photos: Sequence[Path], out: Path, how: Any, common: Common, *, reveal: bool) -> int:
    require_faces()
    from holdfast.faces.photo import plan_targets
    from holdfast.faces.protect import each

    if not photos:
        raise DataError("no photos were named", hint="give photos, or folders that hold some")
    owner = _owner(key, common)
    plan = plan_targets(list(photos), out)
    with common.sink() as sink:
        results = each(plan.pairs, owner, how, sink, reveal=reveal)
    counts = {
        status: sum(one.status == status for one in results) for status in dict.fromkeys(r.status for r in results)
    }
    lines = [_line(one) for one in results if one.status != "protected" or len(results) <= _SHOWN]
    total = ", ".join(f"{count} {status}" for status, count in counts.items())
    text = "\n".join([*lines, f"{total}; written to {out}"])
    then = f"holdfast faces check {key} MORE-PHOTOS-OF-YOU" if not reveal else ""
    rows = [
        {
            name: getattr(one, name)
            for name in ("source", "target", "status", "faces", "changed", "ssim", "psnr", "message")
        }
        for one in results
    ]
    emit(common, {"photos": rows, **counts}, text, then=then)
    return 1 if counts.get("failed") else 0


_SHOWN = 12


def _line(one: Outcome) -> str:
    name = Path(one.source).name
    if one.status == "protected":
        faces_text = "1 face" if one.changed == 1 else f"{one.changed} faces"
        return f"{name}: protected, {faces_text}, SSIM {one.ssim:.3f}{'; ' + one.message if one.message else ''}"
    return f"{name}: {one.status}{': ' + one.message if one.message else ''}"


@faces.command
def demo(
    *,
    workers: int = 0,
    engine: Annotated[Engine, Flat] = Engine(),
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """The whole story on generated people: every method, held-out recognisers, attacks, keys, one report.

    Args:
        workers: processes; 0: one for each core.
    """
    return _compare("demo", workers, engine, common)


@faces.command
def compare(
    recipe: str,
    *,
    workers: int = 0,
    engine: Annotated[Engine, Flat] = Engine(),
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Compare mask methods at equal visibility: a recipe in, a table and a report out.

    Args:
        recipe: a TOML file, or the name of a shipped one (holdfast list shows them).
        workers: processes; 0: one for each core.
    """
    return _compare(recipe, workers, engine, common)


def _compare(recipe: str, workers: int, engine: Engine, common: Common) -> int:
    require_faces()
    from holdfast.data.recipes import find_recipe
    from holdfast.faces.compare import make_plan, run_compare
    from holdfast.faces.recipe import read_recipe
    from holdfast.faces.terminal import table

    read = read_recipe(find_recipe(recipe, "faces"))
    with common.sink() as sink:
        plan = make_plan(*read, common.store, sink)
        run, result = run_compare(plan, common.store, engine, workers=workers, command=this_command(), sink=sink)
    text = f"{table(result)}\n\nreport: {run.path / 'report.html'}"
    lean = {name: value for name, value in result.items() if name != "pictures"}
    emit(common, lean, text, run=run.path, then=f"holdfast faces report {run.path}")
    return 0 if result["complete"] else 1


@faces.command
def report(run: str, *, out: Path | None = None, common: Annotated[Common, Flat] = Common()) -> int:
    """Write the page of a comparison again.

    Args:
        run: run folder, name or key of a 'holdfast faces compare' or 'demo'.
        out: file to write; by default report.html in the run folder.
    """
    require_faces()
    from holdfast.core.files import read_json
    from holdfast.faces.compare import KIND
    from holdfast.faces.page import write

    found = common.store.find(run)
    if found.kind != KIND or not (found.path / "metrics.json").is_file():
        raise RunError(f"{found.name} is no finished comparison", hint="give the run of a 'holdfast faces compare'")
    page = out or found.path / "report.html"
    write(read_json(found.path / "metrics.json"), page)
    emit(common, {"report": str(page)}, f"report: {page}", run=found.path)
    return 0


@faces.command
def check(
    key: str,
    *photos: Path,
    checking: Annotated[Checking, Flat] = Checking(),
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Would recognisers still find you? Photos of you that the mask was not learned from, one report.

    Args:
        key: the .p3 file, or the run that learned it.
        photos: at least four photos of the key's owner, none of those that it was learned from.
    """
    require_faces()
    from holdfast.faces.selfcheck import run_check
    from holdfast.faces.terminal import check_text

    if not photos:
        raise DataError("no photos were named", hint="give photos of the owner that the mask has not seen")
    checking = replace(checking, recognisers=_names(checking.recognisers), attacks=_names(checking.attacks))
    owner = _owner(key, common)
    with common.sink() as sink:
        run, result = run_check(owner, list(photos), common.store, checking, command=this_command(), sink=sink)
    page = run.path / "report.html"
    lean = {name: value for name, value in result.items() if name != "pictures"}
    emit(common, lean, f"{check_text(result)}\n\nreport: {page}", run=run.path)
    return 0


@faces.command
def team(
    *recognisers: str,
    size: int = 2,
    people: str = "drawn",
    seed: int = 0,
    common: Annotated[Common, Flat] = Common(),
) -> int:
    """Which recognisers a mask should learn from: teams by the focal diversity of their mistakes.

    Args:
        recognisers: the pool: shipped names or folders.
        size: members of a team.
        people: a folder with one folder of photos for each person, or drawn.
        seed: of the damage that photos suffer.
    """
    require_faces()
    import torch

    from holdfast.data import drawn
    from holdfast.faces.check import read_album
    from holdfast.faces.recogniser import load_recognisers
    from holdfast.faces.team import pick_team

    pool = load_recognisers(_names(recognisers))
    if people == "drawn":
        shown = {
            f"drawn-{number}": torch.stack(
                [torch.from_numpy(drawn.aligned(one, shot)).permute(2, 0, 1).float() for shot in range(3)]
            )
            for number, one in enumerate(drawn.demo_people(30))
        }
    else:
        shown = {name: one.crops for name, one in read_album(Path(people), pool).people.items()}
    teams = pick_team(pool, shown, size, seed)
    lines = [f"{'team':<60} {'focal diversity':>15} {'right':>7}"]
    lines += [
        f"{', '.join(one.members):<60} {'none errs' if one.diversity is None else f'{one.diversity:.3f}':>15} "
        f"{one.accuracy:>7.1%}"
        for one in teams[:20]
    ]
    best = ",".join(teams[0].members)
    emit(common, {"teams": [one.as_json() for one in teams]}, "\n".join(lines),
         then=f"holdfast faces learn PHOTOS --recognisers {best} --out me.p3")  # fmt: skip
    return 0


@faces.command
def serve(*keys: Path, port: int = 8017, common: Annotated[Common, Flat] = Common()) -> int:
    """A page in your browser: drop photos, see them protected, download. Nothing leaves this machine.

    Args:
        keys: .p3 files whose owners may be chosen on the page.
        port: on 127.0.0.1.
    """
    require_faces()
    try:
        from holdfast.faces.serve import build_app, run
    except ModuleNotFoundError as error:
        raise MissingExtra("serve", error.name or "fastapi") from error
    owners = {place.stem: _owner(str(place), common) for place in keys}
    if not owners:
        raise UsageError("no key was named", hint="holdfast faces serve me.p3")
    run(build_app(owners), port, started=lambda where: print(f"open {where}\nCtrl-C stops it", flush=True))
    return 0
