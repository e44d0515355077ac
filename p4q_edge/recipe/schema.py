"""The recipe: every choice of a run, in one TOML file.

Each section is a frozen record; its defaults are written here once. A key that no section knows is an error which
names the nearest one.
"""

from typing import Literal

import msgspec

from p4q_edge.quant import ConvolutionChoice, ObserverName, QuantScheme, RoundingName
from p4q_edge.recipe import numbers
from p4q_edge.runtime.choices import NumberFormat

Method = Literal["p4q", "as-released"]

MAX_IMAGE_SIZE = 4096
MAX_WORKERS = 256
MAX_BATCH_SIZE = 1 << 16

FloatPrecision = Literal["float32", "tf32", "bf16"]
"""Of the matrix products of the frozen float image tower that is learned from."""
TeacherName = Literal["learned", "zero-shot", "none"]
"""Who is distilled from; always in full precision."""

DEMO_DATA = "demo:digits"
"""Name of the built-in data set: the handwritten digits of scikit-learn."""
DRAWN_IMAGES = "demo:leaves"
"""Name of the built-in images without labels: drawn discs of many sizes that hide one another."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections."""


class ModelSection(Section, frozen=True, kw_only=True):
    """[model]: which CLIP.

    Attributes:
        name: a name of open_clip, `hf-hub:org/repo`, `local-dir:path` or `demo`.
        pretrained: tag or checkpoint path, for plain names.
        quick_gelu: overrides the activation that the tag records; needed for weights by path where tags differ.
        image_size: side of the images in pixels; the model's table of positions is stretched to it.
        mean: of the normalization, for each of three channels between 0 and 1.
        std: of the normalization.
        interpolation: filter of the resize.
        resize_mode: `shortest` side then crop, `longest` side then pad, or `squash`.
        license: overrides the licence string found with the weights.
    """

    name: str
    pretrained: str = ""
    quick_gelu: bool | None = None
    image_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    license: str = ""

    def __post_init__(self) -> None:
        if self.image_size is not None and not 8 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size must be between 8 and {MAX_IMAGE_SIZE} pixels, got {self.image_size}")
        if problem := numbers.normalization_problem(self.mean, self.std):
            raise ValueError(problem)


class DataSection(Section, frozen=True, kw_only=True):
    """[data]: labelled images and the words for their classes.

    Attributes:
        train: labelled images to learn from: a folder of class folders, `.csv`/`.tsv`/`.parquet` (path,label),
            `.npz`, uncompressed `.tar` (webdataset; several as `shards-{000..099}.tar`), a folder saved by
            Hugging Face's `datasets`, or `demo:digits`; empty: nothing is learned, see `calibration`.
        calibration: where `train` is empty, images without labels, which ranges are measured on: a folder, at any
            depth, an `.p4q` bundle for its golden samples, `demo:leaves` for drawn ones, or whatever `train` takes.
        test: labelled images as in `train`; empty: all images of `train` that are not learned from.
        class_names: other words for the classes in label order, or their own names in any order, or a
            `.txt`/`.json` file of them; empty: the folders' names.
        templates: prompts with `{}`, or a `.txt`/`.json` file of them.
        class_prompts: a `.json` file of prompts for each class, in place of templates.
        shots: labelled images of each class that are learned from, or as many as there are; without `test` one of five
            is kept to test on. 0 takes all and keeps none.
        unlabelled: images without labels that a teacher names for the student: a folder of images, below folders or
            not, or any source that `train` may be, whose labels are not read. Empty: none.
        test_limit: largest number of test images, drawn with the seed; 0 takes all.
        orient: turn photographs as their EXIF orientation says; false leaves them as open_clip's loader does. The
            engine's card records it, and the device does the same.
    """

    train: str = ""
    calibration: str = ""
    test: str = ""
    unlabelled: str = ""
    class_names: tuple[str, ...] | str = ()
    templates: tuple[str, ...] | str = ("a photo of a {}.",)
    class_prompts: str = ""
    shots: numbers.Count = 16
    test_limit: numbers.Count = 0
    orient: bool = True


