"""Bad input to every command: exit status 1, one line that names what is at fault, and nothing made or changed.

Each case is a command line and a part of the line that it gets. In a command line `{data}` is a folder with the tiny set
prepared, `{run}` a finished run on it, and `{place}` a folder with some files that no command can use.
"""

import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from networks import SIZE, run, tiny_config, tiny_flags
from PIL import Image
from shard_files import write_parquet, write_tar

from alexnet_jax.training import train

TRAIN: list[tuple[str, str]] = [
    # Numbers.
    ("--learning_rate=nan", "--learning_rate=nan is not a finite number"),
    ("--learning_rate=inf", "--learning_rate=inf is not a finite number"),
    ("--learning_rate=-0.1", "--learning_rate=-0.1 is less than 0"),
    ("--learning_rate=1e39", "--learning_rate=1e+39 is more than"),
    ("--learning_rate=fast", "--learning_rate=fast"),
    ("--momentum=-1", "--momentum=-1.0 is less than 0"),
    ("--momentum=1.5", "--momentum=1.5 is more than 1"),
    ("--ema=1", "--ema=1.0 is more than 0.999999"),
    ("--ema=-0.5", "--ema=-0.5 is less than 0"),
    ("--momentum=nan", "--momentum=nan is not a finite number"),
    ("--weight_decay=inf", "--weight_decay=inf is not a finite number"),
    ("--weight_decay=-1e-4", "--weight_decay=-0.0001 is less than 0"),
    ("--bias_rate=-inf", "--bias_rate=-inf is not a finite number"),
    ("--bias_init=nan", "--bias_init=nan is not a finite number"),
    ("--dropout=1", "--dropout=1.0 is not a rate"),
    ("--dropout=nan", "--dropout=nan is not a finite number"),
    ("--drop_factor=0.5", "--drop_factor=0.5 is less than 1"),
    ("--max_drops=-1", "--max_drops=-1 is less than 0"),
    ("--patience=0", "--patience=0 is less than 1"),
    ("--seed=-1", "--seed=-1 is less than 0"),
    ("--seed=4294967296", "--seed=4294967296 is more than 4294967295"),
    ("--seed=1.5", "--seed=1.5"),
    ("--batch_size=0", "--batch_size=0 is less than 1"),
    ("--batch_size=-8", "--batch_size=-8 is less than 1"),
    ("--batch_size=99999999999", "--batch_size=99999999999 is more than 2147483647"),
    ("--batch_size=2000000000", "--batch_size=2000000000: its images alone take"),
    ("--accumulate=0", "--accumulate=0 is less than 1"),
    ("--accumulate=3", "--batch_size=8 does not divide into 3 parts (--accumulate)"),
    ("--steps=-1", "--steps=-1 is less than 1"),
    ("--steps=3000000000", "--steps=3000000000 is more than 2147483647"),
    ("--steps=0 --epochs=0", "--epochs=0 and --steps=0 leave nothing to do"),
    ("--steps=0 --epochs=inf", "--epochs=inf is not a finite number"),
    ("--steps=0 --epochs=1e12", "--epochs=1000000000000 makes"),
    ("--image_size=0", "--image_size=0 is less than 1"),
    ("--image_size=-66", "--image_size=-66 is less than 1"),
    ("--crop_size=67", "--crop_size=67 is larger than --image_size=66"),
    ("--crop_size=-1", "--crop_size=-1 is less than 1"),
    ("--crop_size=20", "--crop_size=20 is too small"),
    ("--colour_noise_epochs=-1", "--colour_noise_epochs=-1.0 is less than 0"),
    ("--log_every=0", "--log_every=0 is less than 1"),
    ("--eval_every=-2", "--eval_every=-2 is less than 1"),
    ("--checkpoint_every=-2", "--checkpoint_every=-2 is less than 1"),
    ("--keep=0", "--keep=0 is less than 1"),
    ("--host_devices=1000000", "--host_devices=1000000 is more than 512"),
    ("--step_timeout=-1", "--step_timeout=-1.0 is less than 0"),
    ("--step_timeout=nan", "--step_timeout=nan is not a finite number"),
    ("--step_timeout=auto", "--step_timeout=auto"),
    ("--step_timeout=", "--step_timeout="),
    ("--step_timeout=5m", "--step_timeout=5m"),
    # Lists and what has a form of its own.
    ("--mesh=3", "--mesh=3 is not of the form"),
    ("--mesh=0x1", "--mesh=0x1 is not of the form"),
    ("--mesh=-1x2", "--mesh=-1x2 is not of the form"),
    ("--mesh=1x2x3", "--mesh=1x2x3 is not of the form"),
    ("--mesh=99999999999999x1", "--mesh=99999999999999x1 is not of the form"),
    ("--mesh=4x4", "--mesh=4x4 needs 16 devices and 8 are present"),
    ("--mesh=3x1", "--batch_size=8 cannot be shared evenly by the 3 rows"),
    ("--mesh=1x4", "--mesh=1x4 has 4 columns"),
    ("--fold=1", "--fold=1 is not I/K"),
    ("--fold=2/2", "--fold=2/2 is not I/K"),
    ("--fold=-1/3", "--fold=-1/3 is not I/K"),
    ("--fold=0/1", "--fold=0/1 is not I/K"),
    ("--layer_rates=conv1", "--layer_rates=conv1 is not LAYER:FACTOR"),
    ("--layer_rates=conv1:-1", "--layer_rates=conv1:-1 has a number that is negative or not finite"),
    ("--layer_rates=conv1:nan", "--layer_rates=conv1:nan has a number that is negative or not finite"),
    ("--layer_rates=conv1:1@inf", "--layer_rates=conv1:1@inf has a number that is negative or not finite"),
    ("--layer_rates=conv1:1,conv1:2", "--layer_rates names conv1@0 twice"),
    ("--layer_rates=conv9:1", "--layer_rates=conv9: no such layer"),
    ("--freeze=conv1,conv1", "--freeze names conv1 twice"),
    ("--freeze=fc9", "--freeze=fc9: no such layer"),
    ("--freeze=conv1 --layer_rates=conv1:0.1", "--freeze=conv1: --layer_rates gives it a rate"),
    ("--drop_epochs=1,x", "--drop_epochs=1,x is not a list of numbers"),
    ("--drop_epochs=-1", "--drop_epochs=-1 has an epoch that is negative or not finite"),
    ("--drop_epochs=1,nan", "--drop_epochs=1,nan has an epoch that is negative or not finite"),
    ("--drop_epochs=3,3", "--drop_epochs names 3 twice"),
    ("--schedule=never", "--schedule=never"),
    ("--architecture=alexnet", "--architecture=alexnet"),
    ("--precision=float16", "--precision=float16"),
    ("--spmd=jit", "--spmd=jit"),
    ("--mean=median", "--mean=median"),
    ("--mean=own", "--mean=own: neither --workdir nor --init has a mean.npy"),
    ("--resize=crop", "--resize=crop"),
    ("--data_on_device=maybe", "--data_on_device=maybe"),
    # Data and folders.
    ("--dataset=nothing", "--dataset=nothing is not prepared"),
    ("--dataset=folder:/nowhere", "--dataset=folder:/nowhere is not prepared"),
    ("--data_dir={place}/folder", "--data_dir={place}/folder"),
    ("--data_dir={place}/text.txt", "--data_dir={place}/text.txt"),
    ("--workdir=", "--workdir is missing"),
    ("--workdir={place}/text.txt", "--workdir={place}/text.txt cannot be written"),
    ("--workdir={place}/text.txt/run", "--workdir={place}/text.txt/run cannot be written: Not a directory"),
    ("--workdir={place}/full", "--workdir={place}/full holds something that is not a run"),
    ("--workdir={place}/x[1]", "in its path would make checkpoints unreadable"),
    ("--workdir={place}/LONG", "File name too long"),
    ("--workdir={run} --seed=3", "holds another run: --seed was 0 and is now 3"),
    ("--workdir={run} --mean=channel", "holds another run: --mean was image and is now channel"),
    ("--init=/nowhere", "--init=/nowhere holds no run"),
    ("--init={place}/folder", "--init={place}/folder holds no run"),
    ("--init={run} --workdir={run}", "--init={run} is the --workdir itself"),
    ("--init={run} --init_layers=fc9", "--init_layers=fc9: no such layer"),
    ("--init={run} --architecture=paper", "--init={run} has"),
    ("--init_layers=fc7", "--init_layers needs --init"),
    # Words and flag files.
    ("steps=3", "'steps=3' is not a flag"),
    ("--stepz=3", "stepz"),
    ("--flagfile={place}/photo.jpg", "--flagfile={place}/photo.jpg is not a file of flags"),
    ("--flagfile={place}/folder", "{place}/folder"),
    ("--flagfile={place}/nothing.cfg", "{place}/nothing.cfg"),
    ("--flagfile={place}/text.txt", "is not a flag"),
]
# Of every command that shows runs.
SHOWN: list[tuple[str, str]] = [
    ("", "--workdir is missing"),
    ("--workdir=", "--workdir is empty"),
    ("--workdir={run} --workdir=", "--workdir is empty"),
    ("--workdir={run} --workdir={run}", "are one run: name it once"),
    ("--workdir={run} --workdir={run}/", "are one run: name it once"),
    ("--workdir={run} --workdir={place}/folder/../run", "are one run: name it once"),
    ("--workdir={place}/folder", "there is no config.json"),
    ("--workdir={place}/text.txt", "--workdir={place}/text.txt"),
    ("--workdir={run} --workdir={place}/nothing", "--workdir={place}/nothing"),
    ("--workdir={run} --batch_size=0", "--batch_size"),
    ("--workdir={run} --batch_size=-8", "--batch_size"),
    ("--workdir={run} --batch_size=8.5", "--batch_size"),
    ("--workdir={run} --batch_size=", "--batch_size"),
    ("--workdir={run} --batch_size=nan", "--batch_size"),
    ("--workdir={run} --split=tset", "--split"),
    ("--workdir={run} --split=", "--split"),
    ("--workdir={run} --step=-1", "--step=-1"),
    ("--workdir={run} --step=0.5", "--step=0.5"),
    ("--workdir={run} --step=last", "--step=last"),
    ("--workdir={run} --step=", "--step is empty"),
    ("--workdir={run} --data_dir={place}/folder", "--data_dir={place}/folder"),
    ("--workdir={run} --data_dir=", "--data_dir is empty"),
    ("--workdir={run} --nonsense=1", "nonsense"),
    ("--workdir={run} test", "'test' is not a flag"),
]
EVALUATE: list[tuple[str, str]] = [
    *SHOWN,
    ("--workdir={place}/nothing", "there is no config.json"),
    ("--workdir={place}/text.txt", "there is no config.json"),
    ("--workdir={run} --step=7", "--step=7"),
    ("--workdir={run} --step=-1", "--step=-1"),
    ("--workdir={run} --split=all", "--split=all"),
    ("--workdir={run} --views=2", "--views is 1 or 10"),
    ("--workdir={run} --weights=ema", "--weights=ema: {run} was trained without --ema"),
    ("--workdir={run} --weights=best", "--weights"),
    ("--workdir={run} --average=0", "--average"),
    ("--workdir={run} --average=9", "--average=9: {run} has "),
    ("--workdir={run} --batch_size=0", "--batch_size=0 is less than 1"),
    ("--workdir={run} --mesh=2", "--mesh=2 is not of the form"),
    ("--workdir={run} --data_dir=/nowhere", "--data_dir=/nowhere"),
    ("--workdir={run} --batch_size=99999999999999999999", "--batch_size=99999999999999999999"),
    ("--workdir={run} --batch_size=1000000000000", "--batch_size=1000000000000"),
    ("--workdir={run} --views=0", "--views is 1 or 10"),
    ("--workdir={run} --views=-1", "--views is 1 or 10"),
    ("--workdir={run} --views=1.5", "--views"),
    ("--workdir={run} --mesh=0x1", "--mesh=0x1"),
    ("--workdir={run} --mesh=1x3", "--mesh=1x3"),
    ("--workdir={run} --mesh=", "--mesh"),
    ("--workdir={run} --mesh=99999999999999999999x1", "--mesh=99999999999999999999x1"),
    ("--workdir={run} --mesh=4x1 --batch_size=6", "--batch_size=6"),
    ("--workdir={run} --precision=float16", "--precision"),
    ("--workdir={run} --spmd=xmap", "--spmd"),
    ("--workdir={run} --host_devices=-1", "--host_devices=-1"),
    ("--workdir={run} --predictions=", "--predictions is empty"),
    ("--workdir={run} --predictions={place}", "--predictions={place} does not end in .npz"),
    ("--workdir={run} --predictions={place}/p.csv", "does not end in .npz"),
    ("--workdir={run} --predictions={place}/nothing/p.npz", "there is no folder {place}/nothing"),
    ("--workdir={run} --predictions={place}/text.txt/p.npz", "there is no folder {place}/text.txt"),
    ("--workdir={run} --predictions={place}/folder.npz", "it is a folder"),
    ("--workdir={run} --predictions={place}/fifo.npz", "it is not a regular file"),
    ("--workdir={run} --predictions={place}/null.npz", "it is not a regular file"),
    ("--workdir={run} --predictions=/dev/null", "--predictions=/dev/null does not end in .npz"),
    ("--workdir={run} --results=", "--results is empty"),
    ("--workdir={run} --results={place}/r.npz", "does not end in .csv"),
    ("--workdir={run} --results={place}/null.csv", "it is not a regular file"),
    ("--workdir={run} --dataset=", "--dataset is empty"),
    ("--workdir={run} --dataset=nothing", "--dataset=nothing is not prepared"),
    ("--workdir={run} --dataset=groceries --split=train --data_dir={place}/stores", "holds tiny"),
    ("--workdir={run} --class_map=", "--class_map is empty"),
    ("--workdir={run} --class_map={place}/nothing", "--class_map={place}/nothing cannot be read"),
    ("--workdir={run} --class_map={place}/fifo", "it is not a regular file"),
    ("--workdir={run} --class_map={place}/empty", "names no class"),
    ("--workdir={run} --class_map={place}/black.png", "--class_map={place}/black.png cannot be read"),
    ("--workdir={run} --class_map={place}/text.txt", "line 1: the set has no class 'no image, no weights, no flags'"),
]
PREDICT: list[tuple[str, str]] = [
    ("", "there are no images"),
    ("{place}/black.png", "--workdir is missing"),
    ("--workdir= {place}/black.png", "--workdir is empty"),
    ("--workdir={place}/folder {place}/black.png", "there is no config.json"),
    ("--workdir={run} {place}/black.png --step=7", "--step=7"),
    ("--workdir={run} {place}/black.png --step=", "--step is empty"),
    ("--workdir={run} {place}/black.png --batch_size=0", "--batch_size"),
    ("--workdir={run} {place}/black.png --batch_size=1e3", "--batch_size"),
    ("--workdir={run} {place}/black.png --batch_size=1000000000000", "--batch_size=1000000000000"),
    ("--workdir={run} {place}/black.png --mesh=1x7", "--mesh=1x7"),
    ("--workdir={run} {place}/black.png --mesh=two", "--mesh=two"),
    ("--workdir={run} {place}/black.png --host_devices=-2", "--host_devices=-2"),
    ("--workdir={run} {place}/black.png --format=csv", "--format"),
    ("--workdir={run} {place}/black.png --features=", "--features is empty"),
    ("--workdir={run} {place}/black.png --features=:{place}/f.npz", "is not LAYER:FILE.npz"),
    ("--workdir={run} {place}/black.png --features=fc7:", "is not LAYER:FILE.npz"),
    ("--workdir={run} {place}/black.png --features=fc9:{place}/f.npz", "--features=fc9"),
    ("--workdir={run} {place}/black.png --features=fc8:{place}/f.npz", "--features=fc8"),
    ("--workdir={run} {place}/black.png --features=fc7:{place}/f.csv", "does not end in .npz"),
    ("--workdir={run} {place}/black.png --features=fc7:{place}/folder.npz", "it is a folder"),
    ("--workdir={run} {place}/black.png --features=fc7:{place}/fifo.npz", "it is not a regular file"),
    ("--workdir={run} {place}/black.png --features=fc7:{place}/nothing/f.npz", "there is no folder {place}/nothing"),
    ("--workdir={run} {place}/black.png --figure=", "--figure is empty"),
    ("--workdir={run} {place}/black.png --figure={place}/f.jpg", "does not end in .png or .svg"),
    ("--workdir={run} {place}/black.png --figure={place}/folder", "does not end in .png or .svg"),
    ("--workdir={run} {place}/black.png --figure={place}/nothing/f.png", "there is no folder {place}/nothing"),
    ("--workdir={run} {place}/black.png --figure={place}/null.svg", "it is not a regular file"),
    ("--workdir={run} {place}/black.png --figure={place}/black.png", "is one of the images"),
    ("--workdir={run} {place} --figure={place}/black.png", "is one of the images"),
    ("--workdir={run} {place}/black.png --features=fc7:{place}/one.npz --figure={place}/one.svg", "are one file"),
    ("--workdir={place}/nothing {place}/black.png", "--workdir={place}/nothing holds no run"),
    ("--workdir={place}/text.txt {place}/black.png", "--workdir={place}/text.txt"),
    ("--workdir={run}", "there are no images: add files or folders"),
    ("--workdir={run} {place}/folder", "there are no images"),
    ("--workdir={run} {place}/hidden", "there are no images"),
    ("--workdir={run} --list=", "there are no images"),
    ("--workdir={run} --list={place}/empty", "there are no images"),
    ("--workdir={run} --list={place}/blank", "there are no images"),
    ("--workdir={run} --list={place}/nothing", "--list={place}/nothing cannot be read"),
    ("--workdir={run} --list={place}/text.txt/x", "cannot be read"),
    ("--workdir={run} --list={place}/folder", "--list={place}/folder is no regular file"),
    ("--workdir={run} --list={place}/fifo", "--list={place}/fifo is no regular file"),
    ("--workdir={run} --list=/dev/zero", "--list=/dev/zero is no regular file"),
    ("--workdir={run} --list={place}/black.png", "--list={place}/black.png is no list of paths"),
    ("--workdir={run} --list={place}/utf16", "--list={place}/utf16 is no list of paths"),
    ("--workdir={run} {place}/black.png --list={place}/utf16", "is no list of paths"),
    ("--workdir={run} {place}/black.png --step=first", "--step=first"),
    ("--workdir={run} {place}/black.png --format=xml", "--format=xml"),
    *(
        (f"--workdir={{run}} {{place}}/black.png --batch_size={value}", f"--batch_size={value}")
        for value in ("0", "-1", "1.5", "x", "nan", "1e3")
    ),
    ("--workdir={run} {place}/black.png --mesh=3", "--mesh=3"),
    ("--workdir={run} {place}/black.png --mesh=0x1", "--mesh=0x1"),
    ("--workdir={run} {place}/black.png --figure={place}/f.txt", "does not end in .png or .svg"),
    ("--workdir={run} {place}/black.png --images={place}", "images"),
]
PREPARE: list[tuple[str, str]] = [
    *((f"--dataset=folder:{{place}}/{name}", f"--dataset=folder:{{place}}/{name}: there is no such folder")
      for name in ("nothing", "text.txt", "fifo", "black.png", "text.txt/x")),
    ("--dataset=folder:", "--dataset=folder:: there is no such folder"),
    ("--dataset=folder:~nobody-of-this-name/x", "--dataset=folder:~nobody-of-this-name/x cannot be read"),
    (f"--dataset=folder:{{place}}/{'a' * 300}", "cannot be read: [Errno 36] File name too long"),
    ("--dataset=folder:{place}/folder", "is empty: it should have a folder for each class"),
    ("--dataset=folder:{place}/sets/loose", "sets/loose/1.png is out of place: expected a folder for each class"),
    ("--dataset=folder:{place}/sets/deep", "sets/deep/a/b is out of place: expected only the images of a class"),
    ("--dataset=folder:{place}/sets/no-images", "sets/no-images/a is empty"),
    ("--dataset=folder:{place}/sets/fifo", "sets/fifo/a/fifo is no regular file"),
    ("--dataset=folder:{place}/sets/dangling", "sets/dangling/a/lost is no regular file"),
    ("--dataset=folder:{place}/sets/device", "sets/device/a/zero is no regular file"),
    ("--dataset=folder:{place}/sets/latin1", "the name of class 'caf\\udce9' is not in UTF-8"),
    ("--dataset=folder:{place}/sets/case", "classes 'A' and 'a' differ only in case"),
    ("--dataset=folder:{place}/sets/no-train", "has no folder `train` beside test, val"),
    ("--dataset=folder:{place}/sets/twice", "sets/twice/valid is a second validation split"),
    ("--dataset=folder:{place}/sets/stranger", "sets/stranger/other is out of place beside the splits"),
    ("--dataset=folder:{place}/sets/untrained", "class 'b' of split test has no training images"),
    ("--dataset=folder:{place}/sets/flat", "val/1.jpg is out of place: expected a folder for each class, or val_labels.txt"),
    ("--dataset=folder:{place}/sets/short", "sets/short/val_labels.txt must have a line for each of the 2 images of"),
    *((f"--dataset={kind}:{glob}", f"--dataset={kind}:{said}") for kind in ("parquet", "tar") for glob, said in (
        ("", " matches no file"), ("{place}/none/*", "{place}/none/* matches no file"),
        ("{place}/folder", "{place}/folder matches the folder {place}/folder: name its files"),
        ("{place}/fifo", "{place}/fifo: {place}/fifo cannot be read: it is not a regular file"),
        ("{place}/train-???", "{place}/train-??? matches no file"),
    )),
    *((f"--dataset=parquet:{{place}}/{name}", f"{{place}}/{name} is no Parquet file, or was cut short: ")
      for name in ("text.txt", "black.png", "empty")),
    *((f"--dataset=tar:{{place}}/{name}", f"{{place}}/{name} is no tar file, or a compressed or damaged one, or was cut")
      for name in ("text.txt", "black.png", "empty")),
    ("--dataset=parquet:{place}/shards/out.parquet", "row 1 of {place}/shards/out.parquet has label 2: there are 2 classes"),
    ("--dataset=parquet:{place}/shards/other-*", "{place}/shards/other-1.parquet have other class names: prepare"),
    ("--dataset=tar:{place}/shards/twice.tar", "{place}/shards/twice.tar has a.jpg twice: keep one of them"),
    ("--dataset=tar:{place}/shards/bare.tar", "a.jpg of {place}/shards/bare.tar has no label a.cls or a.json"),
    ("--dataset=tar:{place}/shards/cut.tar", "{place}/shards/cut.tar is no tar file, or a compressed or damaged one"),
    ("--dataset=", "--dataset is empty"),
    ("--dataset=synthetic", "needs no preparation"),
    ("--dataset=cifar11", "did you mean cifar10"),
    ("--dataset=cifar10:9.9.9", "--dataset=cifar10:9.9.9 cannot be opened"),
    *((f"'--dataset={name}'", f"--dataset={name} cannot be opened")
      for name in ("..", "a b", "/etc", "cifar10[train]", "ü")),
    ("--dataset=mnist --tfds_dir={place}/fifo", "--tfds_dir={place}/fifo is no folder"),
    ("--dataset=mnist --tfds_dir={place}/text.txt", "--tfds_dir={place}/text.txt is no folder"),
    ("--dataset=mnist --tfds_dir=", "--tfds_dir is empty"),
    ("--dataset=odd --tfds_dir={place}/tfds", "--dataset=odd cannot be opened: Failed to load JSON"),
    *((f"--image_size={value}", f"--image_size={value}") for value in ("0", "-1", "4097", "9" * 30, "1.5", "nan", "x")),
    *((f"--split_seed={value}", f"--split_seed={value}") for value in ("-1", str(2**64), "1e3", "x", "inf")),
    ("--resize=crop", "--resize=crop"),
    ("--on_error=mend", "--on_error=mend"),
    ("--verify=perhaps", "--verify=perhaps"),
    ("--nothing=1", "nothing"),
    ("photos", "'photos' is not a flag"),
    ("--data_dir=", "--data_dir is empty"),
    *((f"--dataset=folder:{{place}}/sets/good --data_dir={{place}}/{name}", f"--data_dir={{place}}/{name} cannot be used")
      for name in ("text.txt", "fifo", "text.txt/deep")),
    *((f"--data_dir={{place}}/stores --image_size={size}", said) for size, said in (
        (1, "groceries-1 is no usable prepared set: it has no meta.json"), (2, "meta.json cannot be read"),
        (3, "meta.json cannot be read (it is no regular file)"), (4, "meta.json cannot be read"),
        (5, "its format version is None"),
    )),
    ("--data_dir={place}/stores --image_size=66", "holds tiny: name another --data_dir"),
]  # fmt: skip
SWEEP: list[tuple[str, str]] = [
    # The flags
    ("--space=", "--space is empty"),
    ("--trials=0", "--trials=0"),
    ("--trials=-3", "--trials=-3"),
    ("--trials=10001", "--trials=10001"),
    ("--trials=1e3", "--trials=1e3"),
    ("--jobs=0", "--jobs=0"),
    ("--jobs=two", "--jobs=two"),
    ("--retries=-1", "--retries=-1"),
    ("--prune_after=-1", "--prune_after=-1"),
    ("--prune_after=1.5", "--prune_after=1.5"),
    ("--confirm=-1", "--confirm=-1"),
    ("--confirm=all", "--confirm=all"),
    ("--confirm_seeds=0", "--confirm_seeds=0"),
    ("--confirm_seeds=1001", "--confirm_seeds=1001"),
    ("--sampler=bayes", "--sampler=bayes"),
    ("--sampler=", "--sampler="),
    ("--sampler=grid", "--sampler=grid: learning_rate is a range; list its values under 'choice'"),
    ("--distributed", "--distributed: a trial trains in one process"),
    ("--nosuchflag=1", "nosuchflag"),
    ("trials=3", "'trials=3' is not a flag"),
    # What the trainers would refuse
    ("--batch_size=0", "--batch_size=0"),
    ("--learning_rate=fast", "--learning_rate=fast"),
    ("--mesh=3", "--mesh=3"),
    ("--fold=3/3", "--fold=3/3"),
    ("--freeze=fc9", "--freeze=fc9"),
    ("--seed=-1", "--seed=-1"),
    ("--dataset=nothing --data_dir={place}/folder", "nothing"),
    ("--data_dir={place}/nothing", "{place}/nothing"),
    ("--data_dir='{data}\n'", "cannot stand in a flag file"),
    ("--init=' runs/x'", "--init=' runs/x' cannot stand in a flag file"),
    # Where it works
    ("--workdir=", "--workdir is missing"),
    ("--workdir={place}/x[1]", "in its path would make checkpoints unreadable"),
    ("--workdir={place}/what?", "in its path would make checkpoints unreadable"),
    ("--workdir={run}", "--workdir={run} holds a run"),
    ("--workdir={place}", "holds something that is not a sweep"),
    ("--workdir={data}", "holds something that is not a sweep"),
    ("--workdir={place}/text.txt", "--workdir={place}/text.txt cannot be used: Not a directory"),
    ("--workdir={place}/text.txt/sweep", "cannot be used: Not a directory"),
    ("--workdir={place}/fifo", "cannot be used: Not a directory"),
    ("--workdir={place}/dangling", "--workdir={place}/dangling cannot be made: File exists"),
    ("--workdir='{place}/a\nb'", "cannot stand in a flag file"),
    # The storage
    ("--storage=postgres", "--storage=postgres cannot be used: Could not parse SQLAlchemy URL"),
    ("--storage=postgresql+psycopg://me:secret@localhost:port/studies", "--storage=postgresql+psycopg cannot be used: "),
    ("--storage=postgresql+psycopg://me:secret@localhost:1/studies", "me:***@localhost:1/studies cannot be used: "),
    ("--storage=nosuch://localhost/studies", "cannot be used: Can't load plugin"),
    ("--storage=sqlite://", "a study in memory cannot be resumed"),
    ("--storage=sqlite:///:memory:", "a study in memory cannot be resumed"),
    ("--storage=sqlite:///{place}/nothing/study.db", "unable to open database file"),
    ("--storage=sqlite:///{place}/folder", "unable to open database file"),
    ("--storage=sqlite:///{place}/black.png", "file is not a database"),
    ("--storage='sqlite:///{{oops}}/study.db'", "cannot be used: "),
    # The space
    ("--space={place}/nothing.toml", "--space={place}/nothing.toml cannot be read: "),
    ("--space={place}/folder", "--space={place}/folder cannot be read: it is not a file"),
    ("--space={place}/fifo", "--space={place}/fifo cannot be read: it is not a file"),
    ("--space={place}/black.png", "--space={place}/black.png cannot be read: "),
    ("--space={place}/text.txt", "--space={place}/text.txt cannot be read: "),
    ("--space={place}/empty", "--space={place}/empty is empty"),
    ("--space={place}/unknown.toml", "is not a flag of the trainer"),
    ("--space={place}/reserved.toml", "[seed] is given by the sweep"),
    ("--space={place}/list.toml", "a list is a text such as '17,21'"),
    ("--space={place}/infinite.toml", "not finite"),
    ("--space={place}/never.toml", "no trial has these values"),
    ("--space={place}/huge.toml --sampler=grid", "--sampler=grid: with patience it has more than 10,000 combinations"),
]
SPACES = {
    "unknown": '["learning\\nrate"]\nlog = [1, 2]', "reserved": "[seed]\nint = [0, 9]",
    "list": "[freeze]\nchoice = [['conv1']]", "infinite": "[momentum]\nuniform = [0.0, inf]",
    "huge": "[patience]\nint = [1, 1000000]",
    "never": "[patience]\nint = [1, 3]\nwhen = {schedule = 'steps'}\n[schedule]\nchoice = ['plateau']",
    "rates": "[learning_rate]\nlog = [0.001, 0.01]",
}  # fmt: skip
FIGURES: list[tuple[str, str]] = [
    *SHOWN,
    ("--workdir={run} --batch_size=1000000000000", "--batch_size=1000000000000"),
    ("--workdir={run} --only=", "--only= names no figure"),
    ("--workdir={run} --only=curves,curves", "--only=curves,curves"),
    ("--workdir={run} --only=curves,", "--only is empty"),
    ("--workdir={run} --only=curve", "--only=curve: no such figure"),
    ("--workdir={run} --only=Curves", "--only=Curves: no such figure"),
    ("--workdir={run} --layer=", "--layer is empty"),
    ("--workdir={run} --layer=fc8", "--layer=fc8"),
    ("--workdir={run} --layer=7", "--layer=7"),
    ("--workdir={run} --sample_seed=-1", "--sample_seed"),
    ("--workdir={run} --sample_seed=x", "--sample_seed"),
    ("--workdir={run} --lot=-1", "sample_seed"),
    ("--workdir={run} --host_devices=-1", "--host_devices=-1"),
    ("--workdir={run} --architecture=paper", "--architecture=paper, and --workdir={run} is a run of paper_eighth"),
    ("--workdir={run} --out={place}/a.png", "--out needs --architecture without --workdir"),
    ("--workdir={run} --classes=3", "--classes needs --architecture without --workdir"),
]
REPORT: list[tuple[str, str]] = [
    *SHOWN,
    ("--workdir={run} --batch_size=1000000000000", "--batch_size=1000000000000"),
    ("--workdir={run} --sample_seed=-1", "--sample_seed"),
    ("--workdir={run} --sample_seed=1.5", "--sample_seed"),
    ("--workdir={run} --host_devices=-1", "--host_devices=-1"),
    ("--workdir={run} --out=", "--out is empty"),
    ("--workdir={run} --out={place}/folder", "does not end in .html or .htm"),
    ("--workdir={run} --out={place}/black.png", "does not end in .html or .htm"),
    ("--workdir={run} --out={run}/config.json", "does not end in .html or .htm"),
    ("--workdir={run} --out={place}/nothing/r.html", "there is no folder {place}/nothing"),
    ("--workdir={run} --out={place}/empty/r.html", "there is no folder {place}/empty"),
    ("--workdir={run} --out={place}/folder.html", "it is a folder"),
    ("--workdir={run} --out={place}/fifo.html", "it is not a regular file"),
    ("--workdir={run} --out={place}/null.html", "it is not a regular file"),
]
CONVERT: list[tuple[str, str]] = [
    ("", "name a format to import"),
    ("caffe", "name a format to import"),
    ("onnx {place}/empty --workdir={place}/new", "name a format to import"),
    ("caffe {place}/empty {place}/empty --workdir={place}/new", "name a format to import"),
    ("caffe {place}/empty", "--workdir is missing"),
    ("caffe {place}/empty --workdir=", "--workdir is empty"),
    *(
        (f"{source} {{place}}/{file} --workdir={{place}}/new", f"{{place}}/{file}")
        for source in ("caffe", "torchvision", "safetensors")
        for file in ("empty", "text.txt", "black.png", "folder", "fifo", "nothing")
    ),
    ("caffe {place}/fifo.npy --workdir={place}/new", "{place}/fifo.npy"),
    ("caffe {place}/nothing.npy --workdir={place}/new", "{place}/nothing.npy"),
    ("caffe {place}/folder.npy --workdir={place}/new", "{place}/folder.npy"),
    ("caffe {place}/run/mean.npy --workdir={place}/new", "{place}/run/mean.npy"),
    ("torchvision {place}/fifo.safetensors --workdir={place}/new", "{place}/fifo.safetensors"),
    ("torchvision {place}/nothing.safetensors --workdir={place}/new", "{place}/nothing.safetensors"),
    ("caffe {place}/empty --workdir={run}", "holds a run already"),
    ("caffe {place}/empty --workdir={place}/new --step=3", "--step=3 has no use with convert caffe"),
    ("caffe {place}/empty --workdir={place}/new --weights=ema", "--weights=ema has no use with convert caffe"),
    ("safetensors {place}/empty --workdir={place}/new --mean=1,2,3", "--mean=1,2,3 has no use with convert safetensors"),
    ("safetensors {place}/empty --workdir={place}/new --classes={place}/text.txt", "has no use with convert safetensors"),
    ("caffe {place}/empty --workdir={place}/new --image_size=0", "--image_size=0"),
    ("caffe {place}/empty --workdir={place}/new --image_size=-256", "--image_size=-256"),
    ("caffe {place}/empty --workdir={place}/new --image_size=100", "--image_size=100"),
    ("caffe {place}/empty --workdir={place}/new --crop_size=-1", "--crop_size=-1"),
    ("caffe {place}/empty --workdir={place}/new --crop_size=999", "--crop_size=999"),
    ("caffe {place}/empty --workdir={place}/new --architecture=vgg", "--architecture"),
    ("caffe {place}/empty --workdir={place}/new --resize=pad", "--resize"),
    ("caffe {place}/empty --workdir={place}/new --dataset=", "--dataset is empty"),
    ("caffe {place}/empty --workdir={place}/new --mean=1,2", "--mean=1,2"),
    ("caffe {place}/empty --workdir={place}/new --mean=1,2,3,4", "--mean=1,2,3,4"),
    ("caffe {place}/empty --workdir={place}/new --mean=1,2,inf", "--mean=1,2,inf"),
    ("caffe {place}/empty --workdir={place}/new --mean=1,2,nan", "--mean=1,2,nan"),
    ("caffe {place}/empty --workdir={place}/new --mean=1,2,1e400", "--mean=1,2,1e400"),
    ("caffe {place}/empty --workdir={place}/new --mean=-1,2,3", "--mean=-1,2,3"),
    ("caffe {place}/empty --workdir={place}/new --mean=1,2,256", "--mean=1,2,256"),
    ("caffe {place}/empty --workdir={place}/new --mean={place}/nothing.npy", "{place}/nothing.npy"),
    ("caffe {place}/empty --workdir={place}/new --mean={place}/fifo.npy", "{place}/fifo.npy"),
    ("caffe {place}/empty --workdir={place}/new --mean={place}/folder.npy", "{place}/folder.npy"),
    ("caffe {place}/empty --workdir={place}/new --mean={run}/mean.npy", "{run}/mean.npy"),
    ("caffe {place}/empty --workdir={place}/new --mean={place}/nothing.binaryproto", "{place}/nothing.binaryproto"),
    ("caffe {place}/empty --workdir={place}/new --mean={place}/text.txt", "--mean={place}/text.txt"),
    ("caffe {place}/empty --workdir={place}/new --classes={place}/nothing", "--classes={place}/nothing"),
    ("caffe {place}/empty --workdir={place}/new --classes={place}/black.png", "--classes={place}/black.png"),
    ("caffe {place}/empty --workdir={place}/new --classes={place}/folder", "--classes={place}/folder"),
    ("caffe {place}/empty --workdir={place}/new --classes={place}/fifo", "--classes={place}/fifo"),
    ("--export=onnx {place}/n.onnx --workdir={run}", "--export"),
    ("--export= {place}/n.onnx --workdir={run}", "--export"),
    ("--export=caffe --workdir={run}", "needs one file to write"),
    ("--export=caffe a.caffemodel b.caffemodel --workdir={run}", "needs one file to write"),
    ("--export=caffe {place}/n.caffemodel", "--workdir is missing"),
    ("--export=caffe {place}/n.caffemodel --workdir={place}/folder", "there is no config.json"),
    ("--export=caffe {place}/n.caffemodel --workdir={run} --step=99", "--step=99"),
    ("--export=caffe {place}/n.caffemodel --workdir={run} --mean=1,2,3", "--mean=1,2,3 has no use with --export=caffe"),
    ("--export=caffe {place}/n.caffemodel --workdir={run}", "its LRN stays within a tower"),
    ("--export=torchvision {place}/nothing/n.pth --workdir={run}", "there is no folder {place}/nothing"),
    ("--export=torchvision {run}/config.json --workdir={run}", "{run}/config.json does not end in .pth"),
    ("--export=stablehlo {place}/black.png --workdir={run}", "{place}/black.png does not end in .stablehlo"),
    ("--export=safetensors {place}/folder.safetensors --workdir={run}", "it is a folder"),
    ("--export=safetensors {place}/fifo.safetensors --workdir={run}", "it is not a regular file"),
]
BENCHMARK: list[tuple[str, str]] = [
    ("benchmark", "'benchmark' is not a flag"),
    ("--rounds=0", "--rounds"),
    ("--rounds=-1", "--rounds"),
    ("--rounds=1.5", "--rounds"),
    ("--steps=-1", "--steps=-1"),
    ("--seconds=0 --input", "--seconds"),
    ("--seconds=-1 --input", "--seconds"),
    ("--seconds=nan --input", "--seconds"),
    ("--seconds=inf --input", "--seconds"),
    ("--seconds=1e9 --input", "--seconds"),
    ("--seconds= --input", "--seconds"),
    ("--against=", "--against"),
    ("--against=jax", "--against"),
    ("--input --against=pytorch", "choose one"),
    ("--input --dataset=tiny --data_dir={place}/folder", "--dataset=tiny is not prepared"),
    ("--input --dataset=", "--dataset is empty"),
    ("--batch_size=0", "--batch_size=0"),
    ("--batch_size=-1", "--batch_size=-1"),
    ("--batch_size=1000000000000", "--batch_size=1000000000000"),
    ("--batch_size=7 --mesh=2x1", "--batch_size=7"),
    ("--mesh=3x3", "--mesh=3x3"),
    ("--mesh=1x1x1", "--mesh=1x1x1"),
    ("--architecture=vgg", "--architecture"),
    ("--precision=int8", "--precision"),
    ("--crop_size=300", "--crop_size=300"),
    ("--crop_size=1", "--crop_size=1"),
    ("--image_size=0", "--image_size=0"),
    ("--learning_rate=nan", "--learning_rate=nan"),
    ("--host_devices=-1", "--host_devices=-1"),
    ("--figure=", "--figure is empty"),
    ("--figure={place}/f.pdf", "does not end in .png or .svg"),
    ("--figure={place}/nothing/f.png", "there is no folder {place}/nothing"),
    ("--figure={place}/text.txt/f.png", "there is no folder {place}/text.txt"),
    ("--figure={place}/folder.svg", "it is a folder"),
    ("--figure={place}/fifo.svg", "it is not a regular file"),
    ("--figure={place}/null.svg", "it is not a regular file"),
]

