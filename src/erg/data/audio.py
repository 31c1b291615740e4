"""Sounds: WAV files to numbers and back, and clips of a data set in two parts.

Files may come from anywhere. Only PCM is read, by the standard library, which decodes nothing;
sizes and lengths are checked before memory is taken. Several channels become their mean.
"""

import io
import math
import wave
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.signal import resample_poly

from erg.data.files import walk
from erg.data.manifest import content_hash
from erg.data.opening import UnreadableImage, read_file
from erg.data.source import DataError, Source, open_source, printable
from erg.data.splits import split
from erg.durable import write_atomically

RATES = (1_000, 384_000)
"""Smallest and largest rate that is read [Hz]."""

MAX_SECONDS = 1800
"""Longest sound read [seconds]."""

SHORTEST = 0.04
"""Shortest clip of a set [seconds]: the segmental SNR takes segments of 32 ms, at odd rates 34."""

MAX_SAMPLES = 1 << 28
"""Most samples of a set that are held in memory (1 GiB)."""

PCM = "Write it as PCM, for example: ffmpeg -i IN -c:a pcm_s16le OUT.wav"


class UnreadableSound(DataError):
    """A file that is not decoded: one sentence why, and where it helps one on what to do."""


def read_wav(file: bytes | Path) -> tuple[Float[np.ndarray, " t"], int]:
    """A WAV file as float32 in [-1, 1], and its rate [Hz].

    Args:
        file: the encoded bytes, or the path of a regular file.

    Raises:
        UnreadableSound: it is no PCM of 8 to 32 bits, is cut off before its first sample, too
            long, or of an odd rate.
        OSError: it cannot be read.
    """
    try:
        data = file if isinstance(file, bytes) else read_file(file)
    except UnreadableImage as error:  # what is true of any file
        raise UnreadableSound(error.reason) from None
    try:
        with wave.open(io.BytesIO(data)) as stream:
            channels, width, rate = (
                stream.getnchannels(), stream.getsampwidth(), stream.getframerate(),
            )  # fmt: skip
            _check(channels, rate, stream.getnframes())
            raw = stream.readframes(stream.getnframes())
    except UnreadableSound:
        raise
    except Exception as error:  # hostile headers: wave.Error, EOFError, struct.error and others
        reason = str(error)[:100] or "it ends within its header"
        raise UnreadableSound(f"It is no PCM WAV file ({printable(reason)}). {PCM}") from None
    frames = len(raw) // (channels * width)
    if not frames:
        raise UnreadableSound("The file holds no sample.")
    samples = _samples(raw[: frames * channels * width], width)
    return samples.reshape(frames, channels).mean(axis=1, dtype=np.float32), rate


def _check(channels: int, rate: int, frames: int) -> None:
    if not 1 <= channels <= 64:
        raise UnreadableSound(f"{channels} channels are not in 1 to 64.")
    if not RATES[0] <= rate <= RATES[1]:
        raise UnreadableSound(f"A rate of {rate:,} Hz is not in {RATES[0]:,} to {RATES[1]:,}.")
    if frames > MAX_SECONDS * rate:
        raise UnreadableSound(
            f"{frames / rate:,.0f} s are more than the limit of {MAX_SECONDS:,}. Cut it."
        )


def _samples(raw: bytes, width: int) -> Float[np.ndarray, " n"]:
    """Little-endian integers of `width` bytes (of one byte: offset by 128) as float32."""
    if width == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:  # the upper three bytes of 32-bit integers
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        raw, width = wide.tobytes(), 4
    if width not in (2, 4):
        raise UnreadableSound(f"Samples of {8 * width} bits are not read. {PCM}")
    values = np.frombuffer(raw, f"<i{width}").astype(np.float32)
    return values / np.float32(2 ** (8 * width - 1))