class QuantizationSection(Section, frozen=True, kw_only=True):
    """[quantization]: see `QuantScheme`.

    Attributes:
        calibration_images: largest number of labelled images that decide ranges and scales, as evenly of each class as
            they allow and drawn with the seed; 0 takes all.
        max_top1_drop: limit of the points of top-1 that the learned model may lose by the quantized image tower, by
            cross-validation on the labelled images; the layers that cost most for their work stay in high precision
            until it holds. It learns four heads first. None: no limit.
        text: fake-quantize the text tower too (the paper's track).
    """

    weight_bits: numbers.Bits = QuantScheme.weight_bits
    activation_bits: numbers.ActivationBits = QuantScheme.activation_bits
    weight_block: int | None = QuantScheme.weight_block
    number_format: NumberFormat = QuantScheme.number_format
    attention_bits: numbers.Bits | None = QuantScheme.attention_bits
    mean_weight_bits: float | None = QuantScheme.mean_weight_bits
    quantize_attention: bool = QuantScheme.quantize_attention
    adapter_bits: numbers.Bits = 8
    observer: ObserverName = QuantScheme.observer
    percentile: numbers.Percentile = QuantScheme.percentile
    weight_observer: ObserverName = QuantScheme.weight_observer
    activation_gain: bool = QuantScheme.activation_gain
    fold_norm: bool = QuantScheme.fold_norm
    fold_value: bool = QuantScheme.fold_value
    rotation: bool | None = QuantScheme.rotation
    fold_strength: numbers.Share = QuantScheme.fold_strength
    headroom: numbers.Headroom = QuantScheme.headroom
    bias_correction: bool = QuantScheme.bias_correction
    weight_rounding: RoundingName = QuantScheme.weight_rounding
    affine_correction: bool = QuantScheme.affine_correction
    scale_epochs: numbers.Count = QuantScheme.scale_epochs
    reconstruction_epochs: numbers.Count = QuantScheme.reconstruction_epochs
    convolutions: ConvolutionChoice = QuantScheme.convolutions
    depthwise: bool = QuantScheme.depthwise
    stem: bool = QuantScheme.stem
    keep_float: tuple[str, ...] = QuantScheme.keep_float
    max_cosine_loss: numbers.CosineLoss | None = QuantScheme.max_cosine_loss
    max_top1_drop: float | None = None
    text: bool = False
    calibration_images: numbers.Count = 1000

    def __post_init__(self) -> None:
        self.scheme()  # refuses what cannot be had together
        if self.number_format == "fp8" and self.adapter_bits != 8:
            raise ValueError(f"adapter_bits = {self.adapter_bits} is of integers; leave it out beside 'fp8'")
        if self.max_top1_drop is not None and not 0.0 <= self.max_top1_drop < 100.0:
            raise ValueError(f"max_top1_drop must be in [0, 100) points, got {self.max_top1_drop}")

    def scheme(self) -> QuantScheme:
        """Return the scheme of the image tower (and of the text tower where it is quantized)."""
        return QuantScheme(**{field: getattr(self, field) for field in QuantScheme.__dataclass_fields__})

    def adapter_scheme(self) -> QuantScheme:
        """Return the scheme of the adapter: plain maxima, as its weights move while it is learned."""
        return QuantScheme(
            weight_bits=self.adapter_bits,
            activation_bits=self.adapter_bits,
            number_format=self.number_format,
            observer="minmax",
            weight_observer="minmax",
            headroom=1.0,
            fold_norm=False,
            fold_value=False,
        )