COMMANDS = {
    "train": TRAIN, "evaluate": EVALUATE, "predict": PREDICT, "prepare": PREPARE, "sweep": SWEEP, "figures": FIGURES,
    "report": REPORT, "convert": CONVERT, "benchmark": BENCHMARK,
}  # fmt: skip
QUICK = ("train", "evaluate", "prepare")
CASES = [
    pytest.param(command, words, said, id=f"{command} {words}", marks=() if command in QUICK else pytest.mark.slow)
    for command, cases in COMMANDS.items()
    for words, said in cases
]


@pytest.fixture(scope="module")
def place(data_dir, tmp_path_factory) -> Path:
    """A folder with a finished run of one step, and files that no command can use."""
    folder = tmp_path_factory.mktemp("place")
    train(tiny_config(data_dir, folder / "run", steps=1, log_every=1))
    (folder / "text.txt").write_text("no image, no weights, no flags\n")
    (folder / "empty").touch()
    (folder / "folder").mkdir()
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(folder / "black.png")
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(folder / "photo.jpg")
    os.mkfifo(folder / "fifo")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("a year of work\n")
    for suffix in ("npz", "npy", "csv", "svg", "html", "safetensors"):
        (folder / f"folder.{suffix}").mkdir()
        (folder / f"fifo.{suffix}").symlink_to("fifo")
        (folder / f"null.{suffix}").symlink_to("/dev/null")
    (folder / "one.npz").symlink_to("one.svg")
    (folder / "dangling").symlink_to("nowhere")
    for name, text in SPACES.items():
        (folder / f"{name}.toml").write_text(text)
    make_lists_and_sets(folder, data_dir)
    return folder


