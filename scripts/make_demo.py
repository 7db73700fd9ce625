"""Makes the embedded corpus, `data/demo/`: spoken conversations whose emotion lies in words, in prosody or in context.

    python scripts/make_demo.py [--output data/demo]

Needs Debian's espeak-ng 1.51 (`apt install espeak-ng`); PyAV, which the project installs, encodes to Ogg Opus. The
result is committed, so nobody has to run this. The same versions of both give the same bytes.

Every turn shows its emotion by exactly one cue, written down in the column `cue`:

    words     an expressive (or, for neutral, a factual) sentence, spoken plainly
    prosody   a sentence that fits every emotion, spoken with the pitch, range, rate and loudness of its emotion
    context   a short reply ("Same here."), spoken plainly: it shares the emotion of the turn before, which is always
              the other speaker's

So text alone cannot tell the emotion of `prosody` turns, audio alone cannot tell that of `words` turns, and neither
without the conversation that of `context` turns.
"""

import argparse
import csv
import io
import random
import shutil
import subprocess
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np

SEED = 215  # of the first 400, the one whose labels and cues are most even in every split
SPLITS = {"train": 80, "validation": 16, "test": 24}  # conversations
TURNS = {4: 4, 5: 5, 6: 4, 7: 3, 8: 2, 9: 1, 10: 1}  # turns of a conversation: weight
LABELS = ("neutral", "joy", "anger", "sadness")
CUES = {"words": 0.38, "prosody": 0.38, "context": 0.24}  # the first turn has no context, hence 40 : 40 : 20 in all
SAME_SPEAKER_GOES_ON = 0.15

SAMPLE_RATE = 16_000
BIT_RATE = 16_000
SILENCE = 0.01  # of full scale
MARGIN_SECONDS = 0.05  # silence kept before and after the speech

Cue = Literal["words", "prosody", "context"]


@dataclass(frozen=True)
class Prosody:
    """Settings of espeak-ng: each is drawn from a normal distribution, given as mean and standard deviation."""

    pitch: tuple[float, float]  # 0..99, relative to the voice
    pitch_range: tuple[float, float]  # per cent of the voice's own
    rate: tuple[float, float]  # words a minute
    loudness: tuple[float, float]  # 100 is the voice's own; above it the loudest peaks clip, as a shout does


@dataclass(frozen=True)
class Delivery:
    """One draw from a `Prosody`, in the same units."""

    pitch: int
    pitch_range: int
    rate: int
    loudness: int


@dataclass(frozen=True)
class Turn:
    conversation: str
    turn: int
    speaker: str
    split: str
    label: str
    text: str
    cue: Cue
    delivery: Delivery

    @property
    def audio(self) -> str:
        return f"audio/{self.conversation}/{self.turn:02d}.ogg"


PROSODY = {
    "neutral": Prosody(pitch=(50, 5), pitch_range=(100, 14), rate=(172, 9), loudness=(100, 6)),
    "joy": Prosody(pitch=(72, 6), pitch_range=(175, 18), rate=(182, 11), loudness=(112, 8)),
    "anger": Prosody(pitch=(56, 6), pitch_range=(140, 18), rate=(236, 13), loudness=(145, 10)),
    "sadness": Prosody(pitch=(30, 6), pitch_range=(55, 12), rate=(132, 9), loudness=(80, 6)),
}

VOICES = {
    "Alice": "en-us+f1",
    "Beth": "en-gb-x-rp+f3",
    "Clara": "en-us+f4",
    "Dora": "en-029+f2",
    "Evan": "en-us+m3",
    "Frank": "en-gb-scotland+m1",
    "George": "en-us+m7",
    "Henry": "en-gb-x-rp+m3",
}

