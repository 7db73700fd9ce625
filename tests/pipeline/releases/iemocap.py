"""A small IEMOCAP release: its tree and line formats, made text, synthesised speech, and every known fault in it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.pipeline.releases.speech import write_speech

HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
EVALUATORS = (
    "C-E2:\tNeutral;\t()\nC-E3:\tAnger; Other;\t(uneasy)\nC-F1:\tNeutral;\t()\n"
    "A-E3:\tval 3; act 2; dom  2;\t()\nA-E4:\tval 2; act 3; dom  ;\t(mixed)\nA-F1:\tval 3; act 2; dom  1;\t()\n\n"
)
EMOTIONS = ("ang", "hap", "exc", "sad", "neu", "fru", "xxx", "sur")  # of the turns of every dialogue, in order


@dataclass(frozen=True)
class Said:
    """A turn as the release writes it."""

    name: str
    start: float
    end: float
    text: str
    emotion: str | None  # None: nobody evaluated it

    @property
    def transcribed(self) -> str:
        """Its line in the transcription."""
        return f"{self.name} [{self.start:08.4f}-{self.end:08.4f}]: {self.text}"

    @property
    def evaluated(self) -> str:
        """Its lines among the evaluations."""
        times = f"[{self.start:.4f} - {self.end:.4f}]"
        return f"{times}\t{self.name}\t{self.emotion}\t[2.5000, 2.5000, 2.5000]\n{EVALUATORS}"


def dialogue_of(name: str) -> list[Said]:
    """A turn of every emotion, both actors by turns, a second each."""
    return [
        Said(
            f"{name}_{'FM'[number % 2]}{number // 2:03}", 2.0 + number, 3.0 + number, f"This is turn {number}.", emotion
        )
        for number, emotion in enumerate(EMOTIONS)
    ]


def write_dialogue(root: Path, session: int, name: str, said: Sequence[Said], extra: Sequence[str] = ()) -> None:
    """Its transcription (with `extra` lines at its end), its evaluations, and a recording of every evaluated turn."""
    dialog = root / f"Session{session}" / "dialog"
    evaluated = [turn for turn in said if turn.emotion is not None]
    _write(dialog / "transcriptions" / f"{name}.txt", "\n".join([*(turn.transcribed for turn in said), *extra, ""]))
    _write(dialog / "EmoEvaluation" / f"{name}.txt", HEADER + "".join(turn.evaluated for turn in evaluated))
    for number, turn in enumerate(evaluated):
        write_speech(root / f"Session{session}" / "sentences" / "wav" / name / f"{turn.name}.wav", number)


def write_release(root: Path) -> Path:
    """Five sessions of two dialogues, in the way of the release, with what is not about turns as well."""
    for session in range(1, 6):
        for kind in (f"Ses{session:02}F_impro01", f"Ses{session:02}M_script01_1"):
            write_dialogue(root, session, kind, dialogue_of(kind))
        evaluation = root / f"Session{session}" / "dialog" / "EmoEvaluation"
        first = f"Ses{session:02}F_impro01"
        _write(evaluation / "Attribute" / f"{first}_e3_atr.txt", f"{first}_F000 :act 4; :val 3; :dom 2;\n")
        _write(evaluation / "Categorical" / f"{first}_e2_cat.txt", f"{first}_F000 :Neutral state; ()\n")
        _write(evaluation / "Self-evaluation" / f"{first}_f1_atr.txt", f"{first}_F000 :act 4; :val 3; :dom 1;\n")
        _write(evaluation / "Self-evaluation" / f"{first}.anvil", "<annotation/>\n")
        (evaluation / f"._{first}.txt").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    return root


def write_faults(root: Path) -> Path:
    """The same, and in session 1 a dialogue `Ses01F_impro02` that has every known fault."""
    write_release(root)
    name = "Ses01F_impro02"
    said = dialogue_of(name)
    said[1] = replace(said[1], start=2.5, text="He said \x93no\x94.")  # begins while the first one lasts
    said[2] = replace(said[2], start=9.5, end=4.5)  # ends before it begins
    unevaluated = [
        Said(f"{name}_MXX0", 6.5, 6.9, "[LAUGHTER]", None),
        Said(f"{name}_FXX0", 1.0, 0.5, "Excuse me.", None),
    ]
    extra = [
        "M: Yeah.",  # no name, no times
        f"{name}_M000 [020.0000-021.0000]: The same name again.",
        "(they leave)",
    ]
    write_dialogue(root, 1, name, [*said, *unevaluated], extra)
    dialog = root / "Session1" / "dialog"
    evaluation = dialog / "EmoEvaluation" / f"{name}.txt"
    untranscribed = Said(f"{name}_F099", 30.0, 31.0, "", "neu")
    _write(evaluation, evaluation.read_text() + untranscribed.evaluated + "see the notes\n")
    transcription = dialog / "transcriptions" / f"{name}.txt"
    transcription.write_bytes(transcription.read_text().replace("\n", "\r\n").encode("latin-1"))  # cp1252 as is found
    write_speech(root / "Session1" / "sentences" / "wav" / name / f"{untranscribed.name}.wav", 9)
    (root / "Session1" / "sentences" / "wav" / name / f"{said[3].name}.wav").unlink()
    return root


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="\n")