def make_lists_and_sets(folder: Path, data_dir: Path) -> None:
    """Lists of paths that are none, folders of images in disorder, and prepared sets that are none."""
    (folder / "blank").write_text(" \n\n")
    (folder / "utf16").write_text("black.png\n", encoding="utf-16")
    files = (
        "hidden/.a.png", "hidden/.b/c.png", "sets/good/a/1", "sets/loose/1.png", "sets/loose/a/1",
        "sets/deep/a/b/1", "sets/no-images/a/.1",
        "sets/fifo/a/1", "sets/dangling/a/1", "sets/device/a/1", os.fsdecode(b"sets/latin1/caf\xe9/1"), "sets/case/a/1",
        "sets/case/A/1", "sets/no-train/val/a/1", "sets/no-train/test/a/1", "sets/twice/train/a/1", "sets/twice/val/a/1",
        "sets/twice/valid/a/1", "sets/stranger/train/a/1", "sets/stranger/other/a/1", "sets/untrained/train/a/1",
        "sets/untrained/test/b/1", "tfds/odd/1.0.0/features.json", "stores/groceries-1/x", "stores/groceries-3/x",
        "sets/flat/train/a/1", "sets/flat/val/1.jpg", "sets/short/train/a/1", "sets/short/val/1", "sets/short/val/2",
    )  # fmt: skip
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    os.mkfifo(folder / "sets/fifo/a/fifo")
    (folder / "sets/short/val_labels.txt").write_text("a\n")
    make_shards(folder / "shards")
    (folder / "sets/dangling/a/lost").symlink_to("nowhere")
    (folder / "sets/device/a/zero").symlink_to("/dev/zero")
    (folder / "tfds/odd/1.0.0/dataset_info.json").write_text("{")
    os.mkfifo(folder / "stores/groceries-3/meta.json")
    (folder / "stores/groceries-4").touch()
    for size, content in ((2, b"\xff\xd8\xff\xe0"), (5, b"[]")):
        (folder / f"stores/groceries-{size}").mkdir()
        (folder / f"stores/groceries-{size}/meta.json").write_bytes(content)
    (folder / f"stores/groceries-{SIZE}").symlink_to(data_dir / f"tiny-{SIZE}")


