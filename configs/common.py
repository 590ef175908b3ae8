"""Every key of a configuration with its default, its unit and its meaning.

A recipe is a leaf file that starts from `get_config()` and sets what differs. Its argument names
the variant: `configs/everest_ucf101.py:finetune`, `:evaluate`, `:smoke`, also `:finetune,smoke`.
Where a leaf knows several sizes of the model, a word names it: `configs/videomae_k400.py:L,smoke`.
"""

from typing import NamedTuple

import ml_collections

TASKS = ("pretrain", "finetune", "evaluate")
LABELLED = ("finetune", "evaluate")
SIZES = ("Ti", "S", "B", "L", "H", "g")


def get_config() -> ml_collections.ConfigDict:
    """All keys with their defaults: ViT-B on 16 frames of 224 px, EVEREST's masking."""
    c = ml_collections.ConfigDict()
    c.name = "run"  # names the default workdir, runs/<name>
    c.task = "pretrain"  # pretrain | finetune | evaluate
    c.seed = 0  # of weights, masks, data order and augmentation
    c.init_from = ""  # run directory, step directory or official PyTorch file; "" = random weights
    c.init_head_rows = ""  # JSON list: the row of the loaded head for each of our classes

    c.data = d = ml_collections.ConfigDict()
    d.root = ""  # folder that the paths in the lists are relative to; "" = the list's own folder
    # List file (`path label` a line), folder of class folders, packed folder, tfds:NAME/CONFIG, or
    # several of them: "a.txt + b.txt?weight=2&stride=2".
    d.train = ""
    d.val = ""  # the same, for the checks during fine-tuning; "" = none
    d.test = ""  # the same, for the final score
    d.fetch = ""  # where nothing is given, what is downloaded: ucf101/1 | ucf101/2 | ucf101/3
    d.template = "img_{:05}.jpg"  # names of the frames of a video that is a folder of pictures
    d.num_classes = 0  # C; not needed for pre-training
    d.num_frames = 16  # T, frames of a clip
    d.frame_stride = 4  # frames between two samples
    d.fps = 0.0  # rate a video is brought to before frames are chosen; 0 = whatever its own is
    d.image_size = 224  # pixels, height and width
    # Which frames: released | strided (fine-tuning's clean rule) | segments (one of each of T
    # equal segments; segments_v2 for VideoMAE V2's) | spread (evenly over the whole video).
    d.sampling = "released"
    d.num_candidates = 0  # frames decoded, of which frame selection keeps num_frames; 0 = no choice
    d.keep_ratio = 0.3  # fraction of the candidates' tokens judged informative for that choice
    d.repeats = 1  # augmented clips made of each decoded one
    d.crop = "multi_scale"  # training crop: multi_scale | random_resized | center
    d.flip = False  # mirror half of the training clips
    d.rand_augment = ""  # such as rand-m7-n4-mstd0.5-inc1; "" = off
    d.erasing = 0.0  # probability of random erasing
    d.mixup = 0.0  # alpha of mixup; 0 = off
    d.cutmix = 0.0  # alpha of cutmix; 0 = off. With both on, each batch draws one of them
    d.min_frames = 8  # a video with fewer is refused
    d.max_bad_fraction = 0.02  # of training records that may fail before the run stops
    d.threads = 0  # videos decoded at a time, by each process of a run; 0 = one per core, up to 32
    d.workers = -1  # supervised decoding processes; 0 = threads; -1 = as many, unless cached
    d.timeout = 60.0  # seconds that opening a video may take, and again reading it
    d.cache_gb = 0.0  # GB of decoded frames kept in memory, for small data sets

    c.synthetic = s = ml_collections.ConfigDict()  # moving shapes, written when no data is given
    s.num_pretrain = 0  # videos in all for pre-training; 0 = no synthetic data
    s.num_train = 0  # of which labelled, for fine-tuning
    s.num_val = 0
    s.num_test = 0
    s.long = 0  # frames of a video that is idle but for a moment or two; 0 = short and busy ones
    s.seed = 0

    c.model = m = ml_collections.ConfigDict()
    m.size = "B"  # encoder: Ti | S | B | L | H | g
    m.width, m.depth, m.heads = 0, 0, 0  # replace those of `size` where not 0
    m.mlp_ratio = 0.0  # hidden width of the MLPs over the width; 0 = of `size`
    m.decoder_width, m.decoder_heads = 0, 0  # 0 = those that belong to `size`
    m.decoder_depth = 4  # blocks
    m.tubelet = (2, 16, 16)  # frames, pixels, pixels of one token
    m.cosine_attention = False  # queries and keys of length 1, a learned temperature per head
    m.layer_scale = 0.0  # initial factor on each branch of a block; 0 = none
    m.epsilon = 1e-6  # of the LayerNorms of blocks and encoder (Hugging Face: 1e-12)
    m.head_epsilon = 1e-6  # of the LayerNorm before a head (Hugging Face: 1e-5)
    m.positions = "sinusoid"  # sinusoid | separable (learned, space plus time)
    m.position_grid = (0, 0, 0)  # grid that the positions are interpolated from; zeros = the clip's
    m.targets = "normalised"  # tubelets normalised per channel | joint (all channels) | pixels
    m.target_frames = 0  # frames of each tubelet that are predicted; 0 = all
    m.drop_path = 0.0  # rate of the last block, growing linearly from 0
    m.head_dropout = 0.0  # rate before the classifier's head
    m.head_scale = 0.001  # factor on the head's initial weights
    m.dtype = "auto"  # compute: float32 | bfloat16 | auto (bfloat16 on GPU and TPU)
    # Computed again in the backward pass, which saves memory: none (but norms, softmax, GELU) |
    # dots (all but products of weights) | offload (the same, in the host's memory) | full
    m.remat = "none"
    m.unroll = 1  # blocks per iteration of the scan over layers
    # xla | cudnn | splash (TPUs) | auto (cudnn on NVIDIA GPUs in bfloat16 for many tokens)
    m.attention = "auto"

    c.mask = k = ml_collections.ConfigDict()
    k.name = "everest"  # a file of mvm/masking; "" = all tokens (fine-tuning and evaluation)
    k.mask_ratio = 0.9  # fraction of tokens that is not visible
    k.keep_ratio = 0.3  # fraction judged informative, for strategies that select (everest)
    k.decoder_mask = "running_cell"  # dual: running_cell | frame | random | none
    k.decoder_ratio = 0.5  # dual: fraction of tokens that is not decoded
    k.sampler_kind = "block"  # adamae: block | mlp
    k.sampler_width, k.sampler_depth, k.sampler_heads = 0, 1, 8  # adamae; width 0 = the encoder's
    k.sampler_dropout = 0.1  # adamae
    k.sampler_temperature = 1.0  # adamae: divides the logits
    k.sampler_detach = False  # adamae: whether its loss leaves the patch embedding alone
    k.sampler_loss = "masked"  # adamae: masked (as released) | reinforce (with a baseline)
    k.sampler_weight = 1e-4  # adamae: of its loss

    c.optim = o = ml_collections.ConfigDict()
    o.base_lr = 1e-3  # learning rate per 256 videos; the rate is base_lr * batch_size / 256
    o.min_lr = 1e-5  # the schedule's end, scaled in the same way
    o.warmup_epochs = 40.0  # epochs
    o.b1, o.b2 = 0.9, 0.95  # AdamW
    o.weight_decay = 0.05  # on matrices alone, and on the positions of AdaMAE's sampler
    o.clip_norm = 0.0  # largest global norm of the gradient; 0 = off
    o.layer_decay = 1.0  # factor on the learning rate per layer from the top; 1 = off
    o.smoothing = 0.0  # of labels

    c.train = t = ml_collections.ConfigDict()
    t.batch_size = 192  # videos of one update, over all devices and hosts; clips: times repeats
    t.epochs = 3200.0  # passes over the training list
    t.steps = 0  # updates; 0 = from epochs
    t.accumulate = 1  # micro-batches of one update
    t.cpu_devices = 1  # on CPU, XLA devices the cores are shared among; small models gain from 2
    t.fsdp = 1  # devices that share one copy of the parameters; -1 = all
    t.ema_decay = 0.0  # of a moving average of the parameters; 0 = none
    t.log_every = 50  # steps
    t.save_every = 1000  # steps
    t.keep = 2  # newest checkpoints kept
    t.timeout_minutes = (
        30.0  # without a finished step before a run ends, to be restarted; 0 = never
    )
    t.val_every = 0  # steps between checks on data.val; 0 = one epoch

    c.eval = e = ml_collections.ConfigDict()
    e.batch_size = 8  # videos at a time, over all devices and hosts
    e.num_segments = 5  # clips along time
    e.num_crops = 3  # crops along the longer side
    e.average = "probabilities"  # what is averaged over views: probabilities | logits

    c.stages = ml_collections.ConfigDict()  # name -> what differs; runs each in <workdir>/<name>
    c.lock()
    return c


