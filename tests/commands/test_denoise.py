"""erg denoise, from its arguments."""

from pathlib import Path

import numpy as np
import pytest

from erg.apply import denoise
from erg.commands.denoise import main
from erg.data.audio import read_wav, resample, write_wav
from erg.durable import Unwritable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones and noises, and a model that saw two steps of them."""
    root = tmp_path_factory.mktemp("sounds")
    random = np.random.default_rng(0)
    for i in range(5):
        tone = 0.3 * np.sin(2 * np.pi * (200 + 90 * i) * np.arange(3200) / 8000)
        for kind, sound in (("speech", tone), ("noise", 0.1 * random.normal(size=4000))):
            (root / kind).mkdir(exist_ok=True)
            write_wav(root / kind / f"{i}.wav", sound.astype(np.float32), 8000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoise, "BATCH", 2)
        arguments = ["--audio", str(root / "speech"), "--noise", str(root / "noise")]
        assert main([*arguments, "--steps", "2", "--out", str(root / "model")]) == 0
    return root


def test_training_tells_what_it_is_worth(folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(denoise, "BATCH", 2)
    arguments = ["--audio", str(folder / "speech"), "--noise", str(folder / "noise")]
    assert main([*arguments, "--steps", "2", "--out", str(folder / "again")]) == 0
    said = capsys.readouterr().out
    for words in ("Training on 4 clips", "SI-SDR in dB", "segmental SNR in dB", "Wiener", "15 dB"):
        assert words in said
    weights = [folder / name / "model.safetensors" for name in ("model", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_file_is_denoised(folder: Path, tmp_path: Path, capsys) -> None:
    noisy, _ = read_wav(folder / "speech" / "1.wav")
    write_wav(tmp_path / "noisy.wav", resample(noisy, 8000, 16000), 16000)
    assert main([str(tmp_path / "noisy.wav"), "--model", str(folder / "model")]) == 0
    clean, rate = read_wav(tmp_path / "noisy-denoised.wav")
    assert (len(clean), rate) == (3200, 8000)
    assert (tmp_path / "noisy-denoised.png").read_bytes().startswith(b"\x89PNG")
    assert "16000 Hz; the model works at 8000 Hz" in capsys.readouterr().out
    out = tmp_path / "other.wav"
    same = str(folder / "speech" / "1.wav")
    assert main([same, "--model", str(folder / "model"), "--out", str(out)]) == 0
    assert len(read_wav(out)[0]) == 3200


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "takes a WAV file and --model"),
        (["--audio", "speech"], "takes a WAV file and --model"),
        (["a.wav", "--model", "m", "--audio", "x"], "takes a WAV file and --model"),
        (["speech/1.wav", "--model", "speech"], "holds no model for erg denoise"),
        (["notes.txt", "--model", "model"], "no PCM WAV file"),
        (["speech/1.wav", "--model", "model", "--device", "abacus"], "no device 'abacus' here"),
        (
            ["speech/1.wav", "--model", "model", "--hold-noise", "folder=a", "--rate", "16000"],
            "--hold-noise, --rate would change nothing: speech/1.wav is denoised by a model",
        ),
        (["speech/1.wav", "--model", "model", "--out", "a.png"], "spectrogram is written to a.png"),
        (["speech/1.wav", "--model", "model", "--out", "a.PNG"], "spectrogram is written to a.png"),
        (["speech/1.wav", "--model", "model", "--out", "model"], "model is a folder. Name a file"),
        (["speech/1.wav", "--model", "model", "--out", "no/b.wav"], "there is no folder no"),
        (["--audio", "speech", "--noise", "noise", "--seed", "-1"], "--seed should be at least 0"),
        (["--audio", "empty", "--noise", "noise"], "no .wav file"),
        (["--audio", "nowhere", "--noise", "noise"], "no file or folder"),
    ],
)
def test_a_mistake_is_said(folder: Path, monkeypatch, arguments: list[str], said: str) -> None:
    monkeypatch.chdir(folder)
    (folder / "notes.txt").write_text("no sound")
    (folder / "empty").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=said):
        main(arguments)
    assert not [*folder.glob("a.*"), *folder.glob("model.*")]


def test_where_the_model_goes_is_looked_at_before_it_learns(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was trained")

    monkeypatch.setattr(denoise, "train_denoiser", never)
    arguments = ["--audio", str(folder / "speech"), "--noise", str(folder / "noise")]
    out = folder / "speech" / "1.wav"
    with pytest.raises(Unwritable, match=r"1.wav cannot be written \(File exists\)"):
        main([*arguments, "--out", str(out)])
