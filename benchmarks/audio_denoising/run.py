"""Spoken digits out of noise: a speaker and noises that training has not heard.

    python benchmarks/audio_denoising/run.py DATA [--seeds 0 1 2] [--speakers ...] [--threads 1]

For each speaker and seed a denoiser is trained on the other three speakers with the noises of
four folds of ESC-10 (a fold holds whole recordings), and tested on 200 clips of the speaker with
the noises of fold 5, at five signal-to-noise ratios. The baselines take the noise from the
quietest frames; where told, they know the mean spectrum of the very noise in each sound, and of
them nothing is claimed. What is in results.json already is not measured again.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from llvmlite import binding

from erg.apply.denoise import score_denoiser, train_denoiser
from erg.data.audio import open_clips
from erg.durable import write_atomically
from erg.train.run import environment

RESULTS = Path(__file__).parent / "results.json"
SPEAKERS = ("george", "jackson", "lucas", "nicolas")
STEPS = 2000
BAR = 3.0
"""Gain in SI-SDR at 0 dB that is claimed [dB]."""
BASELINES = ("spectral subtraction", "Wiener")
"""Which the denoiser is claimed to be ahead of at 0 dB."""


def measure(data: Path, speaker: str, steps: int, seed: int) -> dict[str, Any]:
    """Train without a speaker and a fold, test on them."""
    speech, held = open_clips(data / "fsdd_speech8k.parquet", rate=8000, hold=f"speaker={speaker}")
    noise, held_noise = open_clips(data / "esc10_noise8k.parquet", rate=8000, hold="fold=5")
    start, cpu = time.perf_counter(), time.process_time()
    network = train_denoiser(speech.sounds, noise.sounds, steps=steps, seed=seed)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "clips": [len(speech), len(held)],
        "noises": [len(noise), len(held_noise)],
        "scores": score_denoiser(network, held, held_noise, seed=seed),
        "machine": {"processor": binding.get_host_cpu_name(), "cores": os.cpu_count()},
        "versions": environment(),
    }


def run() -> None:
    """Measure what is missing, write after each repetition, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--speakers", nargs="+", default=list(SPEAKERS), choices=SPEAKERS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for seed in options.seeds:
        for speaker in options.speakers:
            key = f"{speaker}, {options.steps} steps, seed {seed}"
            if key not in done:
                done[key] = measure(options.data, speaker, options.steps, seed)
                write_atomically(RESULTS, json.dumps(done, indent=1).encode())
    table(done)


def worst_gain(runs: list[dict[str, Any]]) -> float:
    """Gain of the denoiser at 0 dB in the worst run [dB]."""
    return min(found["0"]["si_sdr"]["gain"]["erg"]["value"] for found in runs)


def claims(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is claimed, the bar, and what was measured in the worst run of the usual steps."""
    runs = [value["scores"]["ratios"] for key, value in done.items() if f", {STEPS} steps," in key]
    if not runs:
        return []
    gain = worst_gain(runs)
    ahead = min(found["0"]["si_sdr"]["ahead"][way]["value"] for found in runs for way in BASELINES)
    what, worst = "SI-SDR at 0 dB, speaker and noises never heard", f"worst of {len(runs)} runs"
    return [
        (f"{what}: gain", f">= {BAR:g} dB",
         f"{gain:.2f} dB ({worst}): {'held' if gain >= BAR else 'missed'}"),
        (f"{what}: above {' and '.join(BASELINES)}", "> 0 dB",
         f"{ahead:.2f} dB ({worst}): {'held' if ahead > 0 else 'missed'}"),
    ]  # fmt: skip


def table(done: dict[str, Any]) -> None:
    """The tables of every number of steps that was measured."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, found in done.items():
        _, steps, _ = key.split(", ")
        groups.setdefault(steps, []).append(found)
    for steps, group in groups.items():
        table_of(steps, group)


def table_of(steps: str, group: list[dict[str, Any]]) -> None:
    """Gains over the noisy sound by ratio: mean over runs, lowest and highest run."""
    runs = [found["scores"]["ratios"] for found in group]
    print(f"\n{steps}, {len(runs)} runs")
    for measure in ("si_sdr", "segmental_snr"):
        ways = list(runs[0]["0"][measure]["gain"])
        print(f"\ngain in {measure} [dB]\n\n| at | {' | '.join(ways)} |")
        print("|---" + "|---" * len(ways) + "|")
        for ratio in runs[0]:
            cells = []
            for way in ways:
                gains = [found[ratio][measure]["gain"][way]["value"] for found in runs]
                spread = f"{min(gains):.2f} to {max(gains):.2f}"
                cells.append(f"{statistics.mean(gains):.2f} ({spread})")
            print(f"| {ratio} dB | {' | '.join(cells)} |")
    print(f"\nworst run at 0 dB: {worst_gain(runs):.2f} dB (bar {BAR:g})")
    for way in runs[0]["0"]["si_sdr"]["ahead"]:
        ahead = [found["0"]["si_sdr"]["ahead"][way] for found in runs]
        least = min(each["value"] for each in ahead), min(each["low"] for each in ahead)
        print(f"ahead of {way}: {least[0]:.2f} dB at least, {least[1]:.2f} at the interval's end")
    print(f"longest training: {max(found['seconds'] for found in group):.0f} s")


if __name__ == "__main__":
    run()