SLOTS = {
    "person": (
        "my sister",
        "your brother",
        "our neighbour",
        "the teacher",
        "my cousin",
        "your uncle",
        "the landlord",
        "my old friend",
        "the manager",
        "your aunt",
    ),
    "time": (
        "this morning",
        "last night",
        "on Monday",
        "after lunch",
        "yesterday",
        "an hour ago",
        "on the phone",
        "before dinner",
    ),
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"),
    "number": ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    "place": ("library", "station", "office", "school", "bakery", "museum", "bank", "market"),
    "colour": ("blue", "green", "brown", "grey", "white", "yellow"),
}
TOPICS = (
    "the exam",
    "the new job",
    "the flat",
    "the wedding",
    "the concert",
    "the trip",
    "the garden",
    "the car",
    "the dog",
    "the match",
    "the party",
    "the project",
    "the train",
    "the play",
    "the letter",
    "the kitchen",
    "the boat",
    "the painting",
    "the meeting",
    "the holiday",
)
FEELINGS = {
    "joy": ("happy", "thrilled", "delighted", "overjoyed", "glad", "cheerful", "excited", "jolly"),
    "anger": ("furious", "angry", "outraged", "livid", "mad", "enraged", "annoyed", "bitter"),
    "sadness": ("sad", "heartbroken", "miserable", "lonely", "hopeless", "gloomy", "tearful", "sorrowful"),
}
QUALITIES = {
    "joy": ("wonderful", "fantastic", "lovely", "brilliant", "amazing", "marvellous", "delightful", "superb"),
    "anger": (
        "outrageous",
        "disgraceful",
        "ridiculous",
        "unacceptable",
        "insulting",
        "infuriating",
        "shameless",
        "rude",
    ),
    "sadness": ("tragic", "painful", "depressing", "dreary", "mournful", "bleak", "grim", "pitiful"),
}
EXPRESSIVE = (  # joy, anger and sadness share these: only the filled slots differ
    "I am so {feeling} about {topic}.",
    "{person} was {feeling} about {topic} {time}.",
    "Honestly, {topic} is just {quality}.",
    "What a {quality} thing to hear about {topic}.",
    "I felt {feeling} and I still feel {feeling2}.",
    "It was {quality}, {person} was {feeling}.",
    "You can see how {feeling} I am about {topic}.",
    "How {quality} of {person} to say that.",
    "{topic} makes me {feeling}, it is {quality}.",
    "I have been {feeling} ever since {topic}.",
)
OWN = {
    "joy": (
        "I love {topic}, we laughed so much.",
        "Hooray, {person} won and we are celebrating {topic}.",
        "I cannot stop smiling about {topic}.",
        "Good news, {topic} is a dream come true.",
        "I am proud of {person}, let us celebrate.",
        "We danced and laughed with {person} {time}.",
    ),
    "anger": (
        "I hate {topic}, how dare {person} do this.",
        "I am sick of {topic} and of {person}.",
        "{person} lied to me, I will not tolerate it.",
        "Shut up about {topic}, I am fed up.",
        "How dare {person} shout at me {time}.",
        "I hate it, {person} broke {topic} on purpose.",
    ),
    "sadness": (
        "I miss {person}, I cried {time}.",
        "I wept about {topic}, all hope is gone.",
        "I lost {topic} and I miss it so much.",
        "I cried {time}, {person} is gone.",
        "It hurts to lose {topic}, I am in tears.",
        "I am all alone now that {person} is gone.",
    ),
    "neutral": (
        "The {place} opens at {number} on {weekday}.",
        "{topic} is on {weekday} at {number}.",
        "The bus to the {place} leaves at {number}.",
        "There are {number} chairs in the {place}.",
        "The form goes to the {place} by {weekday}.",
        "The {place} is next to the {place2}.",
        "The {colour} folder is at the {place}.",
        "It takes {number} minutes to walk to the {place}.",
        "The list for {topic} has {number} pages.",
        "The {place} has a {colour} door and {number} windows.",
        "On {weekday} the {place} closes at {number}.",
        "Turn left at the {place}, it is number {number}.",
    ),
}
AMBIGUOUS = (  # fit every emotion
    "I just heard about {topic}.",
    "{person} told me about {topic} {time}.",
    "So {person} called me {time}.",
    "I did not expect that from {person}.",
    "It is about {topic} again.",
    "You heard what {person} said about {topic}.",
    "I cannot believe it, {person} came back.",
    "{person} said it would be like this.",
    "And then {person} walked in.",
    "This changes everything about {topic}.",
    "I thought about {topic} all night.",
    "Now it is all over with {topic}.",
    "I opened the door and there was {person}.",
    "You should have seen {topic} {time}.",
    "That is what {person} wanted all along.",
    "They gave {topic} to {person}.",
    "I never thought {person} would do that.",
    "Look at what {person} did with {topic}.",
)
REPLIES = (
    "Same here.",
    "Me too, {name}.",
    "I feel the same.",
    "So do I, {name}.",
    "That makes two of us.",
    "You and me both.",
    "I know how you feel.",
    "I feel just like you, {name}.",
    "It is the same for me.",
    "Exactly how I feel.",
)


def write_conversation(generator: random.Random, conversation: str, split: str) -> Iterator[Turn]:
    """The turns of one conversation between two speakers about one topic."""
    speakers = generator.sample(list(VOICES), 2)
    topic = generator.choice(TOPICS)
    speaking, label = 0, ""
    for turn in range(generator.choices(list(TURNS), list(TURNS.values()))[0]):
        cue = _draw_cue(generator, first=turn == 0)
        goes_on = generator.random() < SAME_SPEAKER_GOES_ON
        if cue == "context" or (turn > 0 and not goes_on):
            speaking = 1 - speaking
        if cue != "context":
            label = generator.choice(LABELS)
        template = generator.choice(_templates(generator, cue, label))
        yield Turn(
            conversation=conversation,
            turn=turn,
            speaker=speakers[speaking],
            split=split,
            label=label,
            text=_fill(generator, template, label, topic, name=speakers[1 - speaking]),
            cue=cue,
            delivery=_draw_delivery(generator, PROSODY[label if cue == "prosody" else "neutral"]),
        )


