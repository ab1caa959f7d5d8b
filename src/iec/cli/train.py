"""`iec train` and `iec train-features`: how the embedded model and its feature network are made."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from iec.cli.common import Json, print_json, progress

Data = Annotated[str, typer.Argument(help="An .npz with 'jpeg' and 'offset', or a folder of images.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="The training folder.")]


def train(
    data: Data,
    output: Output,
    iterations: Annotated[int, typer.Option(help="Iterations in all; the rate decays over the last part.")] = 20_000,
    start: Annotated[str | None, typer.Option(help="Begin from the weights of this diffusers folder.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per iteration.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="The peak rate of AdamW.")] = 4e-4,
    decay: Annotated[float, typer.Option(help="The fraction of the iterations over which the rate falls.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Decides every random choice.")] = 0,
    save_every: Annotated[int, typer.Option(help="Iterations between two saved states.")] = 100,
    held_out: Annotated[
        str | None, typer.Option(help="Images the model has not seen: report its loss on them per noise level.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train the unconditional 32x32 denoiser, or go on where an earlier call with the same folder stopped.

    The folder then holds the training state and `model/`, which DDIMPipeline.from_pretrained loads.

    Example: iec train cifar10_train.npz -o runs/embedded --iterations 20000 --held-out cifar10_test.npz
    """
    from iec.storage.files import require_writable
    from iec.training.data import load_images
    from iec.training.denoiser import (
        TrainingConfig,
        TrainingState,
        begin,
        export,
        held_out_loss,
        load_state,
        save_state,
    )
    from iec.training.denoiser import train as run

    if save_every < 1:
        raise ValueError(f"save-every must be at least 1, but is {save_every}.")
    config = TrainingConfig(iterations, batch_size, learning_rate, decay=decay, seed=seed)
    require_writable(output)
    images = load_images(data)
    unseen = None if held_out is None else load_images(held_out)
    resumed = (output / "state.json").is_file()
    state = load_state(output, config) if resumed else begin(config, start)
    with progress("iterations") as bar:
        task = bar.add_task("training", total=iterations, completed=state.iteration)

        def on_iteration(state: TrainingState, loss: float) -> None:
            recent = state.losses[-200:]
            bar.update(task, advance=1, description=f"loss {sum(recent) / len(recent):.4f}")
            if state.iteration % save_every == 0:
                save_state(state, output, config)

        run(state, images, config, on_iteration)
    save_state(state, output, config)
    export(state, output / "model")
    losses = [] if unseen is None else list(held_out_loss(state.average, unseen))
    recent = state.losses[-200:]
    result: dict[str, Any] = {
        "iterations": state.iteration,
        "seconds": round(state.seconds, 1),
        "training_loss": sum(recent) / max(1, len(recent)),
        "held_out_loss": [{"timesteps": list(level), "loss": loss} for level, loss in losses],
        "model": str(output / "model"),
    }
    if as_json:
        print_json(result)
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{state.iteration} iterations in {state.seconds:.0f} s, training loss {result['training_loss']:.4f}; "
        f"the model is in {result['model']}."
    )
    for (low, high), loss in losses:
        console.print(f"  held-out loss, timesteps {low:>3} to {high - 1:>3}: {loss:.4f}")


def train_features(
    data: Data,
    output: Output,
    test: Annotated[str, typer.Option(help="Images for the accuracy and the reference statistics.")],
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 12,
    seed: Annotated[int, typer.Option(help="Decides every random choice.")] = 0,
    as_json: Json = False,
) -> None:
    """Train the small classifier whose features give FD-cifar and KD-cifar, and write its reference statistics.

    Example: iec train-features cifar10_train.npz --test cifar10_test.npz -o runs/features
    """
    from iec.models.features import load_feature_network, save_feature_network, save_reference
    from iec.storage.files import require_writable
    from iec.training.classifier import ClassifierConfig, accuracy, build_reference, train_classifier
    from iec.training.data import load_images

    config = ClassifierConfig(epochs=epochs, seed=seed)
    require_writable(output)
    images, unseen = load_images(data), load_images(test)
    with progress("epochs") as bar:
        task = bar.add_task("training", total=epochs)
        network = train_classifier(images, config, lambda network, epoch: bar.advance(task))
    save_feature_network(network, output / "network.safetensors")
    network = load_feature_network(output / "network.safetensors")  # as it will be used: rounded to float16
    save_reference(build_reference(network, unseen), output / "reference.safetensors")
    result = {"test_accuracy": accuracy(network, unseen), "epochs": epochs, "folder": str(output)}
    if as_json:
        print_json(result)
        return
    Console(highlight=False).print(f"Test accuracy {result['test_accuracy']:.4f}; written to {output}.")