class Variant(NamedTuple):
    """What a leaf's argument asks for."""

    task: str
    smoke: bool
    size: str
    """Of the model, in a leaf that knows several; else ""."""


def variant(argument: str, sizes: tuple[str, ...] = (), tasks: tuple[str, ...] = TASKS) -> Variant:
    """Splits a leaf's argument into its words.

    Args:
        argument: such as "finetune", "L,finetune" or "smoke".
        sizes: of the model that the leaf knows; the first is meant where none is named.
        tasks: that the leaf knows; the first is meant where none is named.

    Raises:
        ValueError: for an unknown word or two of a kind; names the known ones.
    """
    words = [w for w in argument.split(",") if w and w != "smoke"]
    chosen = [[w for w in words if w in known] for known in (tasks, sizes)]
    if max(map(len, chosen)) > 1 or len(words) > sum(map(len, chosen)):
        size = f", and a size ({', '.join(sizes)})" if sizes else ""
        known = f"{', '.join(tasks)} or smoke{size}"
        raise ValueError(f"variant {argument!r} is unknown; choose {known}")
    smoke = "smoke" in argument.split(",")
    return Variant((chosen[0] or tasks)[0], smoke, (chosen[1] or sizes or ("",))[0])


def finish(
    c: ml_collections.ConfigDict,
    argument: str,
    tasks: tuple[str, ...] = TASKS,
    start: str = "",
) -> ml_collections.ConfigDict:
    """Names the variant's run, says where it starts from and shrinks it if it is a smoke run.

    Args:
        c: gets changed; `name` is that of the recipe, with the size in it if there are several.
        argument: the leaf's.
        tasks: see `variant`.
        start: name of the run that fine-tuning starts from; "" means this recipe's pre-training.
    """
    task, smoke, _ = variant(argument, SIZES, tasks)
    suffix = "_smoke" if smoke else ""
    previous = {"pretrain": "", "finetune": start or c.name, "evaluate": f"{c.name}_finetune"}[task]
    if previous and (task == "evaluate" or not smoke):
        c.init_from = f"runs/{previous}{suffix}"
    c.task = task
    c.name = (c.name if task == "pretrain" else f"{c.name}_{task}") + suffix
    if smoke:
        shrink(c)
    return c