def speak(turn: Turn) -> np.ndarray:
    """`turn` said by espeak-ng, without the silence around it: int16 samples (samples,) at `SAMPLE_RATE`."""
    delivery = turn.delivery
    markup = f'<speak><prosody range="{delivery.pitch_range}%">{turn.text}</prosody></speak>'
    command = ["espeak-ng", "-v", VOICES[turn.speaker], "-m", "--stdout"]
    command += ["-p", str(delivery.pitch), "-s", str(delivery.rate), "-a", str(delivery.loudness), markup]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(output)) as file:
        rate = file.getframerate()
        speech = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
    loud = np.flatnonzero(np.abs(speech.astype(np.int32)) > SILENCE * 32768)
    margin = int(MARGIN_SECONDS * rate)
    return _resample(speech[max(loud[0] - margin, 0) : loud[-1] + margin], rate)


def encode(speech: np.ndarray, path: Path) -> None:
    """Writes int16 `speech` (samples,) as Ogg Opus; `bitexact` keeps random serial numbers and versions out of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="ogg", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono")
        stream.bit_rate = BIT_RATE
        stream.codec_context.options = {"frame_duration": "60", "application": "voip"}
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        container.mux(stream.encode(_frame(speech, SAMPLE_RATE)))
        container.mux(stream.encode(None))


def write_table(turns: list[Turn], path: Path) -> None:
    """The corpus' one CSV."""
    columns = ["conversation", "turn", "speaker", "split", "label", "text", "audio", "cue"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([getattr(turn, column) for column in columns] for turn in turns)


def write_corpus() -> list[Turn]:
    """Every turn of every conversation, in order; splits are drawn by conversation."""
    generator = random.Random(SEED)
    splits = [split for split, conversations in SPLITS.items() for _ in range(conversations)]
    generator.shuffle(splits)
    return [
        turn
        for number, split in enumerate(splits, start=1)
        for turn in write_conversation(generator, f"c{number:03d}", split)
    ]


def _draw_cue(generator: random.Random, first: bool) -> Cue:
    cues: list[Cue] = ["words", "prosody"] if first else ["words", "prosody", "context"]
    return generator.choices(cues, [CUES[cue] for cue in cues])[0]


def _draw_delivery(generator: random.Random, prosody: Prosody) -> Delivery:
    return Delivery(
        pitch=min(max(round(generator.gauss(*prosody.pitch)), 5), 95),
        pitch_range=max(round(generator.gauss(*prosody.pitch_range)), 20),
        rate=max(round(generator.gauss(*prosody.rate)), 90),
        loudness=max(round(generator.gauss(*prosody.loudness)), 50),
    )


def _templates(generator: random.Random, cue: Cue, label: str) -> tuple[str, ...]:
    if cue == "prosody":
        return AMBIGUOUS
    if cue == "context":
        return REPLIES
    if label == "neutral":
        return OWN[label]
    return generator.choice((EXPRESSIVE, OWN[label]))


def _fill(generator: random.Random, template: str, label: str, topic: str, name: str) -> str:
    drawn = {slot: generator.sample(words, 2) for slot, words in SLOTS.items()}
    if label in FEELINGS:
        drawn["feeling"] = generator.sample(FEELINGS[label], 2)
        drawn["quality"] = generator.sample(QUALITIES[label], 2)
    slots = {slot: words[0] for slot, words in drawn.items()} | {f"{slot}2": words[1] for slot, words in drawn.items()}
    text = template.format(topic=topic, name=name, **slots)
    return text[0].upper() + text[1:]


def _frame(speech: np.ndarray, rate: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(speech[None], format="s16", layout="mono")
    frame.sample_rate = rate
    frame.time_base = Fraction(1, rate)
    frame.pts = 0
    return frame


def _resample(speech: np.ndarray, rate: int) -> np.ndarray:
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    frames = [*resampler.resample(_frame(speech, rate)), *resampler.resample(None)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the embedded corpus.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "data" / "demo")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output / "audio", ignore_errors=True)
    turns = write_corpus()
    for turn in turns:
        encode(speak(turn), output / turn.audio)
    write_table(turns, output / "utterances.csv")
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {len(turns)} turns, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
