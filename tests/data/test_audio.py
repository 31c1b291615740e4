"""WAV files of all widths, broken and hostile ones, and sets of clips."""

import io
import struct
import wave
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from erg.data import audio
from erg.data.audio import UnreadableSound, cut, mix, open_clips, read_wav, resample, write_wav
from erg.data.source import DataError


def tone(seconds: float = 0.1, rate: int = 8000, pitch: float = 440, level: float = 0.5):
    t = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * pitch * t)).astype(np.float32)


def encoded(frames: bytes, *, channels: int = 1, width: int = 2, rate: int = 8000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as stream:
        stream.setnchannels(channels)
        stream.setsampwidth(width)
        stream.setframerate(rate)
        stream.writeframes(frames)
    return out.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_is_read_sample_by_sample(width: int) -> None:
    """The extremes, zero and numbers between, written with Python's integers."""
    top = 2 ** (8 * width - 1)
    values = [-top, -top // 2, -1, 0, 1, top // 3, top - 1]
    if width == 1:
        raw = bytes(v + 128 for v in values)
    else:
        raw = b"".join(v.to_bytes(width, "little", signed=True) for v in values)
    sound, rate = read_wav(encoded(raw, width=width, rate=11025))
    assert rate == 11025
    assert sound.dtype == np.float32
    assert sound == pytest.approx([v / top for v in values], abs=1e-7)


def test_channels_become_their_mean(tmp_path: Path) -> None:
    raw = struct.pack("<6h", 1000, 3000, -2000, 2000, 32767, 32767)
    sound, _ = read_wav(encoded(raw, channels=2))
    assert sound == pytest.approx([2000 / 32768, 0, 32767 / 32768])


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    sound = np.append(tone(), [1.7, -3.0]).astype(np.float32)
    write_wav(tmp_path / "a.wav", sound, 8000)
    again, rate = read_wav(tmp_path / "a.wav")
    assert rate == 8000
    assert again == pytest.approx(sound.clip(-1, 1), abs=1.1 / 32768)


def header(*, channels=1, rate=8000, width=16, kind=1, claims=16, data=b"\0" * 16) -> bytes:
    fmt = struct.pack("<HHIIHH", kind, channels, rate, rate, 2, width)
    body = b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt
    body += b"data" + struct.pack("<I", claims) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


BROKEN = {
    "nothing": (b"", "PCM"),
    "text": (b"<html>not found</html>", "PCM"),
    "cut": (header()[:30], "PCM"),
    "float": (header(kind=3, width=32), "ffmpeg"),
    "no channel": (header(channels=0), "channels|PCM"),
    "many channels": (header(channels=65), "channels"),
    "no rate": (header(rate=0), "rate|PCM"),
    "huge rate": (header(rate=4_000_000_000), "rate|PCM"),
    "no sample": (header(claims=0, data=b""), "no sample"),
    "long": (header(rate=1000, claims=0x7FFFFFF0), "more than the limit"),
    "40 bits": (header(width=40), "40 bits|PCM"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_words(name: str) -> None:
    data, said = BROKEN[name]
    with pytest.raises(UnreadableSound, match=said) as raised:
        read_wav(data)
    assert "\n" not in str(raised.value)


def test_every_cut_and_every_flipped_byte_ends_in_words_or_sound() -> None:
    data = encoded(struct.pack("<40h", *range(40)))
    for end in range(len(data)):
        try:
            read_wav(data[:end])
        except UnreadableSound:
            continue
    for place in range(44):
        for bit in (1, 128, 255):
            hostile = bytearray(data)
            hostile[place] ^= bit
            try:
                sound, _ = read_wav(bytes(hostile))
            except UnreadableSound:
                continue
            assert len(sound) <= 80


def test_a_claim_of_much_takes_no_memory() -> None:
    """The header promises 900 MB; the samples that are there are read."""
    sound, _ = read_wav(header(rate=384_000, claims=900_000_000))
    assert len(sound) == 8


def test_no_regular_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableSound, match="folder"):
        read_wav(tmp_path)
    with pytest.raises(OSError, match="none"):
        read_wav(tmp_path / "none.wav")


def test_resampling_keeps_a_tone_and_takes_away_what_does_not_fit() -> None:
    there = resample(tone(1, 16000, 500), 16000, 8000)
    assert there.dtype == np.float32
    assert there[200:-200] == pytest.approx(tone(1, 8000, 500)[200:-200], abs=2e-3)
    gone = resample(tone(1, 16000, 6000), 16000, 8000)
    assert np.abs(gone[200:-200]).max() < 5e-3
    same = tone()
    assert resample(same, 8000, 8000) is same


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.5])
def test_mix_has_the_ratio_asked_for(snr: float) -> None:
    random = np.random.default_rng(0)
    clean, noise = tone(), random.normal(size=800).astype(np.float32)
    added = mix(clean, noise, snr).astype(np.float64) - clean
    found = 10 * np.log10(np.square(clean, dtype=np.float64).sum() / np.square(added).sum())
    assert found == pytest.approx(snr, abs=1e-4)
    assert np.corrcoef(added, noise)[0, 1] == pytest.approx(1)
    with pytest.raises(ValueError, match="silent"):
        mix(clean, np.zeros_like(clean), snr)


def test_cut_gives_pieces_of_the_sound() -> None:
    sound = np.arange(1, 11, dtype=np.float32)
    assert cut(sound, 4, 0.0).tolist() == [1, 2, 3, 4]
    assert cut(sound, 4, 1.0).tolist() == [7, 8, 9, 10]
    assert cut(sound, 12, 0.0).tolist() == [*range(1, 11), 1, 2]
    quiet = np.zeros(1000, dtype=np.float32)
    quiet[700] = 1
    assert 1 in cut(quiet, 50, 0.1)
    quiet = np.roll(quiet, -695)  # at 5: no piece can be centred there
    assert cut(quiet, 50, 0.9).tolist() == quiet[:50].tolist()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Ten clips of two speakers at two rates, and one that is broken."""
    out = io.BytesIO()
    clips = []
    for i in range(10):
        rate = 8000 if i % 2 else 16000
        raw = (tone(0.1, rate, 200 + 50 * i) * 32767).astype("<i2").tobytes()
        clips.append(encoded(raw, rate=rate))
    rows = {"audio": [*clips, b"broken"], "speaker": [*("ann", "bob") * 5, "ann"]}
    pq.write_table(pa.table(rows), out)
    (tmp_path / "clips.parquet").write_bytes(out.getvalue())
    return tmp_path / "clips.parquet"


def test_clips_of_a_table_by_speaker(table: Path) -> None:
    seen: list[tuple[int, int]] = []
    train, held = open_clips(
        table, rate=8000, hold="speaker=bob", progress=lambda n, of: seen.append((n, of))
    )
    assert (len(train), len(held)) == (5, 5)
    assert held.names == [f"row {i:06d}" for i in (1, 3, 5, 7, 9)]
    assert list(train.skipped) == ["row 000010"]
    assert "PCM" in train.skipped["row 000010"]
    assert [len(sound) for sound in train.sounds] == [800] * 5
    assert seen[-1] == (11, 11)


def test_a_fifth_is_held_out_by_content(table: Path) -> None:
    train, held = open_clips(table, rate=8000)
    assert (len(train), len(held)) == (8, 2)
    again, _ = open_clips(table, rate=8000)
    assert again.names == train.names
    assert not set(train.names) & set(held.names)


def test_clips_of_a_folder(tmp_path: Path) -> None:
    for name in ("ann/1.wav", "ann/2.WAV", "bob/1.wav", "bob/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_wav(tmp_path / name, tone(), 8000)
    train, held = open_clips(tmp_path, rate=8000, hold="folder=bob")
    assert train.names == ["ann/1.wav", "ann/2.WAV"]
    assert held.names == ["bob/1.wav"]


def test_links_out_of_a_folder_and_hidden_folders_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("a/1.wav", "a/2.wav", "b/1.wav", ".trash/3.wav", "../secret/s.wav"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_wav(root / name, tone(), 8000)
    (root / "a" / "link.wav").symlink_to(tmp_path / "secret" / "s.wav")
    train, held = open_clips(root, rate=8000, hold="folder=b")
    assert train.names == ["a/1.wav", "a/2.wav"]
    assert held.names == ["b/1.wav"]
    assert not train.skipped


def test_each_clip_is_read_once(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    plain = audio._bytes
    monkeypatch.setattr(audio, "_bytes", lambda source, i: (reads.append(i), plain(source, i))[1])
    open_clips(table, rate=8000)
    assert reads == list(range(11))


def test_clips_shorter_than_a_frame_are_left_out(tmp_path: Path) -> None:
    """25 ms hold no segment of 32 ms, by which what is held out is judged."""
    for i in range(9):
        write_wav(tmp_path / f"{i}.wav", tone(pitch=200 + 50 * i), 8000)
    write_wav(tmp_path / "short.wav", tone(0.025), 8000)
    train, held = open_clips(tmp_path, rate=8000)
    assert list(train.skipped) == ["short.wav"]
    assert "shorter than 0.04 s" in train.skipped["short.wav"]
    assert min(len(sound) for sound in train.sounds + held.sounds) >= 0.04 * 8000


def test_what_cannot_be_used_is_said(table: Path, tmp_path: Path, monkeypatch) -> None:
    for hold, said in (
        ("speaker=eve", r"0 of 10 .* speaker is one of: ann, bob"),
        ("voice=ann", "no column 'voice'"),
        ("ann", "COLUMN=VALUE"),
    ):
        with pytest.raises(DataError, match=said):
            open_clips(table, rate=8000, hold=hold)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.wav file"):
        open_clips(tmp_path / "empty", rate=8000)
    write_wav(tmp_path / "silent.wav", np.zeros(800, dtype=np.float32), 8000)
    with pytest.raises(DataError, match=r"1 of 1 sounds .* silent"):
        open_clips(tmp_path / "silent.wav", rate=8000)
    write_wav(tmp_path / "one.wav", tone(), 8000)
    with pytest.raises(DataError, match="at least two"):
        open_clips(tmp_path / "one.wav", rate=8000)
    monkeypatch.setattr(audio, "MAX_SAMPLES", 1000)
    with pytest.raises(DataError, match="hours"):
        open_clips(table, rate=8000)