def shrink(c: ml_collections.ConfigDict) -> None:
    """Two steps of a tiny model on a few moving shapes, to see that a recipe runs at all."""
    c.init_head_rows = ""
    c.synthetic.update(num_pretrain=16, num_train=16, num_val=8, num_test=8)
    c.data.update(image_size=32, frame_stride=1, num_classes=8, cache_gb=0.1)
    c.model.update(size="Ti", width=48, depth=2, heads=2, decoder_width=32, decoder_heads=2)
    c.model.update(decoder_depth=2, tubelet=(2, 8, 8))
    c.train.update(batch_size=8, steps=2, log_every=1, save_every=2)
    c.eval.update(batch_size=8, num_segments=2, num_crops=1)


def finetuning(c: ml_collections.ConfigDict) -> None:
    """What every released fine-tuning script shares."""
    c.data.crop, c.data.flip = "random_resized", True
    c.data.rand_augment, c.data.erasing = "rand-m7-n4-mstd0.5-inc1", 0.25
    c.model.drop_path = 0.1
    c.optim.update(b2=0.999, warmup_epochs=5.0, min_lr=1e-6, layer_decay=0.75, smoothing=0.1)
    c.train.batch_size = 128


def finetuning_on_all_tokens(c: ml_collections.ConfigDict) -> None:
    """What the released scripts share beyond that if the classifier sees every token."""
    finetuning(c)
    c.mask.name = ""
    c.data.update(mixup=0.8, cutmix=1.0)


def ssv2(c: ml_collections.ConfigDict, task: str) -> None:
    """Something-Something V2; call it last: its classes tell left from right."""
    c.data.update(num_classes=174, frame_stride=2)
    c.eval.num_segments = 2
    if task != "pretrain":
        c.data.update(sampling="segments", flip=False)


def videomaev2(c: ml_collections.ConfigDict, size: str) -> None:
    """The models of VideoMAE V2: a decoder that does not grow, and ViT-g with smaller patches."""
    c.model.size = size
    if size == "g":
        c.model.tubelet = (2, 14, 14)
    if size in ("H", "g"):
        c.model.update(decoder_width=512, decoder_heads=8, remat="full")


def videomaev2_finetuning(c: ml_collections.ConfigDict, size: str) -> None:
    """What VideoMAE V2's fine-tuning scripts share."""
    videomaev2(c, size)
    finetuning_on_all_tokens(c)
    c.data.repeats = 2
