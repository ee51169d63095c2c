"""Our batches where people already train: one file for each framework, which its users import.

    torch         DataLoader, torchdata's StatefulDataLoader
    lightning     a LightningDataModule whose state travels in Lightning's checkpoints
    accelerate    a pipeline on the accelerator's device, in its checkpoints
    transformers  the Trainer, with the stream's state beside each of its checkpoints

In all of them the pipeline is the loader: its batches are made, on the device and of this rank. Do
not wrap it in samplers, and do not multiply `stream.batch_size` by processes: it is global.
"""