def make_shards(folder: Path) -> None:
    """Parquet files and tars that are no set."""
    write_parquet(folder / "out.parquet", [b"x", b"y"], [0, 2])
    write_parquet(folder / "other-0.parquet", [b"x"], [0], ("a", "b"))
    write_parquet(folder / "other-1.parquet", [b"x"], [0], ("b", "a"))
    whole = [("a.jpg", b"x"), ("a.cls", b"0")]
    write_tar(folder / "twice.tar", [*whole, whole[0]])
    write_tar(folder / "bare.tar", whole[:1])
    write_tar(folder / "cut.tar", whole)
    os.truncate(folder / "cut.tar", 1536)


def contents(*folders: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time of change, but the locks, which name the last process."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.name != "lock"]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize(("command", "words", "said"), CASES)
def test_bad_input_gets_one_line_and_changes_nothing(place, data_dir, command, words, said):
    known = {"data": data_dir, "run": place / "run", "place": place}
    given = [word.format_map(known).replace("LONG", "long" * 70) for word in shlex.split(words)]
    base = tiny_flags(data_dir, place / "new") if command in ("train", "sweep") else []
    base += [f"--space={place}/rates.toml"] if command == "sweep" else []
    if command == "prepare" and "--data_dir" not in words:
        base = [f"--data_dir={place}/new"]
    before = contents(place, data_dir)
    result = run(command, *base, *given)
    assert result.returncode == 1, (result.stdout, result.stderr)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said.format_map(known) in line
    assert contents(place, data_dir) == before