def write_wav(path: Path, sound: Float[np.ndarray, " t"], rate: int) -> None:
    """A mono file of 16 bits, whole or not there; what is beyond [-1, 1] is cut off.

    Args:
        path: of the file.
        sound: samples in [-1, 1].
        rate: [Hz].
    """
    out = io.BytesIO()
    with wave.open(out, "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(rate)
        stream.writeframes(np.rint(np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    write_atomically(path, out.getvalue())


def resample(sound: Float[np.ndarray, " t"], rate: int, wanted: int) -> Float[np.ndarray, " u"]:
    """At another rate [Hz], by polyphase filtering; what is above its half is filtered out."""
    if rate == wanted:
        return sound
    common = math.gcd(rate, wanted)
    return resample_poly(sound, wanted // common, rate // common).astype(np.float32)


def mix(
    clean: Float[np.ndarray, " t"], noise: Float[np.ndarray, " t"], snr: float
) -> Float[np.ndarray, " t"]:
    """clean + g noise with 10 log10(||clean||^2 / ||g noise||^2) = snr [dB].

    Raises:
        ValueError: either is silent.
    """
    powers = [float(np.square(s, dtype=np.float64).sum()) for s in (clean, noise)]
    if not min(powers) > 0:
        raise ValueError("a silent sound has no signal-to-noise ratio. Leave silent clips out.")
    return clean + np.float32(math.sqrt(powers[0] / powers[1] / 10 ** (snr / 10))) * noise


def cut(sound: Float[np.ndarray, " t"], length: int, where: float) -> Float[np.ndarray, " n"]:
    """A piece of a sound, which is repeated where it is too short.

    Where the piece would be silent (60 dB below the sound), it is the one around the loudest
    sample.

    Args:
        sound: to cut from.
        length: of the piece [samples].
        where: its start, from 0 (the first possible) to 1 (the last).
    """
    if len(sound) < length:
        sound = np.tile(sound, -(-length // len(sound)))
    last = len(sound) - length
    start = round(where * last)
    if np.square(sound[start : start + length]).mean() < 1e-6 * np.square(sound).mean():
        start = min(max(0, int(np.abs(sound).argmax()) - length // 2), last)
    return sound[start : start + length]


# Sets of clips -------------------------------------------------------------------------------


@dataclass
class Clips:
    """Sounds of one rate.

    Args:
        names: of every clip, relative to its source.
        sounds: samples of every clip.
        skipped: why clips were left out, by name.
    """

    names: list[str] = field(default_factory=list)
    sounds: list[np.ndarray] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sounds)


def open_clips(
    data: str | Path,
    *,
    rate: int,
    hold: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Clips, Clips]:
    """Clips to train on, and clips held out.

    Args:
        data: a folder with .wav files, one such file, or a parquet file with a column of them.
        rate: that all are brought to [Hz].
        hold: COLUMN=VALUE holds out the rows of a parquet file with that value; folder=NAME the
            files in that folder. None: a fifth of the clips, chosen by content.
        progress: called with the number of clips read and of all.

    Raises:
        DataError: nothing usable is there, or `hold` takes none or all of it.
    """
    column, _, value = (hold or "").partition("=")
    if hold is not None and not (column and value):
        raise DataError(f"{hold!r} should be COLUMN=VALUE or folder=NAME, as speaker=jackson.")
    source = _open(Path(data), column or None)
    parts = Clips(), Clips()
    held, hashes = [], []
    read = Clips()
    total = 0
    for i in range(len(source)):
        name = source.path(i)
        try:
            encoded = _bytes(source, i)
            sound, found = read_wav(encoded)
            if not sound.any() or len(sound) < SHORTEST * found:
                raise UnreadableSound(f"It is silent, or shorter than {SHORTEST} s.")
        except (UnreadableSound, OSError) as error:
            read.skipped[name] = str(error)
        else:
            read.names.append(name)
            read.sounds.append(resample(sound, found, rate))
            total += len(read.sounds[-1])
            held.append(source.label(i))
            hashes.append(content_hash(encoded))
        if total > MAX_SAMPLES:
            raise DataError(
                f"{printable(str(data))} holds more than {MAX_SAMPLES / rate / 3600:.0f} hours. "
                "Give fewer or shorter clips."
            )
        if progress is not None:
            progress(i + 1, len(source))
    if 5 * len(read.skipped) > len(source):
        name, reason = next(iter(read.skipped.items()))
        raise DataError(
            f"{len(read.skipped)} of {len(source)} sounds in {printable(str(data))} cannot be "
            f"used, for example {name}: {reason}"
        )
    if hold is None:
        held_rows = set(split(hashes)[1].tolist())
    else:
        held_rows = {i for i, label in enumerate(held) if label == value}
    if not 0 < len(held_rows) < len(read):
        values = ", ".join(sorted({str(label) for label in held})[:10])
        raise DataError(
            f"{len(held_rows)} of {len(read)} sounds in {printable(str(data))} would be held out"
            + (f"; {column} is one of: {values}. Choose another value." if hold else
               ". Give at least two different ones.")
        )  # fmt: skip
    for i in range(len(read)):
        part = parts[i in held_rows]
        part.names.append(read.names[i])
        part.sounds.append(read.sounds[i])
    parts[0].skipped.update(read.skipped)
    return parts


def _open(path: Path, label: str | None) -> Source:
    """What holds the encoded files; sources do not care what is in them."""
    if path.is_dir():
        files = [path / name for name in walk(path, False)[0] if name.lower().endswith(".wav")]
        if not files:
            raise DataError(
                f"{printable(str(path))} holds no .wav file. Give a folder of them, or a parquet "
                "file with a column of them."
            )
        return open_source([str(file) for file in files], label=label)
    if path.suffix.lower() == ".wav":
        return open_source([str(path)], label=label)
    return open_source(path, label=label)


def _bytes(source: Source, i: int) -> bytes:
    try:
        item = source.item(i)
    except UnreadableImage as error:
        raise UnreadableSound(error.reason) from None
    if not isinstance(item, bytes):
        raise UnreadableSound("It is an array, not a file.")
    return item
