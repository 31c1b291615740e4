"""erg denoise: speech out of noise."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(denoise, args=list(arguments), prog="erg denoise")


def denoise(
    sound: Path | None = None,
    /,
    *,
    model: Path | None = None,
    audio: str | None = None,
    noise: str | None = None,
    hold: str | None = None,
    hold_noise: str | None = None,
    out: Path | None = None,
    rate: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
) -> int:
    """Take the noise out of a WAV file, or train a model that does.

    With --audio and --noise a model is trained on sounds of the one kind with sounds of the other
    added, and tested on what is held out of both, beside spectral subtraction and a Wiener filter.
    With a WAV file and --model the file is denoised.

    Args:
        sound: a WAV file.
        model: the folder of a model.
        audio: clean sounds: a folder of WAV files, or a parquet file with a column of them.
        noise: noises, in the same forms.
        hold: which clean sounds are held out: COLUMN=VALUE for parquet, folder=NAME for files; a
            fifth if not given.
        hold_noise: which noises are held out.
        out: the folder of the model; with a WAV file, the file to write.
        rate: that a model is trained for [Hz]; 8000 if not given.
        steps: of training; 2000 if not given.
        seed: of everything random in training; 0 if not given.
        device: cpu or cuda.
    """
    from erg.commands.options import check_seed, given, without
    from erg.commands.show import counting, tell

    said = given(hold=hold, hold_noise=hold_noise, rate=rate, steps=steps, seed=seed)
    if sound is not None and model is not None and audio is None and noise is None:
        without(said, f"{sound} is denoised by a model as it was trained")
        return _apply(sound, model, out or sound.with_name(f"{sound.stem}-denoised.wav"), device)
    if audio is None or noise is None or sound is not None or model is not None:
        raise ValueError(
            "erg denoise takes a WAV file and --model FOLDER, or --audio SPEECH and --noise NOISE "
            "to train a model. See: erg denoise --help."
        )
    from erg.apply.denoise import learn_to_denoise

    check_seed(seed)
    folder = out or Path("denoiser")
    scores = learn_to_denoise(
        audio, noise, folder, device=device, tell=tell, counting=counting, **said
    )
    _print(scores)
    tell(f"The model, spectrograms.png and an example are in {folder}.")
    return 0


def _apply(sound: Path, model: Path, out: Path, device: str) -> int:
    from erg.apply.denoise import draw_spectrograms
    from erg.apply.denoiser import Denoiser
    from erg.apply.restorer import load_restorer, put
    from erg.commands.options import beside
    from erg.commands.show import tell
    from erg.data.audio import read_wav, resample, write_wav

    picture = beside(out, ".png", "the spectrogram is")
    network = put(load_restorer(Denoiser, model), device)
    noisy, rate = read_wav(sound)
    if rate != network.rate:
        tell(f"{sound} has {rate} Hz; the model works at {network.rate} Hz, and so is the result.")
    noisy = resample(noisy, rate, network.rate)
    clean = network.denoise(noisy)
    write_wav(out, clean, network.rate)
    draw_spectrograms(network, picture, {"before": noisy, "after": clean})
    tell(f"Listen to {out}; {picture} shows it before and after.")
    return 0


def _print(scores: dict[str, Any]) -> None:
    """SI-SDR of every way by ratio, and what was gained."""
    from rich.table import Table

    from erg.apply.denoise import WAYS
    from erg.commands.show import console, tell

    for measure, title in (("si_sdr", "SI-SDR"), ("segmental_snr", "segmental SNR")):
        title = f"{title} in dB, {scores['clips']} sounds held out"
        table = Table(title=title, title_justify="left")
        for name in ("noise at", *WAYS):
            table.add_column(name, justify="right")
        table.add_column("gain", justify="right", no_wrap=True)
        for ratio, found in scores["ratios"].items():
            gain = found[measure]["gain"]["erg"]
            means = [f"{found[measure]['mean'][way]:.1f}" for way in WAYS]
            interval = f"{gain['value']:.1f} ({gain['low']:.1f} to {gain['high']:.1f})"
            table.add_row(f"{ratio} dB", *means, interval)
        console.print(table)
    tell(
        "Spectral subtraction and Wiener take the noise from the quietest frames; where told, they "
        "know the mean spectrum of the very noise in each sound, which nobody has in life."
    )