class LearnSection(Section, frozen=True, kw_only=True):
    """[learn]: prompts, adapter, losses and schedule.

    Attributes:
        prompts: learn context vectors; false keeps the templates' embeddings.
        adapter: learn the adapter.
        class_residual: learn a residual of each class embedding (TaskRes); it costs nothing at run time.
        teacher: whose class probabilities the student is drawn to: `learned`, the same head learned on the
            full-precision image tower first; `zero-shot`, that tower and the hand-written prompts; `none`. Absent:
            `zero-shot` where `distillation` is above 0, else `none`.
        distillation: weight of the KL divergence from the teacher. Absent: 1 with a teacher.
        kl_temperature: temperature of that divergence.
        context_init: words whose embeddings start the context; empty: random.
        num_context_tokens: context length M; 0 follows `context_init`.
        residual_ratio: share of the adapter, 0 to 1.
        learn_ratio: learn that share too.
        zero_init: the adapter starts at zero output.
        prompt_pull: weight of the pull of learned class embeddings to the hand-written ones (KgCoOp).
        feature_loss: weight of one minus the cosine between the student's and the teacher's image embedding.
        label_smoothing: of the cross-entropy, 0 to 1.
        epochs: passes over the cached features; 0: as many as make `steps`.
        steps: of the optimizer, where `epochs` is 0.
        batch_size: features in a step.
        anchor_prompts: the class embeddings start at the hand-written ones and move as the context's own do; false
            starts at those of the context, without the templates.
        prompt_steps: of the optimizer, before all others, in which the context is learned alone.
        prompt_rate: learning rate of the context in those steps.
        context_rate: learning rate of the context.
        adapter_rate: learning rate of the adapter.
        class_rate: learning rate of the class residuals.
        weight_decay: of all (AdamW).
        views: cached views of each image; the first is the image itself, the others are augmented.
        flip: whether augmented views may be mirrored.
        text_memory_mib: bound of the text tower's activations that a step keeps; classes beyond it are computed
            twice, with the same gradient.
    """

    prompts: bool = True
    adapter: bool = True
    class_residual: bool = True
    teacher: TeacherName | None = None
    distillation: float | None = None
    kl_temperature: numbers.Temperature = 1.0
    context_init: str = "a photo of a"
    num_context_tokens: numbers.Count = 0
    residual_ratio: float = 0.5
    learn_ratio: bool = False
    zero_init: bool = True
    prompt_pull: numbers.Weight = 0.0
    feature_loss: numbers.Weight = 0.0
    label_smoothing: numbers.Share = 0.0
    epochs: int = 0
    steps: int = 200
    batch_size: int = 256
    anchor_prompts: bool = False
    prompt_steps: int = 0
    prompt_rate: float = 1e-2
    context_rate: float = 2e-3
    adapter_rate: float = 1e-3
    class_rate: float = 1e-3
    weight_decay: numbers.Weight = 1e-2
    views: int = 1
    flip: bool = False
    text_memory_mib: int = 1536

    def __post_init__(self) -> None:
        if not 0.0 < self.residual_ratio < 1.0:
            raise ValueError(f"residual_ratio must be between 0 and 1, got {self.residual_ratio}")
        if self.epochs < 0:
            raise ValueError(f"epochs must not be negative, got {self.epochs}")
        for name in ("steps", "batch_size", "views", "text_memory_mib"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("context_rate", "prompt_rate", "adapter_rate", "class_rate"):
            if not 0.0 <= getattr(self, name) <= numbers.MAX_RATE:
                raise ValueError(f"{name} must be between 0 and {numbers.MAX_RATE:g}, got {getattr(self, name)}")
        if not self.context_init and self.num_context_tokens < 1:
            raise ValueError("num_context_tokens must be at least 1 when context_init is empty")
        if self.prompt_steps < 0:
            raise ValueError(f"prompt_steps must not be negative, got {self.prompt_steps}")
        if self.prompt_steps and not self.prompts:
            raise ValueError(f"prompt_steps = {self.prompt_steps} learns prompts, and prompts = false; leave one out")
        self._check_teacher()

    def _check_teacher(self) -> None:
        weight = self.distillation
        if weight is not None and not 0.0 <= weight <= numbers.MAX_RATE:
            raise ValueError(f"distillation must be between 0 and {numbers.MAX_RATE:g}, got {weight}")
        if self.teacher == "none" and weight:
            raise ValueError(f"distillation = {weight:g} needs a teacher, and teacher = 'none'; leave one of them out")
        if self.teacher in ("learned", "zero-shot") and weight == 0.0:
            raise ValueError(
                f"teacher = '{self.teacher}' teaches nothing at distillation = 0; leave distillation out for 1, or set "
                "teacher = 'none'"
            )

    @property
    def taught_by(self) -> TeacherName:
        """Who is distilled from, with what `teacher` leaves to `distillation`."""
        return self.teacher or ("zero-shot" if self.distillation else "none")

    @property
    def teacher_weight(self) -> float:
        """Of the divergence from the teacher; 0 without one."""
        return 0.0 if self.taught_by == "none" else 1.0 if self.distillation is None else self.distillation

    def steps_of(self, images: int) -> int:
        """Return the number of the optimizer's steps in one epoch over this number of images."""
        return -(-images // self.batch_size)

    def passes(self, images: int) -> int:
        """Return the number of epochs over this number of images, in which all parts are learned."""
        return self.epochs or -(-self.steps // self.steps_of(images))

    def prompt_passes(self, images: int) -> int:
        """Return the number of epochs before those, in which prompts are learned alone."""
        return -(-self.prompt_steps // self.steps_of(images))


class ExportSection(Section, frozen=True, kw_only=True):
    """[export]: what travels in the bundle beside the graphs.

    Attributes:
        golden_samples: labelled images that prove an engine where it runs, with their pixels.
        reference_images: images that were not learned from, whose results by PyTorch let a device validate without it:
            36 bytes and two embeddings each (4 KiB at 512 dimensions), no pixels; 0 takes none.
    """

    golden_samples: int = 6
    reference_images: int = 500

    def __post_init__(self) -> None:
        if self.golden_samples < 1 or self.reference_images < 0:
            got = f"got {self.golden_samples} and {self.reference_images}"
            raise ValueError(f"golden_samples must be at least 1 and reference_images at least 0, {got}")


class ComputeSection(Section, frozen=True, kw_only=True):
    """[compute]: where and how a run is computed. All but `precision` leave the results within stated bounds.

    Attributes:
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        workers: processes that read and decode images; 0 reads them in the command's own. `auto`: beside a GPU one
            for each core but one, 8 at most; on a CPU, whose cores all compute, 0.
        batch_size: images that run through a tower at once; `auto` takes 64, and on a GPU as many as fit.
        memory_gib: of the device, the most that batches of `auto` fill; 0 sets no limit.
        precision: of the frozen float image tower that is learned from; all else is computed in float32. `tf32`
            changes nothing on a CPU.
    """

    device: str = "auto"
    workers: int | Literal["auto"] = "auto"
    batch_size: int | Literal["auto"] = "auto"
    memory_gib: float = 0.0
    precision: FloatPrecision = "float32"

    def __post_init__(self) -> None:
        if not numbers.is_device_name(self.device):
            raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}")
        if self.workers != "auto" and not 0 <= self.workers <= MAX_WORKERS:
            raise ValueError(f"workers must be 'auto' or from 0 to {MAX_WORKERS}, got {self.workers}")
        if self.batch_size != "auto" and not 1 <= self.batch_size <= MAX_BATCH_SIZE:
            raise ValueError(f"batch_size must be 'auto' or from 1 to {MAX_BATCH_SIZE}, got {self.batch_size}")
        if not 0.0 <= self.memory_gib <= numbers.MAX_MEMORY_GIB:
            raise ValueError(f"memory_gib must be between 0 and {numbers.MAX_MEMORY_GIB}, got {self.memory_gib}")


class Recipe(Section, frozen=True, kw_only=True):
    """A whole run.

    Attributes:
        seed: fixes few-shot sampling, initialization, augmentation and batch order.
        method: our own, or the baseline `p4q_edge.baselines.as_released`, which is only compared.
    """

    schema_version: Literal[1] = 1
    seed: int = 0
    method: Method = "p4q"
    model: ModelSection
    data: DataSection
    quantization: QuantizationSection = QuantizationSection()
    learn: LearnSection = LearnSection()
    export: ExportSection = ExportSection()
    compute: ComputeSection = ComputeSection()

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed must be between 0 and {(1 << 63) - 1}, got {self.seed}")
        if self.data.train:
            if self.data.calibration:
                raise ValueError("data.calibration has no effect beside data.train, which ranges are measured on")
            return
        learns = self.learn.prompts or self.learn.adapter or self.learn.class_residual or self.method != "p4q"
        if learns or not self.data.class_names or not self.data.calibration:
            raise ValueError(
                "data.train is empty; name labelled images to learn from. To learn nothing, set learn.prompts, "
                "learn.adapter and learn.class_residual to false, and name data.class_names and data.calibration"
            )
        if self.quantization.max_top1_drop is not None:
            raise ValueError("quantization.max_top1_drop is judged on labelled images, and data.train names none")

    @property
    def zero_shot(self) -> bool:
        """Whether no image has a label, so that nothing is learned."""
        return not self.data.train

    def contradiction(self) -> str:
        """Return what sections ask of each other that cannot be, in words; empty if nothing is."""
        learn = self.learn
        ours = self.data.unlabelled or learn.teacher == "learned" or learn.prompt_steps
        ours = ours or self.quantization.weight_block or self.quantization.number_format != "int"
        if self.method == "as-released" and ours:
            return (
                "method = 'as-released' repeats the published code, which knows no data.unlabelled, learn.prompt_steps "
                "or learn.teacher = 'learned', and no quantization.weight_block or number_format; leave them out"
            )
        if self.data.unlabelled and learn.taught_by == "none":
            return (
                "data.unlabelled names images that only a teacher can tell anything about, and there is none; set "
                "learn.teacher = 'learned', or leave data.unlabelled out"
            )
        return ""

    def anywhere(self) -> "Recipe":
        """Return the run as it is everywhere: of [compute] only what changes results; the rest is at its defaults.

        What tells whether results are unchanged holds this, so that a run goes on with another device, or with more
        workers, where it was.
        """
        return msgspec.structs.replace(self, compute=ComputeSection(precision=self.compute.precision))
